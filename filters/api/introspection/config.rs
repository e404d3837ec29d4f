use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration as Time;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::bearer::From;
use crate::contract::Spot;
use crate::contract::units::{Duration, Secret};

/// Tokens that their issuer is asked about (RFC 7662): opaque ones, or ones that may be revoked at any time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The introspection endpoint, `https://...`; `http` only for loopback hosts, or with `allowPlaintext`.
    pub url: Spot<String>,
    /// Who we are to the issuer.
    pub client_id: Spot<String>,
    /// What proves it.
    pub client_secret: Spot<Secret>,
    /// How it is sent. Default basic.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// PEM file with the certificates to trust for the URL, instead of the system's.
    pub ca: Option<Spot<PathBuf>>,
    /// Allows an `http` URL whose host is not loopback: whoever is on the way sees tokens and forges answers. Default
    /// false.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// The exact `iss` of good tokens. Default: the issuer's word is enough.
    pub issuer: Option<String>,
    /// A good token's `aud` names at least one of these. Default: any.
    pub audiences: Option<Spot<Vec<String>>>,
    /// Longest time for which an active token is believed without asking again; never beyond its `exp`. `0s` asks every
    /// time. Default 1m.
    pub cache: Option<Spot<Duration>>,
    /// The same for a token that is not active. Default 10s.
    pub negative_cache: Option<Spot<Duration>>,
    /// How long the issuer may take to answer. Default 2s.
    pub timeout: Option<Spot<Duration>>,
    /// Where the token is found. Default: `Authorization: Bearer`.
    pub from: Option<Spot<From>>,
    /// Lets the token go upstream. Default false.
    #[serde(default)]
    pub forward_token: bool,
    /// Member of the answer to request header for the upstream; `a.b` leads into a map. Clients cannot send these headers
    /// themselves.
    #[serde(default)]
    pub claims_to_headers: BTreeMap<String, Spot<String>>,
    /// The member whose value names a consumer, or is one of a consumer's `clientIds`; such as `client_id`.
    pub consumer_claim: Option<String>,
    /// Members that hold scopes. Default `scope`, `scp`, `scopes`.
    pub scope_claims: Option<Vec<String>>,
}

/// How client id and secret are sent (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// In `Authorization: Basic`.
    #[default]
    Basic,
    /// In the form.
    Post,
}

/// Default of `cache`.
pub const CACHE: Time = Time::from_secs(60);
/// Longest `cache` and `negativeCache`.
pub const MAX_CACHE: Time = Time::from_secs(3600);
/// Default of `negativeCache`.
pub const NEGATIVE: Time = Time::from_secs(10);
/// Default of `timeout`.
pub const TIMEOUT: Time = Time::from_secs(2);
/// Longest `timeout`.
pub const MAX_TIMEOUT: Time = Time::from_secs(30);
