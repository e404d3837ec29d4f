use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration as Time;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::api::bearer::From;
use crate::api::jose::keys::Algorithm;
use crate::contract::units::Duration;
use crate::contract::{Node, Spot};

/// Signed tokens of one issuer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The exact `iss` of good tokens.
    pub issuer: Spot<String>,
    /// A good token's `aud` names at least one of these, exactly.
    pub audiences: Spot<Vec<String>>,
    /// Where the issuer's public keys are. Default: where the issuer's discovery document says.
    pub jwks: Option<Spot<Jwks>>,
    /// Signature algorithms that are accepted; a key is good for its own only.
    #[serde(default = "algorithms")]
    pub algorithms: Spot<Vec<Algorithm>>,
    /// How far clocks may differ, at most 5m. Default 60s.
    #[schemars(extend("default" = "60s"))]
    pub leeway: Option<Spot<Duration>>,
    /// Where the token is found. Default: `Authorization: Bearer`.
    pub from: Option<Spot<From>>,
    /// Lets the token go upstream. Default false.
    #[serde(default)]
    pub forward_token: bool,
    /// Claim to request header for the upstream; `a.b` leads into a map. Clients cannot send these headers themselves.
    #[serde(default)]
    pub claims_to_headers: BTreeMap<String, Spot<String>>,
    /// The claim whose value names a consumer, or is one of a consumer's `clientIds`; such as `azp`.
    pub consumer_claim: Option<String>,
    /// Claims that hold scopes, as words or lists; `a.b` leads into a map. Default `scope`, `scp`, `scopes`.
    pub scope_claims: Option<Vec<String>>,
    /// The `typ` that a token must carry, such as `at+jwt`.
    pub required_typ: Option<String>,
}

/// Where keys are: exactly one of `url`, `file`, `inline`, `discovery`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Jwks {
    /// `https://...`; `http` only for loopback hosts, or with `allowPlaintext`.
    pub url: Option<Spot<String>>,
    /// A file, read again when it changes.
    pub file: Option<Spot<PathBuf>>,
    /// The key set itself, as a map or as JSON text.
    pub inline: Option<Node>,
    /// Finds the keys by the issuer's discovery document, `ISSUER/.well-known/openid-configuration`; `true` or nothing.
    #[serde(default)]
    pub discovery: bool,
    /// How often the URL is asked again, from 1s. Default 5m.
    pub refresh: Option<Spot<Duration>>,
    /// How long keys stay in use that the URL or file does not confirm, from the last time it did; then tokens get 503
    /// until it does again. The source is asked at least this often; `0s` = without limit. Default 24h.
    #[schemars(extend("default" = "24h"))]
    pub max_stale: Option<Spot<Duration>>,
    /// PEM file with the certificates to trust for the URL, instead of the system's.
    pub ca: Option<Spot<PathBuf>>,
    /// Allows an `http` URL whose host is not loopback: whoever is on the way can forge tokens. Default false.
    #[serde(default)]
    pub allow_plaintext: bool,
}

/// Default of `leeway`.
pub const LEEWAY: Time = Time::from_secs(60);
/// Longest `leeway`.
pub const MAX_LEEWAY: Time = Time::from_secs(300);
/// Default of `jwks.maxStale`.
pub const MAX_STALE: Time = Time::from_secs(24 * 3600);
/// Default of `jwks.refresh`.
pub const REFRESH: Time = Time::from_secs(300);

/// Every asymmetric algorithm in wide use. Shared secrets must be asked for.
fn algorithms() -> Spot<Vec<Algorithm>> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, RS256};
    Spot { span: crate::contract::Span::default(), value: vec![RS256, PS256, ES256, ES384, EdDSA] }
}
