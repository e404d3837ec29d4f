//! From a section of the configuration to the identity, and to what of it outlives the configuration.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderName;

use super::assertion::Signer;
use super::config::{self, ClientAuth, ClientKey, Config, SameSite};
use super::cookies::Jar;
use super::opened::Lately;
use super::provider::{Discovery, Provider, document_of, keep_known};
use super::refresh::Memory;
use super::session::Limits;
use super::tokens::Client;
use super::{Core, Counters, Oidc};
use crate::api::jose::fields::claim_field;
use crate::api::jose::keys::Algorithm;
use crate::api::jose::source;
use crate::api::jose::token::Rules;
use crate::contract::client::Remote;
use crate::contract::filter::Authenticator;
use crate::contract::seal::{Keys, LEAST_SECRET, random};
use crate::contract::units::Secret;
use crate::contract::{Build, ConfigError, Node, Spot};

/// Parameters of a login that are ours to set.
const OWN_PARAMETERS: [&str; 11] = [
    "response_type",
    "response_mode",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
    "max_age",
    "request",
];

/// Numbers of [`Core`]s.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

pub fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Authenticator>, ConfigError> {
    Ok(Arc::new(oidc(node, build)?))
}

pub fn oidc(node: &Node, build: &mut Build<'_>) -> Result<Oidc, ConfigError> {
    let config: Config = node.read()?;
    let leeway = checked(&config)?;
    let name = build.scope.strip_prefix("identities.").unwrap_or(&build.scope).to_owned();
    let (issuer, client_id) = (config.issuer.value.clone(), config.client_id.value.clone());
    let dir = build.dir.clone();
    let reveal = |secret: &Spot<Secret>| secret.value.reveal(&dir).map_err(|e| ConfigError::at(secret.span, e));
    let client = Client {
        id: client_id.clone(),
        secret: config.client_secret.as_ref().map(reveal).transpose()?,
        auth: config.client_auth.as_ref().map(|a| a.value),
        key: config.client_key.as_ref().map(|key| signer(&key.value, &issuer, &dir)).transpose()?,
    };
    let secrets = secrets(&config, &name, build)?;
    let claims = config
        .claims_to_headers
        .iter()
        .map(|(claim, field)| Ok((claim.clone(), claim_field(field)?)))
        .collect::<Result<Vec<_>, ConfigError>>()?;
    let fields: Vec<HeaderName> = claims.iter().map(|(_, f)| f.clone()).collect();
    let jar = Jar {
        name: config.session.cookie.value.as_str().into(),
        secure: config.session.secure.value,
        same_site: config.session.same_site.text(),
    };
    let provider = provider(&config, &name, build)?;
    let max_age = config.session.max_age.value.0.as_secs();
    let idle = Some(config.session.idle_timeout.value.0.as_secs()).filter(|s| *s > 0).unwrap_or(max_age);
    let who = format!("{issuer} {client_id}");
    let memory = build.keep("memory", &who, Memory::default);
    // Anything that changes what a session is, or what is made of it, starts with nothing opened.
    let shape = format!("{} {}", node.to_json(), hex(&secrets.concat()));
    let lately = build.keep("opened", &hex(shape.as_bytes()), Lately::default);
    let mut scope = "openid".to_owned();
    for extra in config.scopes.iter().filter(|s| s.value != "openid") {
        scope.push(' ');
        scope.push_str(&extra.value);
    }
    let paths = [Some(&config.redirect_path), Some(&config.logout_path), config.backchannel_logout_path.as_ref()];
    Ok(Oidc(Arc::new(Core {
        number: NUMBERS.fetch_add(1, Relaxed),
        client,
        rules: Rules { issuer, audiences: vec![client_id], leeway, typ: None },
        algorithms: config.algorithms.value,
        scope,
        parameters: config.parameters.into_iter().map(|(name, value)| (name, value.value)).collect(),
        max_auth_age: config.max_auth_age.map(|d| d.0.as_secs()),
        userinfo: config.userinfo,
        paths: paths.into_iter().flatten().map(|p| p.value.as_str().into()).collect(),
        redirect_path: config.redirect_path.value,
        logout_path: config.logout_path.value,
        after_logout: config.after_logout.value,
        local_logout: config.local_logout,
        forward: config.forward_token,
        claims,
        fields,
        consumer_claim: config.consumer_claim,
        consumers: build.directory.consumers.clone(),
        session_purpose: format!("session {} {who}", jar.name),
        login_purpose: format!("login {} {who}", jar.name),
        jar,
        strict: config.session.same_site == SameSite::Strict,
        limits: Limits { max_age, idle },
        keys: Keys::new(secrets.iter().map(Vec::as_slice)),
        provider,
        lately,
        memory,
        counters: counters(&name, build),
        name: name.into(),
    })))
}

fn signer(config: &ClientKey, issuer: &str, dir: &Path) -> Result<Signer, ConfigError> {
    let pem = config.key.value.reveal(dir).map_err(|e| ConfigError::at(config.key.span, e))?;
    let audience = config.audience.clone().unwrap_or_else(|| issuer.to_owned());
    Signer::read(&pem, config.algorithm.unwrap_or(Algorithm::ES256), config.id.clone(), audience)
        .map_err(|e| ConfigError::at(config.key.span, e).help("`openssl genpkey` makes one; `algorithm` says for what"))
}

/// What the types do not say; gives the leeway in seconds.
fn checked(config: &Config) -> Result<f64, ConfigError> {
    let at = |spot: &Spot<String>, message: &str, help: &str| Err(ConfigError::at(spot.span, message).help(help));
    if config.client_id.value.is_empty() {
        return at(&config.client_id, "the client id is empty", "as registered at the issuer");
    }
    if config.issuer.value.contains(['?', '#']) {
        return at(&config.issuer, "an issuer has no query and no fragment", "exactly as the issuer calls itself");
    }
    if config.algorithms.value.is_empty() {
        return Err(ConfigError::at(config.algorithms.span, "no algorithm is accepted"));
    }
    if config.algorithms.value.iter().any(|a| a.is_symmetric()) {
        return Err(ConfigError::at(config.algorithms.span, "tokens signed with the client's secret are not accepted")
            .help("have the issuer sign with RS256 or ES256"));
    }
    if let Some(key) = &config.client_key
        && (config.client_secret.is_some() || config.client_auth.is_some())
    {
        return Err(ConfigError::at(key.span, "`clientKey` is a way of its own to prove who we are")
            .help("remove `clientSecret` and `clientAuth`, or `clientKey`"));
    }
    if let Some(auth) = &config.client_auth {
        match (auth.value, &config.client_secret) {
            (ClientAuth::Basic | ClientAuth::Post, None) => {
                return Err(ConfigError::at(auth.span, "there is no secret to show").help("add `clientSecret`"));
            }
            (ClientAuth::None, Some(_)) => {
                return Err(ConfigError::at(auth.span, "`clientSecret` would never be sent").help("remove one of both"));
            }
            _ => {}
        }
    }
    for scope in &config.scopes {
        if scope.value.is_empty() || !scope.value.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
            return at(scope, "this is not a scope", "one word each, such as `profile`");
        }
    }
    for (name, value) in &config.parameters {
        if OWN_PARAMETERS.contains(&name.as_str()) {
            return at(value, &format!("`{name}` is set by the login itself"), "remove it");
        }
    }
    let paths = [Some(&config.redirect_path), Some(&config.logout_path), config.backchannel_logout_path.as_ref()];
    let paths: Vec<&Spot<String>> = paths.into_iter().flatten().collect();
    for (n, path) in paths.iter().enumerate() {
        plain_path(path)?;
        if paths[..n].iter().any(|other| other.value == path.value) {
            return at(path, &format!("`{}` stands for two things", path.value), "give each its own path");
        }
    }
    plain_path(&config.after_logout)?;
    if config.after_logout.value == config.logout_path.value {
        return at(&config.after_logout, "a logout would lead to another logout", "such as `/`");
    }
    let leeway = config.leeway.as_ref().map_or(config::LEEWAY, |l| l.value.0);
    if let Some(l) = config.leeway.as_ref().filter(|_| leeway > config::MAX_LEEWAY) {
        return Err(ConfigError::at(l.span, format!("a leeway of {} is too long", l.value)).help("at most 5m"));
    }
    cookie(&config.session)?;
    Ok(leeway.as_secs_f64())
}

/// A path as requests have it once they are normalised.
fn plain_path(path: &Spot<String>) -> Result<(), ConfigError> {
    let text = path.value.as_str();
    let plain = text.starts_with('/')
        && !text.contains("//")
        && text.split('/').all(|s| s != "." && s != "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b));
    if plain {
        return Ok(());
    }
    Err(ConfigError::at(path.span, format!("`{text}` is not a plain path")).help("such as `/oauth2/callback`"))
}

/// RFC 6265bis section 4.1.3: browsers refuse cookies that break the promise of their name.
fn cookie(session: &config::Session) -> Result<(), ConfigError> {
    let name = &session.cookie;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.value.is_empty() || name.value.len() > 64 || !name.value.bytes().all(token) {
        return Err(ConfigError::at(name.span, format!("`{}` is not a cookie name", name.value))
            .help("up to 64 letters, such as `__Host-sid`"));
    }
    let lower = name.value.to_ascii_lowercase();
    if !session.secure.value && (lower.starts_with("__host-") || lower.starts_with("__secure-")) {
        return Err(ConfigError::at(session.secure.span, format!("browsers refuse `{}` without `secure`", name.value))
            .help("name the cookie without a prefix, such as `sid`, where `secure: false` is meant"));
    }
    if !session.secure.value && session.same_site == SameSite::None {
        return Err(ConfigError::at(session.secure.span, "browsers refuse `sameSite: none` without `secure`")
            .help("use `sameSite: lax`"));
    }
    if session.max_age.value.0.as_secs() < 1 {
        return Err(ConfigError::at(session.max_age.span, "a session would end at once").help("such as `8h`"));
    }
    let idle = session.idle_timeout.value.0;
    if !idle.is_zero() && idle.as_secs() < 1 {
        return Err(ConfigError::at(session.idle_timeout.span, "a session would end at once").help("at least 1s"));
    }
    Ok(())
}

/// What cookies are sealed with: as configured, or made once in the life of the process.
fn secrets(config: &Config, name: &str, build: &mut Build<'_>) -> Result<Vec<Vec<u8>>, ConfigError> {
    let session = &config.session;
    let dir = build.dir.clone();
    let read = |secret: &Spot<Secret>| {
        let text = secret.value.reveal(&dir).map_err(|e| ConfigError::at(secret.span, e))?;
        if text.len() < LEAST_SECRET {
            return Err(ConfigError::at(secret.span, format!("the secret is shorter than {LEAST_SECRET} bytes"))
                .help("make one with `openssl rand -base64 48`"));
        }
        Ok(text.into_bytes())
    };
    let mut secrets = Vec::new();
    match &session.secret {
        Some(secret) => secrets.push(read(secret)?),
        None => {
            let kept = build.keep("secret", "", || (random::<LEAST_SECRET>(), std::sync::Once::new()));
            let (name, told) = (name.to_owned(), kept.clone());
            build.at_publish(move || {
                told.1.call_once(|| {
                    tracing::warn!(
                        identity = name,
                        "without `session.secret` a restart logs everybody out, and a second instance knows no session"
                    );
                });
            });
            secrets.push(kept.0.to_vec());
        }
    }
    for secret in &session.previous_secrets {
        secrets.push(read(secret)?);
    }
    Ok(secrets)
}

/// Finds or makes the issuer's home. Only a new one gets a background task.
fn provider(config: &Config, name: &str, build: &mut Build<'_>) -> Result<Arc<Provider>, ConfigError> {
    let ca = config.ca.as_ref().map(|ca| build.path(&ca.value));
    let remote =
        Remote::new(&document_of(&config.issuer.value), ca.as_deref(), config.allow_plaintext).map_err(|e| {
            let help = "`https://...`; `http` for loopback hosts, or with `allowPlaintext: true`";
            ConfigError::at(config.issuer.span, e).help(help)
        })?;
    let shape = format!("{} {:?} {ca:?} {}", config.issuer.value, config.algorithms.value, config.allow_plaintext);
    let mut made = false;
    let kept = build.keep("provider", &shape, || {
        made = true;
        Provider::default()
    });
    if made {
        let metrics = build.metrics.clone();
        let count = |result| {
            let labels = [("identity", name), ("result", result)];
            metrics.counter("onehop_oidc_discoveries_total", "Fetches of a discovery document, by result", &labels)
        };
        let (metrics, owner) = (build.metrics.clone(), name.to_owned());
        let discovery = Discovery {
            name: name.to_owned(),
            issuer: config.issuer.value.clone(),
            remote,
            ca,
            plaintext: config.allow_plaintext,
            algorithms: config.algorithms.value.clone(),
            fetched: count("ok"),
            failed: count("failed"),
            keys: Box::new(move || source::Counters::new(&metrics, &owner)),
        };
        build.background(keep_known(Arc::downgrade(&kept), discovery));
    }
    Ok(kept)
}

fn counters(name: &str, build: &Build<'_>) -> Counters {
    let count = |metric, help, result| build.metrics.counter(metric, help, &[("identity", name), ("result", result)]);
    let login = |result| count("onehop_oidc_logins_total", "Logins, by how far they came", result);
    let session = |result| count("onehop_oidc_sessions_ended_total", "Sessions not accepted any more, by why", result);
    let refresh = |result| count("onehop_oidc_refreshes_total", "Renewals of tokens, by result", result);
    let logout = |by| {
        let labels = [("identity", name), ("by", by)];
        build.metrics.counter("onehop_oidc_logouts_total", "Logouts, by who asked", &labels)
    };
    Counters {
        begun: login("begun"),
        completed: login("completed"),
        failed: login("failed"),
        invalid: session("invalid"),
        over: session("expired"),
        revoked: session("revoked"),
        renewed: refresh("ok"),
        not_renewed: refresh("refused"),
        renewal_failed: refresh("failed"),
        logged_out: logout("user"),
        logged_out_by_issuer: logout("issuer"),
    }
}

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
