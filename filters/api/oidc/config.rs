use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration as Time;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::jose::keys::Algorithm;
use crate::contract::units::{Duration, Secret};
use crate::contract::{Span, Spot};

/// Login of people in browsers at an OpenID Connect issuer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The issuer's URL; `/.well-known/openid-configuration` below it says the rest.
    pub issuer: Spot<String>,
    /// As registered at the issuer.
    pub client_id: Spot<String>,
    /// As registered at the issuer; absent for a public client, which PKCE alone protects.
    pub client_secret: Option<Spot<Secret>>,
    /// How the secret is sent. Default: `basic` unless the issuer only takes `post`; `none` without a secret.
    pub client_auth: Option<Spot<ClientAuth>>,
    /// A private key in place of a secret: `private_key_jwt` (RFC 7523).
    pub client_key: Option<Spot<ClientKey>>,
    /// What is asked for; `openid` is added. `offline_access` or what the issuer wants for a refresh token goes here.
    #[serde(default)]
    pub scopes: Vec<Spot<String>>,
    /// More parameters for the issuer's login page, such as `prompt` or `audience`.
    #[serde(default)]
    pub parameters: BTreeMap<String, Spot<String>>,
    /// Signature algorithms of tokens that are accepted; a key is good for its own only.
    #[serde(default = "algorithms")]
    pub algorithms: Spot<Vec<Algorithm>>,
    /// How far clocks may differ, at most 5m. Default 60s.
    pub leeway: Option<Spot<Duration>>,
    /// The user must have typed the password within this time before a login; the issuer is asked to see to it.
    pub max_auth_age: Option<Duration>,
    /// Adds the claims of the issuer's userinfo endpoint, asked once at login. Default false.
    #[serde(default)]
    pub userinfo: bool,
    /// Where the issuer sends browsers back to. Registered there as `https://HOST` and this path.
    #[serde(default = "redirect_path")]
    pub redirect_path: Spot<String>,
    /// Where a browser goes to log out.
    #[serde(default = "logout_path")]
    pub logout_path: Spot<String>,
    /// Where the issuer posts logout tokens (back-channel logout); absent = nowhere.
    pub backchannel_logout_path: Option<Spot<String>>,
    /// Path a browser lands on after a logout. Registered at the issuer as `https://HOST` and this path.
    #[serde(default = "after_logout")]
    pub after_logout: Spot<String>,
    /// Logs out here only, not at the issuer: the next login may need no password. Default false.
    #[serde(default)]
    pub local_logout: bool,
    /// Sends the access token upstream as `Authorization: Bearer`. Default false.
    #[serde(default)]
    pub forward_token: bool,
    /// Claim to request header for the upstream. Clients cannot send these headers themselves.
    #[serde(default)]
    pub claims_to_headers: BTreeMap<String, Spot<String>>,
    /// The claim whose value names a consumer.
    pub consumer_claim: Option<String>,
    /// PEM file with the certificates to trust for the issuer, instead of the system's.
    pub ca: Option<Spot<PathBuf>>,
    /// Allows an `http` issuer whose host is not loopback: whoever is on the way can log in as anybody. Default false.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// The cookie and how long it is good.
    #[serde(default)]
    pub session: Session,
}

/// The session that browsers keep, sealed, in a cookie.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Session {
    /// Name of the cookie. `__Host-` in front makes browsers refuse it from anywhere else.
    #[serde(default = "cookie")]
    pub cookie: Spot<String>,
    /// What cookies are sealed with, 32 bytes at least; every instance needs the same. Without it, a random one is made
    /// and a restart logs everybody out.
    pub secret: Option<Spot<Secret>>,
    /// Secrets of before, which still open cookies: for a change without logging anybody out.
    #[serde(default)]
    pub previous_secrets: Vec<Spot<Secret>>,
    /// A login is good for this long.
    #[serde(default = "max_age")]
    pub max_age: Spot<Duration>,
    /// Ends a session that is not used for this long, to within an eighth of it; `0s` = none.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: Spot<Duration>,
    /// Which requests from other sites carry the cookie.
    #[serde(default)]
    pub same_site: SameSite,
    /// The cookie travels over https only. `false` lets people log in at `http://localhost` and other loopback hosts.
    #[serde(default = "yes")]
    pub secure: Spot<bool>,
}

/// How a client shows its secret at the token endpoint (OpenID Connect Core 1.0 section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// In `Authorization: Basic`.
    Basic,
    /// In the body.
    Post,
    /// Not at all.
    None,
}

/// The key that signs who we are, for each question to the token endpoint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientKey {
    /// The key: PKCS #8, PEM.
    pub key: Spot<Secret>,
    /// Its name at the issuer: `kid`. Default none.
    pub id: Option<String>,
    /// What it signs with; not one of HS. Default ES256.
    #[schemars(extend("default" = "ES256"))]
    pub algorithm: Option<Algorithm>,
    /// Whom what it signs is for. Default: the issuer's URL; some issuers want that of their token endpoint.
    pub audience: Option<String>,
}

/// RFC 6265bis section 4.1.2.7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SameSite {
    /// Links from elsewhere find the user logged in; forms and scripts from elsewhere do not.
    #[default]
    Lax,
    /// Nothing from elsewhere finds the user logged in.
    Strict,
    /// Every site's requests carry the cookie: needs a defence against forged requests of its own.
    None,
}

impl SameSite {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Lax => "Lax",
            Self::Strict => "Strict",
            Self::None => "None",
        }
    }
}

/// Default of `leeway`.
pub const LEEWAY: Time = Time::from_secs(60);
/// Longest `leeway`.
pub const MAX_LEEWAY: Time = Time::from_secs(300);

impl Default for Session {
    fn default() -> Self {
        Self {
            cookie: cookie(),
            secret: None,
            previous_secrets: Vec::new(),
            max_age: max_age(),
            idle_timeout: idle_timeout(),
            same_site: SameSite::Lax,
            secure: yes(),
        }
    }
}

fn unplaced<T>(value: T) -> Spot<T> {
    Spot { span: Span::default(), value }
}

fn algorithms() -> Spot<Vec<Algorithm>> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, RS256};
    unplaced(vec![RS256, PS256, ES256, ES384, EdDSA])
}

fn redirect_path() -> Spot<String> {
    unplaced("/oauth2/callback".to_owned())
}

fn logout_path() -> Spot<String> {
    unplaced("/oauth2/logout".to_owned())
}

fn after_logout() -> Spot<String> {
    unplaced("/".to_owned())
}

fn cookie() -> Spot<String> {
    unplaced("__Host-sid".to_owned())
}

fn max_age() -> Spot<Duration> {
    unplaced(Duration(Time::from_secs(8 * 3600)))
}

fn idle_timeout() -> Spot<Duration> {
    unplaced(Duration(Time::from_secs(30 * 60)))
}

fn yes() -> Spot<bool> {
    unplaced(true)
}
