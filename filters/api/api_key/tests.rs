use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, holding, request, section};
use crate::contract::entry::Directory;

fn directory() -> Directory {
    holding(
        "apiKeys",
        json!({
            "acme": ["k-acme", {"key": "k-acme-2", "expires": "2999-01-01T00:00:00Z"}],
            "other": ["k-other", {"key": "k-old", "expires": "2020-01-01T00:00:00Z"}],
        }),
    )
}

fn identity(json: serde_json::Value) -> Result<Arc<dyn Authenticator>, ConfigError> {
    build(&section(json), &mut Estate::default().build("identities.partners", &directory()))
}

fn judge(identity: &Arc<dyn Authenticator>, rq: &mut RequestCx) -> AuthVerdict {
    match identity.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(_) => panic!("decided without waiting"),
    }
}

fn owner(rq: &RequestCx) -> Option<&str> {
    rq.consumer.as_ref().map(|c| &*c.name)
}

#[test]
fn keys_find_their_owner_and_leave() {
    let header = identity(json!({})).expect("builds");
    for key in ["k-acme", "k-acme-2"] {
        let mut rq = request("GET", "/");
        rq.headers.insert("x-api-key", key.parse().expect("a value"));
        assert!(matches!(judge(&header, &mut rq), AuthVerdict::Accepted));
        assert_eq!(owner(&rq), Some("acme"));
        assert!(rq.headers.is_empty());
    }
    let query = identity(json!({"query": "api_key"})).expect("builds");
    let mut rq = request("GET", "/a?b=1&api_key=k-other");
    assert!(matches!(judge(&query, &mut rq), AuthVerdict::Accepted));
    assert_eq!((owner(&rq), rq.target.as_str()), (Some("other"), "/a?b=1"));
    let cookie = identity(json!({"cookie": "key"})).expect("builds");
    let mut rq = request("GET", "/");
    rq.headers.insert("cookie", "key=k-acme".parse().expect("a value"));
    assert!(matches!(judge(&cookie, &mut rq), AuthVerdict::Accepted));
    assert!(rq.headers.is_empty());
}

#[test]
fn other_keys_do_not() {
    let identity = identity(json!({})).expect("builds");
    let mut rq = request("GET", "/");
    assert!(matches!(judge(&identity, &mut rq), AuthVerdict::Absent));
    for bad in ["", "k-acm", "K-ACME", "k-acme,k-other", &"k".repeat(2000)] {
        let mut rq = request("GET", "/");
        rq.headers.insert("x-api-key", bad.parse().expect("a value"));
        assert!(matches!(judge(&identity, &mut rq), AuthVerdict::Refused(_)), "{bad}");
        assert_eq!(owner(&rq), None);
    }
    for key in ["k-acme", "k-other"] {
        rq.headers.append("x-api-key", key.parse().expect("a value"));
    }
    assert!(matches!(judge(&identity, &mut rq), AuthVerdict::Refused(e) if e.code == "invalid_request"));
    let mut rq = request("GET", "/");
    rq.headers.insert("x-api-key", "k-old".parse().expect("a value"));
    assert!(matches!(judge(&identity, &mut rq), AuthVerdict::Refused(e) if e.description == "the API key has expired"));
    assert_eq!(identity.challenge(None), "ApiKey realm=\"partners\", header=\"x-api-key\"");
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({"header": "a", "query": "b"}), "exactly one"),
        (json!({"header": "a b"}), "not a header name"),
        (json!({"heder": "a"}), "did you mean `header`"),
    ] {
        let e = identity(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}
