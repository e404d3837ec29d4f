//! What a session holds. It lives in the browser, sealed; no process has to know it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// A login and what came of it. Names are short: every byte goes through the browser with every request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    /// Ours, random: names the session to this process.
    #[serde(rename = "i")]
    pub id: String,
    /// How often its tokens were renewed.
    #[serde(rename = "n")]
    pub renewed: u32,
    /// When the user logged in, in Unix seconds.
    #[serde(rename = "a")]
    pub since: u64,
    /// When it was last sealed.
    #[serde(rename = "s")]
    pub seen: u64,
    /// The ID token as the issuer wrote it: claims, and the hint at logout.
    #[serde(rename = "t")]
    pub id_token: String,
    /// Claims of the userinfo endpoint.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub userinfo: Option<Map<String, Json>>,
    /// The access token, where it goes upstream.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// When the access token was issued and when it expires, if the issuer said so.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub life: Option<(u64, u64)>,
    /// The refresh token.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<String>,
    /// What was granted.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// How long sessions live, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_age: u64,
    pub idle: u64,
}

/// Renewed this long before the access token expires, or at a quarter of its life if that is less.
const AHEAD: u64 = 30;

impl Session {
    /// Seconds left at most; 0 = over.
    pub fn left(&self, limits: Limits, now: u64) -> u64 {
        let total = (self.since + limits.max_age).saturating_sub(now);
        let idle = (self.seen + limits.idle).saturating_sub(now);
        if idle == 0 { 0 } else { total }
    }

    /// Whether its last use should be written down: not at every request, that would be a `Set-Cookie` at each.
    pub fn is_stale(&self, limits: Limits, now: u64) -> bool {
        now >= self.seen + (limits.idle / 8).max(1)
    }

    /// Whether its tokens are to be renewed: soon to expire, and there is a way.
    pub fn wants_refresh(&self, now: u64) -> bool {
        self.refresh.is_some() && self.life.is_some_and(|(from, to)| now + AHEAD.min(to.saturating_sub(from) / 4) >= to)
    }

    /// Whether its access token is over.
    pub fn has_expired(&self, now: u64) -> bool {
        self.life.is_some_and(|(_, to)| now >= to)
    }

    /// What the ID token and the userinfo say. The issuer's signature was checked when the session was sealed.
    pub fn claims(&self) -> Option<Map<String, Json>> {
        let payload = self.id_token.split('.').nth(1)?;
        let mut claims: Map<String, Json> = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        for (name, value) in self.userinfo.iter().flatten() {
            // The token was signed; the userinfo adds to it and never replaces.
            claims.entry(name).or_insert_with(|| value.clone());
        }
        Some(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"sub":"ann","email":"a@b"}"#);
        let userinfo = serde_json::json!({"sub": "eve", "email": "e@b", "name": "Ann"});
        Session {
            id: "s1".into(),
            renewed: 0,
            since: 1000,
            seen: 1000,
            id_token: format!("h.{payload}.s"),
            userinfo: userinfo.as_object().cloned(),
            access: None,
            life: Some((1000, 1300)),
            refresh: Some("r".into()),
            scope: None,
        }
    }

    #[test]
    fn it_ends_by_age_and_by_idleness() {
        let limits = Limits { max_age: 1000, idle: 100 };
        let mut it = session();
        assert_eq!((it.left(limits, 1000), it.left(limits, 1099), it.left(limits, 1100)), (1000, 901, 0));
        assert!(!it.is_stale(limits, 1011) && it.is_stale(limits, 1012));
        it.seen = 1950;
        assert_eq!((it.left(limits, 1999), it.left(limits, 2000)), (1, 0), "however busy");
    }

    #[test]
    fn tokens_are_renewed_before_they_expire() {
        let mut it = session();
        assert!(!it.wants_refresh(1269) && it.wants_refresh(1270) && !it.has_expired(1299) && it.has_expired(1300));
        it.life = Some((1000, 1004));
        assert!(!it.wants_refresh(1002) && it.wants_refresh(1003), "a short life has a short lead");
        it.refresh = None;
        assert!(!it.wants_refresh(2000));
    }

    #[test]
    fn what_was_signed_is_not_replaced() {
        let claims = session().claims().expect("claims");
        assert_eq!((&claims["sub"], &claims["email"], &claims["name"]), (&"ann".into(), &"a@b".into(), &"Ann".into()));
    }
}
