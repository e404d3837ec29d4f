//! What an ID token and a logout token must say (OpenID Connect Core 1.0 sections 3.1.3.7 and 12.2, Back-Channel Logout
//! 1.0 section 2.6). Pure: the signature is the caller's.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{self, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value as Json};

use crate::api::jose::keys::Algorithm;
use crate::api::jose::token::Token;

const LOGOUT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// Longest `sub`, as the specification has it.
const MAX_SUBJECT: usize = 255;

/// What an ID token is held against.
#[derive(Default)]
pub struct Expected<'a> {
    pub client: &'a str,
    /// Sent with the login; a renewed token need not repeat it, but must not contradict it.
    pub nonce: Option<&'a str>,
    /// The token that came with it.
    pub access: Option<&'a str>,
    /// Oldest act of logging in that is accepted, in seconds.
    pub max_auth_age: Option<f64>,
    /// Who the session belongs to, where there is one.
    pub subject: Option<&'a str>,
    pub leeway: f64,
}

/// Whether two texts are equal, in a time that says nothing about where they differ.
pub fn same(a: &str, b: &str) -> bool {
    verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

/// Checks what goes beyond issuer, audience and dates, which [`Token::check`] has done.
pub fn check(token: &Token<'_>, expected: &Expected<'_>, unix: f64) -> Result<(), &'static str> {
    let claims = &token.claims;
    let text = |name: &str| claims.get(name).and_then(Json::as_str);
    let subject = text("sub").filter(|s| !s.is_empty() && s.len() <= MAX_SUBJECT).ok_or("the ID token names nobody")?;
    if expected.subject.is_some_and(|wanted| wanted != subject) {
        return Err("the ID token names somebody else");
    }
    let issued = claims.get("iat").and_then(Json::as_f64).ok_or("the ID token does not say when it was issued")?;
    if issued > unix + expected.leeway {
        return Err("the ID token is from the future");
    }
    // Section 3.1.3.7: several audiences need to say which of them asked; whoever is named must be us.
    let several = claims.get("aud").and_then(Json::as_array).is_some_and(|list| list.len() > 1);
    match claims.get("azp") {
        None if several => return Err("the ID token is for several clients and does not say who asked"),
        Some(azp) if azp.as_str() != Some(expected.client) => return Err("another client asked for the ID token"),
        _ => {}
    }
    match (text("nonce"), expected.nonce) {
        (Some(nonce), Some(wanted)) if !same(nonce, wanted) => return Err("the ID token belongs to another login"),
        (None, Some(_)) if expected.subject.is_none() => return Err("the ID token belongs to no login"),
        _ => {}
    }
    if let (Some(hash), Some(access)) = (claims.get("at_hash"), expected.access) {
        let right = hash.as_str().is_some_and(|hash| same(hash, &half_hash(token.algorithm, access)));
        if !right {
            return Err("the ID token belongs to another access token");
        }
    }
    if let Some(most) = expected.max_auth_age {
        let at = claims.get("auth_time").and_then(Json::as_f64).ok_or("the ID token has no time of the login")?;
        if at + most + expected.leeway < unix {
            return Err("the login was too long ago");
        }
    }
    Ok(())
}

/// The left half of the hash that the algorithm uses (section 3.1.3.6); Ed25519 uses SHA-512.
pub fn half_hash(algorithm: Algorithm, text: &str) -> String {
    use Algorithm::{ES256, ES384, HS256, HS384, PS256, PS384, RS256, RS384};
    let hash = match algorithm {
        RS256 | PS256 | ES256 | HS256 => digest(&digest::SHA256, text.as_bytes()),
        RS384 | PS384 | ES384 | HS384 => digest(&digest::SHA384, text.as_bytes()),
        _ => digest(&digest::SHA512, text.as_bytes()),
    };
    let half = &hash.as_ref()[..hash.as_ref().len() / 2];
    URL_SAFE_NO_PAD.encode(half)
}

/// Whose sessions a logout token ends, and what tells it from every other.
#[derive(Debug, PartialEq, Eq)]
pub struct Logout {
    pub sid: Option<String>,
    pub subject: Option<String>,
    pub jti: String,
}

/// Reads a logout token whose issuer, audience and dates were checked.
pub fn logout(token: &Token<'_>) -> Result<Logout, &'static str> {
    let claims: &Map<String, Json> = &token.claims;
    // Another kind of token of the same issuer, such as an ID token, must never end a session, nor the reverse.
    if token.typ.as_deref().is_some_and(|typ| {
        let typ = typ.to_ascii_lowercase();
        !matches!(typ.strip_prefix("application/").unwrap_or(&typ), "logout+jwt" | "jwt")
    }) {
        return Err("the token is of another type");
    }
    let event = claims.get("events").and_then(Json::as_object).and_then(|events| events.get(LOGOUT));
    if !event.is_some_and(Json::is_object) {
        return Err("the token is about no logout");
    }
    if claims.contains_key("nonce") {
        return Err("a logout token has no nonce");
    }
    if !claims.get("iat").is_some_and(Json::is_number) {
        return Err("the token does not say when it was issued");
    }
    let text = |name: &str| claims.get(name).and_then(Json::as_str).filter(|t| !t.is_empty()).map(ToOwned::to_owned);
    let jti = text("jti").ok_or("the token has no jti")?;
    let (sid, subject) = (text("sid"), text("sub"));
    if sid.is_none() && subject.is_none() {
        return Err("the token names neither session nor user");
    }
    Ok(Logout { sid, subject, jti })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn token(claims: Json, typ: Option<&str>) -> Token<'static> {
        let Json::Object(claims) = claims else { panic!("an object") };
        let typ = typ.map(ToOwned::to_owned);
        Token { signed: b"", signature: Vec::new(), algorithm: Algorithm::ES256, kid: None, typ, claims }
    }

    fn expected() -> Expected<'static> {
        Expected { client: "shop", nonce: Some("n"), access: Some("at"), leeway: 10.0, ..Expected::default() }
    }

    fn good() -> Json {
        json!({"sub": "ann", "aud": "shop", "iat": 1000, "nonce": "n"})
    }

    fn with(name: &str, value: Json) -> Json {
        let mut claims = good();
        claims[name] = value;
        claims
    }

    #[test]
    fn a_good_one_passes_and_each_lie_is_named() {
        assert_eq!(check(&token(good(), None), &expected(), 1000.0), Ok(()));
        let hash = half_hash(Algorithm::ES256, "at");
        assert_eq!(check(&token(with("at_hash", json!(hash)), None), &expected(), 1000.0), Ok(()));
        for (claims, says) in [
            (with("sub", json!("")), "names nobody"),
            (with("sub", json!("x".repeat(256))), "names nobody"),
            (with("iat", json!("1000")), "when it was issued"),
            (with("iat", json!(1011)), "from the future"),
            (with("aud", json!(["shop", "other"])), "does not say who asked"),
            (with("azp", json!("other")), "another client"),
            (with("nonce", json!("m")), "another login"),
            (with("nonce", json!(7)), "no login"),
            (with("at_hash", json!("AAAA")), "another access token"),
            (with("at_hash", json!(1)), "another access token"),
        ] {
            let error = check(&token(claims.clone(), None), &expected(), 1000.0).expect_err(says);
            assert!(error.contains(says), "{claims}: {error}");
        }
    }

    #[test]
    fn a_login_may_have_to_be_recent() {
        let recent = Expected { max_auth_age: Some(60.0), ..expected() };
        let at = |auth_time: Json| check(&token(with("auth_time", auth_time), None), &recent, 1000.0);
        assert_eq!(at(json!(930)), Ok(()));
        assert_eq!(at(json!(929)), Err("the login was too long ago"));
        assert!(check(&token(good(), None), &recent, 1000.0).is_err());
    }

    #[test]
    fn a_renewed_one_belongs_to_the_same_user_and_login() {
        let renewed = Expected { subject: Some("ann"), ..expected() };
        let without = json!({"sub": "ann", "aud": "shop", "iat": 1000});
        assert_eq!(check(&token(without, None), &renewed, 1000.0), Ok(()));
        assert!(check(&token(with("nonce", json!("m")), None), &renewed, 1000.0).is_err());
        assert!(check(&token(with("sub", json!("eve")), None), &renewed, 1000.0).is_err());
    }

    /// OpenID Connect Core 1.0 appendix A.3: the example's at_hash.
    #[test]
    fn the_specifications_own_hash() {
        assert_eq!(
            half_hash(Algorithm::RS256, "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"),
            "77QmUPtjPfzWtF2AnpK9RQ"
        );
    }

    #[test]
    fn logout_tokens_are_nothing_else() {
        let good = || json!({"iat": 1, "jti": "j", "sid": "s", "events": {LOGOUT: {}}});
        for typ in [None, Some("logout+jwt"), Some("application/logout+JWT"), Some("JWT")] {
            assert_eq!(
                logout(&token(good(), typ)),
                Ok(Logout { sid: Some("s".into()), subject: None, jti: "j".into() })
            );
        }
        assert!(logout(&token(good(), Some("at+jwt"))).is_err());
        for (name, value) in [
            ("events", json!({})),
            ("events", json!({LOGOUT: true})),
            ("events", json!([LOGOUT])),
            ("nonce", json!("n")),
            ("nonce", json!(null)),
            ("iat", json!("now")),
            ("jti", json!(1)),
            ("sid", json!(1)),
        ] {
            let mut claims = good();
            claims[name] = value.clone();
            assert!(logout(&token(claims, None)).is_err(), "{name}: {value}");
        }
    }
}
