use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::SystemTime;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, COOKIE};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, holding, request, section};
use crate::api::jose::keys::{self, KeySet};
use crate::api::jose::source;
use crate::contract::client::Bounds;
use crate::contract::entry::Directory;
use crate::contract::principal::Consumer;

const HEADER: &str = "eyJhbGciOiJFUzI1NiJ9";
/// The payload of RFC 7515 appendix A.
const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

/// An issuer's key.
struct Signer {
    pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        Self { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"), kid }
    }
    fn jwk(&self) -> Json {
        let point = self.pair.public_key().as_ref();
        let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({"kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "x": coordinate(1..33), "y": coordinate(33..65)})
    }
    fn sign(&self, header: &Json, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
    fn token(&self, claims: &Json) -> String {
        self.sign(&json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"}), &claims.to_string())
    }
}

fn set(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|s| s.jwk()).collect::<Vec<_>>()}).to_string()
}

fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn good() -> Json {
    json!({"iss": "https://id.test/", "aud": "shop", "sub": "ann", "exp": unix() + 600, "scope": "read orders"})
}

fn with(name: &str, value: Json) -> Json {
    let mut claims = good();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Json {
    let mut claims = good();
    claims.as_object_mut().expect("an object").remove(name);
    claims
}

fn config(jwks: Json, more: Json) -> Json {
    let mut config = json!({"issuer": "https://id.test/", "audiences": ["shop", "other"], "jwks": jwks});
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    config
}

fn made(json: Json, directory: &Directory) -> Result<Jwt, ConfigError> {
    jwt(&section(json), &mut Estate::default().build("identities.corp", directory))
}

fn inline(signers: &[&Signer], more: Json) -> Jwt {
    made(config(json!({"inline": set(signers)}), more), &Directory::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn bearer(token: &str) -> RequestCx {
    let mut rq = request("GET", "/v1/orders");
    rq.headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().expect("a value"));
    rq
}

fn now_or_never(jwt: &Jwt, rq: &mut RequestCx) -> AuthVerdict {
    match jwt.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(_) => panic!("decided without waiting"),
    }
}

async fn verdict(jwt: &Jwt, rq: &mut RequestCx) -> AuthVerdict {
    match jwt.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(later) => later.await,
    }
}

fn refusal(jwt: &Jwt, token: &str) -> &'static str {
    match now_or_never(jwt, &mut bearer(token)) {
        AuthVerdict::Refused(error) => error.description,
        other => panic!("{other:?}: {token}"),
    }
}

/// RFC 7515 appendices A.1 to A.3.
#[test]
fn the_rfcs_own_examples() {
    let rsa_n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2l\
                 ZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEM\
                 a2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2P\
                 AcDTW9gb54h4FRWyuXpoQ";
    let rsa_signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujG\
                 bds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN\
                 9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWy\
                 wlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let ec = json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let oct = json!({"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"});
    let rsa = json!({"kty": "RSA", "n": rsa_n, "e": "AQAB"});
    for (key, algorithm, header, signature) in [
        (
            &oct,
            Algorithm::HS256,
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
        (&rsa, Algorithm::RS256, "eyJhbGciOiJSUzI1NiJ9", rsa_signature),
        (
            &ec,
            Algorithm::ES256,
            HEADER,
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ] {
        let set = KeySet::parse(json!({"keys": [key]}).to_string().as_bytes(), &[algorithm], 1).expect("a key");
        let text = format!("{header}.{PAYLOAD}.{signature}");
        let token = Token::parse(&text).expect("well-formed");
        assert_eq!(token.algorithm, algorithm);
        assert_eq!(set.verify(None, algorithm, token.signed, &token.signature), Signature::Good, "{algorithm:?}");
        let mut forged = token.signature.clone();
        forged[10] ^= 1;
        assert_eq!(set.verify(None, algorithm, token.signed, &forged), Signature::Bad);
        assert_eq!(
            set.verify(Some("k"), algorithm, token.signed, &token.signature),
            Signature::Good,
            "keys without kid"
        );
    }
}

#[test]
fn a_good_token_makes_a_user_and_leaves() {
    let signer = Signer::new("k1");
    let mut directory = Directory::default();
    let acme = Arc::new(Consumer { name: "acme".into(), plan: None, scopes: Vec::new() });
    directory.consumers.insert("acme".into(), acme);
    let more =
        json!({"claimsToHeaders": {"sub": "x-sub", "roles": "x-roles", "evil": "x-evil"}, "consumerClaim": "azp"});
    let jwt = made(config(json!({"inline": set(&[&signer])}), more), &directory).unwrap_or_else(|e| panic!("{e}"));
    let mut claims = good();
    claims["azp"] = json!("acme");
    claims["roles"] = json!(["a", "b"]);
    claims["evil"] = json!("a\r\nb: c");
    let token = signer.token(&claims);
    for seen in ["verified", "cached"] {
        let mut rq = bearer(&token);
        rq.headers.insert("x-evil", HeaderValue::from_static("forged"));
        assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Accepted), "{seen}");
        let user = rq.user.as_ref().expect("a user");
        assert_eq!((&*user.subject, &*user.identity), ("ann", "corp"));
        assert_eq!(user.scopes.iter().map(|s| &**s).collect::<Vec<_>>(), ["read", "orders"]);
        assert_eq!(rq.consumer.as_ref().map(|c| &*c.name), Some("acme"));
        assert_eq!(rq.headers["x-sub"], "ann");
        assert_eq!(rq.headers["x-roles"], "a,b");
        assert!(!rq.headers.contains_key("x-evil"), "neither injected nor forged");
        assert!(!rq.headers.contains_key(AUTHORIZATION), "the token does not go upstream");
    }
    assert_eq!((jwt.verified.value(), jwt.hits.value()), (1, 1));
}

#[test]
fn claims_stand_deep_and_clients_have_owners() {
    let signer = Signer::new("k1");
    let directory = holding("clientIds", json!({"acme": ["web-1", "batch-1"], "other": ["x"]}));
    let more = json!({"claimsToHeaders": {"realm_access.tenant": "x-tenant"}, "consumerClaim": "azp",
                      "scopeClaims": ["realm_access.roles"]});
    let jwt = made(config(json!({"inline": set(&[&signer])}), more), &directory).unwrap_or_else(|e| panic!("{e}"));
    let mut claims = good();
    claims["realm_access"] = json!({"tenant": "t1", "roles": ["buyer", "clerk"]});
    for (azp, owner) in [("web-1", Some("acme")), ("acme", Some("acme")), ("x", Some("other")), ("y", None)] {
        claims["azp"] = json!(azp);
        let mut rq = bearer(&signer.token(&claims));
        assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Accepted));
        assert_eq!(rq.consumer.as_ref().map(|c| &*c.name), owner, "{azp}");
        assert_eq!(rq.headers["x-tenant"], "t1");
        let user = rq.user.expect("a user");
        assert_eq!(user.scopes.iter().map(|s| &**s).collect::<Vec<_>>(), ["buyer", "clerk"]);
    }
    let twice = holding("clientIds", json!({"acme": ["web-1"], "other": ["web-1"]}));
    let config = config(json!({"inline": set(&[&signer])}), json!({"consumerClaim": "azp"}));
    let e = made(config, &twice).err().expect("two owners");
    assert!(e.message.contains("consumer `acme` already"), "{e}");
}

/// RFC 8705 section 3.1: a token that names a certificate is good only for who shows it.
#[test]
fn a_bound_token_needs_its_certificate() {
    let signer = Signer::new("k1");
    let jwt = inline(&[&signer], json!({}));
    let bound = signer.token(&with("cnf", json!({"x5t#S256": URL_SAFE_NO_PAD.encode([7; 32])})));
    let shows = |thumbprint: Option<u8>| {
        let mut rq = bearer(&bound);
        rq.workload = thumbprint
            .map(|b| Arc::new(crate::contract::principal::Workload { thumbprint: [b; 32], ..Default::default() }));
        rq
    };
    for _ in 0..2 {
        assert!(matches!(now_or_never(&jwt, &mut shows(Some(7))), AuthVerdict::Accepted));
        for wrong in [Some(8), None] {
            let verdict = now_or_never(&jwt, &mut shows(wrong));
            assert!(matches!(verdict, AuthVerdict::Refused(e) if e.description.contains("another certificate")));
        }
    }
    for odd in [json!(7), json!("AAAA"), json!(null)] {
        let token = signer.token(&with("cnf", json!({"x5t#S256": odd})));
        assert_eq!(refusal(&jwt, &token), "the token is bound to something unreadable");
    }
}

#[test]
fn a_refused_token_costs_one_verification() {
    let (signer, forger) = (Signer::new("k1"), Signer::new("k1"));
    let jwt = inline(&[&signer], json!({}));
    let forged = forger.token(&good());
    assert_eq!(refusal(&jwt, &forged), "the signature is wrong");
    assert_eq!(jwt.memory.bad.len(), 1);
    assert_eq!(refusal(&jwt, &forged), "the signature is wrong");
    // Remembered with the keys that refused it.
    jwt.store.install(set(&[&forger]).as_bytes()).expect("keys");
    assert!(matches!(now_or_never(&jwt, &mut bearer(&forged)), AuthVerdict::Accepted));
    let early = signer.token(&with("nbf", json!(unix() + 120)));
    assert_eq!(refusal(&jwt, &early), "the token is not valid yet");
    assert_eq!(jwt.memory.bad.len(), 1, "what time undoes is not remembered");
}

#[test]
fn the_same_token_is_verified_once() {
    let signer = Signer::new("k1");
    let jwt = inline(&[&signer], json!({"forwardToken": true}));
    let token = signer.token(&good());
    for _ in 0..5 {
        let mut rq = bearer(&token);
        assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Accepted));
        assert!(rq.headers.contains_key(AUTHORIZATION));
    }
    assert_eq!((jwt.verified.value(), jwt.hits.value()), (1, 4));
    // New keys end every verdict of the old ones.
    jwt.store.install(set(&[&Signer::new("k1")]).as_bytes()).expect("keys");
    assert_eq!(refusal(&jwt, &token), "the signature is wrong");
    // One byte more is another token.
    assert_eq!(refusal(&jwt, &format!("{token}A")), "the signature is wrong");
}

#[test]
fn a_cached_verdict_dies_with_its_token() {
    let signer = Signer::new("k1");
    let jwt = inline(&[&signer], json!({"leeway": "0s"}));
    let token = signer.token(&with("exp", json!(unix() as f64 + 1.2)));
    assert!(matches!(now_or_never(&jwt, &mut bearer(&token)), AuthVerdict::Accepted));
    let pass = jwt.memory.good.iter().next().expect("cached").1;
    let left = pass.user.expires.since(now());
    assert!(left <= Duration::from_millis(2200), "no longer than the token: {left:?}");
    while now() < pass.user.expires {
        std::thread::yield_now();
    }
    assert_eq!(refusal(&jwt, &token), "the token has expired");
}

#[test]
fn bad_claims_are_refused() {
    let signer = Signer::new("k1");
    let jwt = inline(&[&signer], json!({}));
    for (claims, why) in [
        (with("exp", json!(0)), "the token has expired"),
        (with("exp", json!(-1)), "the token has expired"),
        (with("exp", json!(unix() - 61)), "the token has expired"),
        (with("exp", json!("never")), "a date in the token is not a number"),
        (with("exp", json!(null)), "a date in the token is not a number"),
        (without("exp"), "the token never expires"),
        (with("nbf", json!(unix() + 120)), "the token is not valid yet"),
        (with("nbf", json!("x")), "a date in the token is not a number"),
        (with("iat", json!([])), "a date in the token is not a number"),
        (with("iss", json!("https://id.test")), "the issuer is not accepted"),
        (with("iss", json!(["https://id.test/"])), "the issuer is not accepted"),
        (without("iss"), "the issuer is not accepted"),
        (with("aud", json!("Shop")), "the audience is not accepted"),
        (with("aud", json!(["a", "b"])), "the audience is not accepted"),
        (with("aud", json!(["shop", 1])), "the audience is not accepted"),
        (with("aud", json!([])), "the audience is not accepted"),
        (without("aud"), "the audience is not accepted"),
        (with("sub", json!(7)), "the subject is not text"),
    ] {
        assert_eq!(refusal(&jwt, &signer.token(&claims)), why, "{claims}");
    }
    for claims in [
        with("exp", json!(unix() - 30)),
        with("nbf", json!(unix() + 30)),
        with("aud", json!(["x", "other"])),
        without("sub"),
        with("exp", json!(9_999_999_999_999u64)),
        with("exp", json!(1e300)),
    ] {
        let token = signer.token(&claims);
        assert!(matches!(now_or_never(&jwt, &mut bearer(&token)), AuthVerdict::Accepted), "{claims}");
    }
}

#[test]
fn bad_forms_are_refused() {
    let (signer, other) = (Signer::new("k1"), Signer::new("k1"));
    let jwt = inline(&[&signer], json!({}));
    let claims = good().to_string();
    let header = |json: Json| signer.sign(&json, &claims);
    let raw = |header: &str| {
        let rest = URL_SAFE_NO_PAD.encode(&claims);
        format!("{}.{rest}.AAAA", URL_SAFE_NO_PAD.encode(header))
    };
    let token = signer.token(&good());
    let (signed, signature) = token.rsplit_once('.').expect("three parts");
    let padded = URL_SAFE.encode(URL_SAFE_NO_PAD.decode(signature).expect("base64"));
    for (token, why) in [
        (header(json!({"alg": "none"})), "the algorithm is not accepted"),
        (header(json!({"alg": "None"})), "the algorithm is not accepted"),
        (format!("{signed}."), "the signature is wrong"),
        (header(json!({"alg": "HS256", "kid": "k1"})), "the algorithm is not accepted"),
        (header(json!({"alg": "RS256", "kid": "k1"})), "the algorithm does not fit the key"),
        (header(json!({"alg": "ES384", "kid": "k1"})), "the algorithm does not fit the key"),
        (header(json!({"alg": "ES256", "kid": "k1", "crit": ["exp"], "exp": 1})), "the token has critical extensions"),
        (header(json!({"alg": "ES256", "kid": "k1", "crit": []})), "the token has critical extensions"),
        (header(json!({"alg": "ES256", "kid": "k9"})), "the key is not known"),
        (raw(r#"{"alg":"none","alg":"ES256"}"#), "the token is malformed"),
        (raw(r#"{"alg":"ES256","kid":7}"#), "the token is malformed"),
        (raw("[]"), "the token is malformed"),
        (other.token(&good()), "the signature is wrong"),
        (format!("{signed}.{padded}"), "the token is malformed"),
        (format!("{token}."), "encrypted tokens are not accepted"),
        (format!("a.{token}"), "encrypted tokens are not accepted"),
        ("a.b".to_owned(), "the token is malformed"),
        ("x".to_owned(), "the token is malformed"),
        (signer.sign(&json!({"alg": "ES256", "kid": "k1"}), "[]"), "the token is malformed"),
        (signer.sign(&json!({"alg": "ES256", "kid": "k1"}), "not json"), "the token is malformed"),
        ("a".repeat(MAX_TOKEN + 1), "the token is too long"),
    ] {
        let shown = &token[..token.len().min(80)];
        assert_eq!(refusal(&jwt, &token), why, "{shown}");
    }
    let typed = inline(&[&signer], json!({"requiredTyp": "at+jwt"}));
    assert_eq!(refusal(&typed, &token), "the token is of another type");
    let typ = header(json!({"alg": "ES256", "kid": "k1", "typ": "application/AT+jwt"}));
    assert!(matches!(now_or_never(&typed, &mut bearer(&typ)), AuthVerdict::Accepted));
}

/// The classic: a public RSA key used as the secret of an HMAC.
#[test]
fn a_public_key_is_never_a_secret() {
    let public = json!({"kty": "RSA", "kid": "k1", "n": URL_SAFE_NO_PAD.encode([0xc1; 256]), "e": "AQAB"});
    let text = json!({"keys": [public]}).to_string();
    let set = KeySet::parse(text.as_bytes(), &[Algorithm::RS256, Algorithm::HS256], 1).expect("a key");
    assert_eq!(set.verify(Some("k1"), Algorithm::HS256, b"x", b"y"), Signature::WrongAlgorithm);
    let oct = json!({"kty": "oct", "kid": "k1", "k": URL_SAFE_NO_PAD.encode([7; 32])});
    let set = KeySet::parse(json!({"keys": [oct]}).to_string().as_bytes(), &[Algorithm::RS256, Algorithm::HS256], 1);
    assert_eq!(set.expect("a key").verify(Some("k1"), Algorithm::RS256, b"x", b"y"), Signature::WrongAlgorithm);
}

#[test]
fn key_sets_are_read_with_care() {
    let signer = Signer::new("k1");
    let parse = |keys: Vec<Json>| KeySet::parse(json!({"keys": keys}).to_string().as_bytes(), &[Algorithm::ES256], 1);
    let changed = |name: &str, value: Json| {
        let mut jwk = signer.jwk();
        jwk[name] = value;
        jwk
    };
    for bad in [
        changed("use", json!("enc")),
        changed("key_ops", json!(["sign"])),
        changed("alg", json!("ES384")),
        changed("alg", json!("none")),
        changed("crv", json!("P-384")),
        changed("kty", json!("oct")),
        changed("x", json!("AAAA")),
        changed("x", json!(1)),
    ] {
        assert!(parse(vec![bad.clone()]).is_err(), "{bad}");
        assert!(parse(vec![bad, signer.jwk()]).is_ok(), "others still count");
    }
    assert!(parse(vec![]).is_err());
    assert!(parse((0..33).map(|_| signer.jwk()).collect()).is_err(), "too many keys");
    assert!(KeySet::parse(&vec![b' '; keys::MAX_SET + 1], &[Algorithm::ES256], 1).is_err(), "too large");
    let short = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xc1; 128]), "e": "AQAB"});
    assert!(
        KeySet::parse(json!({"keys": [short]}).to_string().as_bytes(), &[Algorithm::RS256], 1).is_err(),
        "1024 bits"
    );
}

#[test]
fn tokens_are_found_where_the_config_says() {
    let signer = Signer::new("k1");
    let token = signer.token(&good());
    let jwt = inline(&[&signer], json!({}));
    let mut rq = request("GET", "/");
    assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Absent));
    rq.headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic YTpi"));
    assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Absent), "another scheme");
    rq.headers.append(AUTHORIZATION, format!("Bearer {token}").parse().expect("a value"));
    assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Refused(e) if e.code == "invalid_request"));
    let mut rq = request("GET", "/");
    rq.headers.insert(AUTHORIZATION, format!("bEARER  {token}").parse().expect("a value"));
    assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Accepted), "schemes have no case");

    let jwt = inline(&[&signer], json!({"from": {"header": "x-token", "cookie": "sid", "query": "t"}}));
    let mut rq = bearer(&token);
    assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Absent), "only where the config says");
    rq.headers.insert("x-token", token.parse().expect("a value"));
    assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Accepted));
    assert!(!rq.headers.contains_key("x-token"));
    let mut rq = request("GET", &format!("/a?x=1&t={token}"));
    assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Accepted));
    assert_eq!(rq.target, "/a?x=1");
    let mut rq = request("GET", "/a");
    rq.headers.insert(COOKIE, format!("a=b; sid={token}").parse().expect("a value"));
    assert!(matches!(now_or_never(&jwt, &mut rq), AuthVerdict::Accepted));
    assert_eq!(rq.headers[COOKIE], "a=b");
}

#[test]
fn bad_sections_name_their_cure() {
    let keys = json!({"inline": set(&[&Signer::new("k")])});
    for (bad, says) in [
        (json!({}), "`issuer` is missing"),
        (json!({"issuer": "i", "jwks": keys}), "`audiences` is missing"),
        (json!({"issuer": "i", "audiences": [], "jwks": keys}), "no audience"),
        (config(json!({}), json!({})), "exactly one of"),
        (config(json!({"url": "https://a", "file": "b"}), json!({})), "exactly one of"),
        (config(json!({"discovery": true, "file": "b"}), json!({})), "exactly one of"),
        (config(json!({"discovery": true}), json!({"algorithms": ["HS256"]})), "shared secrets"),
        (json!({"issuer": "joe", "audiences": ["a"]}), "needs an issuer that is an `https` URL"),
        (json!({"issuer": "https://id.test/?a", "audiences": ["a"]}), "a query or a fragment"),
        (config(json!({"url": "http://id.example.com/jwks"}), json!({})), "not encrypted"),
        (config(json!({"url": "ftp://id.example.com/jwks"}), json!({})), "neither https nor http"),
        (config(json!({"url": "https://a:b@c/"}), json!({})), "credentials"),
        (config(json!({"url": "https://a", "refresh": "1ms"}), json!({})), "too often"),
        (config(json!({"url": "https://a", "ca": "missing.pem"}), json!({})), "missing.pem"),
        (config(json!({"file": "missing.json"}), json!({})), "missing.json"),
        (config(json!({"inline": "{"}), json!({})), "not a JWK set"),
        (config(json!({"inline": {"keys": []}}), json!({})), "no usable key"),
        (config(json!({"url": "https://a"}), json!({"algorithms": ["HS256"]})), "shared secrets"),
        (config(keys.clone(), json!({"algorithms": ["RS255"]})), "did you mean `RS256`"),
        (config(keys.clone(), json!({"algorithms": ["none"]})), "unknown value `none`"),
        (config(keys.clone(), json!({"leeway": "1h"})), "too long"),
        (config(keys.clone(), json!({"from": {}})), "names no place"),
        (config(keys.clone(), json!({"claimsToHeaders": {"sub": "a b"}})), "not a header name"),
        (config(keys.clone(), json!({"claimsToHeaders": {"sub": "Cookie"}})), "cannot become"),
        (
            config(keys.clone(), json!({"from": {"header": "x-t"}, "claimsToHeaders": {"sub": "x-t"}})),
            "carries the token",
        ),
        (config(keys, json!({"audience": ["x"]})), "did you mean `audiences`"),
    ] {
        let e = made(bad.clone(), &Directory::default()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

/// An issuer's key server on a free port. What it serves can change; `None` is status 500.
struct Issuer {
    url: String,
    serves: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start(serves: Option<String>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/jwks.json", listener.local_addr().expect("an address"));
        let (serves, asked) = (Arc::new(Mutex::new(serves)), Arc::new(AtomicUsize::new(0)));
        let issuer = Self { url, serves: serves.clone(), asked: asked.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (serves, asked) = (serves.clone(), asked.clone());
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(
                    TokioIo::new(stream),
                    service_fn(move |_| {
                        asked.fetch_add(1, SeqCst);
                        let body = serves.lock().expect("a lock").clone();
                        let status = if body.is_some() { 200 } else { 500 };
                        let reply = http::Response::builder().status(status);
                        let reply = reply.body(Full::new(bytes::Bytes::from(body.unwrap_or_default())));
                        async move { Ok::<_, Infallible>(reply.expect("a response")) }
                    }),
                ));
            }
        });
        issuer
    }
    fn serve(&self, body: Option<String>) {
        *self.serves.lock().expect("a lock") = body;
    }
    fn config(&self) -> Json {
        config(json!({"url": self.url, "refresh": "60s"}), json!({}))
    }
}

/// As [`made`], with the background task running.
fn living(json: Json, estate: &mut Estate) -> Jwt {
    let directory = Directory::default();
    let jwt = jwt(&section(json), &mut estate.build("identities.corp", &directory)).unwrap_or_else(|e| panic!("{e}"));
    estate.publish().into_iter().for_each(|task| {
        tokio::spawn(task);
    });
    jwt
}

#[tokio::test]
async fn the_first_requests_wait_for_the_first_fetch() {
    let signer = Signer::new("k1");
    let issuer = Issuer::start(Some(set(&[&signer]))).await;
    let mut estate = Estate::default();
    let jwt = living(issuer.config(), &mut estate);
    let token = signer.token(&good());
    assert!(matches!(verdict(&jwt, &mut bearer(&token)).await, AuthVerdict::Accepted));
    // The same section again: the same keys, no second task, no second fetch.
    let again = living(issuer.config(), &mut estate);
    assert!(Arc::ptr_eq(&jwt.store, &again.store) && Arc::ptr_eq(&jwt.memory, &again.memory));
    assert!(matches!(now_or_never(&again, &mut bearer(&token)), AuthVerdict::Accepted));
    assert_eq!(issuer.asked.load(SeqCst), 1);
}

/// OpenID Connect Discovery section 4: the document beside the issuer says where the keys are.
#[tokio::test]
async fn keys_are_discovered() {
    let signer = Signer::new("k1");
    let keys = Issuer::start(Some(set(&[&signer]))).await;
    let site = Issuer::start(None).await;
    // The issuer is the server's own address; whatever path is asked for, it serves the document.
    let issuer = site.url.trim_end_matches("/jwks.json").to_owned();
    let document = |issuer: &str| Some(json!({"issuer": issuer, "jwks_uri": keys.url, "more": [1]}).to_string());
    site.serve(document("https://evil.test/"));
    let section = json!({"issuer": issuer, "audiences": ["shop"]});
    let mut estate = Estate::default();
    let jwt = living(section.clone(), &mut estate);
    let mut claims = good();
    claims["iss"] = json!(issuer);
    let token = signer.token(&claims);
    assert!(matches!(verdict(&jwt, &mut bearer(&token)).await, AuthVerdict::Unavailable(_)), "another's document");
    assert_eq!(keys.asked.load(SeqCst), 0);
    site.serve(document(&issuer));
    let accepted = async {
        while !matches!(verdict(&jwt, &mut bearer(&token)).await, AuthVerdict::Accepted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), accepted).await.expect("tried again by itself");
    let again = living(section, &mut estate);
    assert!(Arc::ptr_eq(&jwt.store, &again.store));
}

#[tokio::test]
async fn an_issuer_that_is_down_at_start_may_come_later() {
    let signer = Signer::new("k1");
    let issuer = Issuer::start(None).await;
    let jwt = living(issuer.config(), &mut Estate::default());
    let token = signer.token(&good());
    assert!(matches!(verdict(&jwt, &mut bearer(&token)).await, AuthVerdict::Unavailable(_)));
    assert!(matches!(now_or_never(&jwt, &mut bearer(&token)), AuthVerdict::Unavailable(_)), "told at once now");
    assert_eq!(refusal(&jwt, &signer.token(&with("iss", json!("https://other.test/")))), "the issuer is not accepted");
    issuer.serve(Some(set(&[&signer])));
    let accepted = async {
        while !matches!(verdict(&jwt, &mut bearer(&token)).await, AuthVerdict::Accepted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), accepted).await.expect("tried again by itself");
}

#[tokio::test]
async fn a_new_key_is_fetched_once_for_all_who_wait_and_old_ones_outlive_a_failure() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let issuer = Issuer::start(Some(set(&[&old]))).await;
    let mut jwt = living(config(json!({"inline": set(&[&old])}), json!({})), &mut Estate::default());
    let store = Arc::new(Store::new(vec![Algorithm::ES256], true).in_a_hurry());
    let registry = crate::contract::metrics::Registry::default();
    let count = |result| registry.counter("onehop_test_total", "", &[("result", result)]);
    let counters = Counters {
        refreshed: count("ok"),
        failed: count("failed"),
        keys_since: registry.gauge("onehop_test", "", &[]),
    };
    let remote = Remote::new(&issuer.url, None, false).expect("a URL");
    let source = Source::Remote { remote, refresh: Duration::from_secs(60) };
    let task = tokio::spawn(keep_fresh(Arc::downgrade(&store), source, "corp".into(), counters));
    jwt.store = store;
    assert!(matches!(verdict(&jwt, &mut bearer(&old.token(&good()))).await, AuthVerdict::Accepted));
    assert_eq!(issuer.asked.load(SeqCst), 1);

    issuer.serve(Some(set(&[&old, &new])));
    let tokens: Vec<String> = (0..20).map(|_| new.token(&good())).collect();
    let waiting = tokens.iter().map(|token| async {
        let mut rq = bearer(token);
        verdict(&jwt, &mut rq).await
    });
    for verdict in futures_util::future::join_all(waiting).await {
        assert!(matches!(verdict, AuthVerdict::Accepted), "{verdict:?}");
    }
    assert_eq!(issuer.asked.load(SeqCst), 2, "one fetch for twenty");

    issuer.serve(None);
    let unknown = Signer::new("unknown");
    assert!(matches!(verdict(&jwt, &mut bearer(&unknown.token(&good()))).await, AuthVerdict::Refused(_)));
    assert!(issuer.asked.load(SeqCst) >= 3);
    assert!(
        matches!(now_or_never(&jwt, &mut bearer(&old.token(&good()))), AuthVerdict::Accepted),
        "last good keys stay"
    );
    issuer.serve(Some("garbage".into()));
    assert!(matches!(verdict(&jwt, &mut bearer(&unknown.token(&good()))).await, AuthVerdict::Refused(_)));
    assert!(matches!(now_or_never(&jwt, &mut bearer(&new.token(&good()))), AuthVerdict::Accepted));

    drop(jwt);
    tokio::time::timeout(Duration::from_secs(10), task).await.expect("ends with its store").expect("no panic");
}

#[tokio::test]
async fn keys_that_nobody_confirms_are_given_up_in_time() {
    let signer = Signer::new("k1");
    let issuer = Issuer::start(Some(set(&[&signer]))).await;
    let mut config = issuer.config();
    config["jwks"]["maxStale"] = json!("2s");
    config["jwks"]["refresh"] = json!("1s");
    let jwt = living(config, &mut Estate::default());
    let token = signer.token(&good());
    let verdict = async || verdict(&jwt, &mut bearer(&token)).await;
    let until = async |wanted: fn(&AuthVerdict) -> bool| {
        let wait = async {
            while !wanted(&verdict().await) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(15), wait).await.expect("in time");
    };
    assert!(matches!(verdict().await, AuthVerdict::Accepted));
    issuer.serve(None);
    let begun = now();
    until(|v| matches!(v, AuthVerdict::Unavailable(_))).await;
    // Confirmed at most a refresh before the issuer went away.
    assert!(now().since(begun) > Duration::from_millis(800), "an outage is bridged: {:?}", now().since(begun));
    assert_eq!(jwt.store.generation(), 0, "a verdict in the cache does not count either");
    issuer.serve(Some(set(&[&signer])));
    until(|v| matches!(v, AuthVerdict::Accepted)).await;
}

#[tokio::test]
async fn strangers_cannot_make_us_ask_again_and_again() {
    let signer = Signer::new("k1");
    let issuer = Issuer::start(Some(set(&[&signer]))).await;
    let jwt = living(issuer.config(), &mut Estate::default());
    assert!(matches!(verdict(&jwt, &mut bearer(&signer.token(&good()))).await, AuthVerdict::Accepted));
    let stranger = Signer::new("invented");
    for _ in 0..50 {
        assert!(matches!(now_or_never(&jwt, &mut bearer(&stranger.token(&good()))), AuthVerdict::Refused(_)));
    }
    assert_eq!(issuer.asked.load(SeqCst), 1);
}

#[tokio::test]
async fn a_file_is_read_at_once() {
    let signer = Signer::new("k1");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, set(&[&signer])).expect("written");
    let jwt = living(config(json!({"file": path}), json!({})), &mut Estate::default());
    assert!(matches!(now_or_never(&jwt, &mut bearer(&signer.token(&good()))), AuthVerdict::Accepted));
}

#[tokio::test]
async fn a_changed_file_is_read_again_and_a_broken_one_is_not_used() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("jwks.json");
    let write = |text: String| std::fs::write(&path, text).expect("written");
    let store = Store::new(vec![Algorithm::ES256], true);
    let mut seen = None;
    write(set(&[&old]));
    assert_eq!(source::reread(&store, &path, &mut seen).await, Ok(true));
    assert_eq!(source::reread(&store, &path, &mut seen).await, Ok(false), "nothing new");
    let before = store.generation();
    write("{ half".to_owned());
    assert!(source::reread(&store, &path, &mut seen).await.is_err());
    std::fs::remove_file(&path).expect("removed");
    assert!(source::reread(&store, &path, &mut seen).await.is_err());
    assert_eq!(store.generation(), before, "the last good keys stay");
    write(set(&[&old, &new]));
    assert_eq!(source::reread(&store, &path, &mut seen).await, Ok(true));
    assert!(store.generation() > before);
}

#[tokio::test]
async fn keys_come_over_tls_from_a_server_that_is_trusted() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let dir = tempfile::tempdir().expect("a folder");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, certified.cert.pem()).expect("written");
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .expect("a server config");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://localhost:{}/jwks.json", listener.local_addr().expect("an address").port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us ends here.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|rq: http::Request<hyper::body::Incoming>| async move {
                    let found = rq.uri() == "/jwks.json" && rq.headers().contains_key(http::header::HOST);
                    let body = if found { "keys" } else { "what?" };
                    Ok::<_, Infallible>(http::Response::new(Full::new(bytes::Bytes::from_static(body.as_bytes()))))
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let get = |ca: Option<std::path::PathBuf>| {
        let remote = Remote::new(&url, ca.as_deref(), false).expect("a URL");
        async move { remote.get("*/*", Bounds::default()).await }
    };
    assert_eq!(get(Some(ca)).await.as_deref(), Ok(&b"keys"[..]));
    let error = get(None).await.expect_err("nobody vouches for this server");
    assert!(error.starts_with("TLS: "), "{error}");
}

#[tokio::test]
async fn a_document_that_is_too_large_is_refused() {
    let issuer = Issuer::start(Some("x".repeat(keys::MAX_SET + 1))).await;
    let error = Remote::new(&issuer.url, None, false)
        .expect("a URL")
        .get("*/*", Bounds::default())
        .await
        .expect_err("too large");
    assert!(error.starts_with("body: "), "{error}");
}
