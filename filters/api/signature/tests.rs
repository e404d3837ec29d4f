use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{self as aws, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method};
use http_body::Frame;
use http_body_util::StreamBody;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::keys::Algorithm;
use super::*;
use crate::api::fixture::{Estate, holding, request, section};
use crate::contract::Directory;

const BODY: &str = r#"{"hello": "world"}"#;
const DIGEST: &str =
    "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
const SHARED: &str = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";
const ED25519: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\n\
                       -----END PUBLIC KEY-----\n";
const P256: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf\n\
                    w0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==\n-----END PUBLIC KEY-----\n";
const RSA: &str = "r4tmm3r20Wd_PbqvP1s2-QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct-Lh1GH45x28Rw3Ry53mm-oAXjyQ86OnDkZ5N8lYbggD4O3w\
                   6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHqgDsznjPFmTOtCEcN2Z1FpWgchwuYLPL-Wokqltd11nqqzi-bJ9cvSKADYdUAAN5WUtzdpiy6\
                   LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4aOT9v6d-nb4bnNkQVklLQ3fVAvJm-xdDOp9LCNCN48V2pnDOkFV6-U9\
                   nV5oyc6XI2w";

/// The request of RFC 9421 appendix B.2.
fn rfc_headers(input: &str, signature: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("content-type", "application/json"),
        ("content-digest", DIGEST),
        ("signature-input", input),
        ("signature", signature),
    ] {
        headers.insert(name, HeaderValue::from_str(value).expect("a value"));
    }
    headers
}

fn message(headers: &HeaderMap) -> Message<'_> {
    const POST: &Method = &Method::POST;
    Message {
        method: POST,
        https: true,
        authority: "example.com",
        path: "/foo",
        query: Some("param=Value&Pet=dog"),
        headers,
        length: Some(18),
    }
}

fn rfc_keys() -> BTreeMap<String, Key> {
    let held = holding(
        KEYS.name,
        json!({"rfc": [
            {"id": "test-shared-secret", "algorithm": "hmac-sha256", "secret": format!("base64:{SHARED}")},
            {"id": "test-key-ed25519", "algorithm": "ed25519", "publicKey": ED25519},
            {"id": "test-key-ecc-p256", "algorithm": "ecdsa-p256-sha256", "publicKey": P256},
        ]}),
    );
    let (mut keys, errors) = keys::read(held.held(KEYS.name), std::path::Path::new("/"));
    assert_eq!(errors, []);
    let n = URL_SAFE_NO_PAD.decode(RSA).expect("base64");
    let pss = PublicKeyComponents { n, e: vec![1, 0, 1] }
        .to_parsed_public_key(&aws::RSA_PSS_2048_8192_SHA512)
        .expect("a key");
    keys.insert("test-key-rsa-pss".into(), Key::public(Algorithm::RsaPssSha512, pss));
    keys
}

/// RFC 9421 appendices B.2.1 to B.2.3, B.2.5 and B.2.6.
#[test]
fn the_rfcs_requests_verify() {
    let keys = rfc_keys();
    let (date, query) = ("\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n", "\"@query\": ?param=Value&Pet=dog\n");
    let digest = format!("\"content-digest\": {DIGEST}\n");
    for (section, input, base, signature) in [
        (
            "B.2.1",
            r#"();created=1618884473;keyid="test-key-rsa-pss";nonce="b3k2pp5k7z-50gnwp.yemd""#,
            String::new(),
            "d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf8Udx7zFZsckzXaJMkA7ChG5\
             2eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJzsPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVro\
             gUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssin\
             Q98Xw9Q==",
        ),
        (
            "B.2.2",
            r#"("@authority" "content-digest" "@query-param";name="Pet");created=1618884473;keyid="test-key-rsa-pss";tag="header-example""#,
            format!("\"@authority\": example.com\n{digest}\"@query-param\";name=\"Pet\": dog\n"),
            "LjbtqUbfmvjj5C5kr1Ugj4PmLYvx9wVjZvD9GsTT4F7GrcQEdJzgI9qHxICagShLRiLMlAJjtq6N4CDfKtjvuJyE5qH7KT8UCMkSowOB4+ECxCmT8\
             rtAmj/0PIXxi0A0nxKyB09RNrCQibbUjsLS/2YyFYXEu4TRJQzRw1rLEuEfY17SARYhpTlaqwZVtR8NV7+4UKkjqpcAoFqWFQh62s7Cl+H2fjBS\
             pqfZUJcsIk4N6wiKYd4je2U/lankenQ99PZfB4jY3I5rSV2DSBVkSFsURIjYErOs0tFTQosMTAoxk//0RoKUqiYY8Bh0aaUEb0rQl3/XaVe4bXT\
             ugEjHSw==",
        ),
        (
            "B.2.3",
            r#"("date" "@method" "@path" "@query" "@authority" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-rsa-pss""#,
            format!(
                "{date}\"@method\": POST\n\"@path\": /foo\n{query}\"@authority\": example.com\n\
                 \"content-type\": application/json\n{digest}\"content-length\": 18\n"
            ),
            "bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU5p2voTp768ZrCUb38K0fUx\
             N0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA\
             1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZK\
             EgM4cUA==",
        ),
        (
            "B.2.5",
            r#"("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#,
            format!("{date}\"@authority\": example.com\n\"content-type\": application/json\n"),
            "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=",
        ),
        (
            "B.2.6",
            r#"("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#,
            format!(
                "{date}\"@method\": POST\n\"@path\": /foo\n\"@authority\": example.com\n\
                 \"content-type\": application/json\n\"content-length\": 18\n"
            ),
            "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==",
        ),
    ] {
        let headers = rfc_headers(&format!("sig={input}"), &format!("sig=:{signature}:"));
        let claim = claims(&headers).expect(section).remove(0);
        let expected = format!("{base}\"@signature-params\": {input}");
        assert_eq!(claim.base(&message(&headers)).as_deref(), Ok(expected.as_str()), "{section}");
        let key = &keys[&claim.keyid];
        assert!(key.verify(expected.as_bytes(), &claim.signature), "{section}");
        assert!(!key.verify(expected.replacen('1', "2", 1).as_bytes(), &claim.signature), "{section}");
        assert_eq!(claim.created, Some(1_618_884_473));
    }
    assert_eq!(digest::judge(DIGEST, BODY.as_bytes()), Judgement::Fits);
}

/// RFC 9421 appendix B.2.4 signs a response: its base and signature with the key.
#[test]
fn the_rfcs_p256_signature_verifies() {
    let base = "\"@status\": 200\n\"content-type\": application/json\n\"content-digest\": sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1X\
                dEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:\n\"content-length\": 23\n\
                \"@signature-params\": (\"@status\" \"content-type\" \"content-digest\" \"content-length\");created=1618884473;\
                keyid=\"test-key-ecc-p256\"";
    let signature = "wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==";
    let signature = STANDARD.decode(signature).expect("base64");
    assert!(rfc_keys()["test-key-ecc-p256"].verify(base.as_bytes(), &signature));
}

fn unix() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("small")
}

const SECRET: &str = "a shared secret of thirty-two bytes or more";

fn directory() -> Directory {
    holding(
        KEYS.name,
        json!({
            "acme": [{"id": "k1", "algorithm": "hmac-sha256", "secret": SECRET}],
            "other": [{"id": "k2", "algorithm": "hmac-sha256", "secret": "base64:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}],
        }),
    )
}

fn made(json: Json, directory: &Directory, estate: &mut Estate) -> Result<Signature, ConfigError> {
    signature(&section(json), &mut estate.build("identities.partners", directory))
}

fn with(json: Json) -> Signature {
    made(json, &directory(), &mut Estate::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Signs a request as it stands, the way a client would.
fn sign(rq: &mut RequestCx, label: &str, covered: &str, parameters: &str) {
    let input = format!("({covered}){parameters}");
    let mut lone = rq.headers.clone();
    lone.insert("signature-input", format!("x={input}").parse().expect("a value"));
    lone.insert("signature", "x=::".parse().expect("a value"));
    let claim = claims(&lone).expect("well-formed").remove(0);
    let message = Message {
        method: &rq.method,
        https: rq.https,
        authority: rq.authority.as_str(),
        path: rq.target.path(),
        query: rq.target.query(),
        headers: &rq.headers,
        length: rq.body.size_hint().exact(),
    };
    let base = claim.base(&message).expect("a base");
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), base.as_bytes());
    rq.headers.append("signature-input", format!("{label}={input}").parse().expect("a value"));
    rq.headers.append("signature", format!("{label}=:{}:", STANDARD.encode(signature)).parse().expect("a value"));
}

const ALL: &str = r#""@method" "@authority" "@path" "@query""#;

fn now_by(key: &str) -> String {
    format!(";created={};keyid=\"{key}\"", unix())
}

fn signed() -> RequestCx {
    let mut rq = request("GET", "/v1/orders?a=1");
    sign(&mut rq, "sig1", ALL, &now_by("k1"));
    rq
}

fn at_once(identity: &Signature, rq: &mut RequestCx) -> AuthVerdict {
    match identity.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(_) => panic!("decided without waiting"),
    }
}

async fn verdict(identity: &Signature, rq: &mut RequestCx) -> AuthVerdict {
    match identity.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(later) => later.await,
    }
}

fn refusal(identity: &Signature, rq: &mut RequestCx) -> &'static str {
    match at_once(identity, rq) {
        AuthVerdict::Refused(error) => error.description,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_signed_request_is_its_consumers_and_a_changed_one_is_nobodys() {
    let identity = with(json!({}));
    let mut rq = signed();
    assert!(matches!(at_once(&identity, &mut rq), AuthVerdict::Accepted));
    assert_eq!(rq.consumer.as_ref().map(|c| &*c.name), Some("acme"));
    assert!(matches!(at_once(&identity, &mut request("GET", "/")), AuthVerdict::Absent));
    let changes: [(&str, fn(&mut RequestCx)); 5] = [
        ("method", |rq| rq.method = Method::DELETE),
        ("path", |rq| rq.target = "/v1/order?a=1".parse().expect("a target")),
        ("query", |rq| rq.target = "/v1/orders?a=2".parse().expect("a target")),
        ("host", |rq| rq.authority = "evil.example.com".parse().expect("an authority")),
        ("signature", |rq| drop(rq.headers.insert("signature", HeaderValue::from_static("sig1=:AAAA:")))),
    ];
    for (what, change) in changes {
        let mut rq = signed();
        change(&mut rq);
        assert_eq!(refusal(&identity, &mut rq), "the signature is wrong", "{what}");
    }
    // A body that nobody signed.
    let mut rq = signed();
    rq.body = Body::full("x");
    assert_eq!(refusal(&identity, &mut rq), "the signature does not cover all that it must");
    assert_eq!(
        identity.challenge(None),
        "Signature realm=\"partners\", components=\"@method @authority @path @query content-digest\""
    );
}

#[test]
fn what_must_be_covered_is() {
    let identity = with(json!({}));
    for (covered, target, enough) in [
        (r#""@method" "@authority" "@path""#, "/a", true),
        (r#""@method" "@authority" "@path""#, "/a?b", false),
        (r#""@method" "@target-uri""#, "/a?b=1", true),
        (r#""@method" "@authority" "@request-target""#, "/a?b=1", true),
        (r#""@method" "@authority" "@path" "@query-param";name="b""#, "/a?b=1", false),
        (r#""@method" "@authority""#, "/a", false),
        (r#""@path" "@authority""#, "/a", false),
    ] {
        let mut rq = request("GET", target);
        sign(&mut rq, "s", covered, &now_by("k1"));
        let accepted = matches!(at_once(&identity, &mut rq), AuthVerdict::Accepted);
        assert_eq!(accepted, enough, "{covered} {target}");
    }
    let fields = with(json!({"required": ["@method", "X-Tenant"]}));
    let mut rq = request("GET", "/");
    rq.headers.insert("x-tenant", HeaderValue::from_static("t1"));
    sign(&mut rq, "s", r#""@method" "x-tenant""#, &now_by("k1"));
    assert!(matches!(at_once(&fields, &mut rq), AuthVerdict::Accepted));
    rq.headers.append("x-tenant", HeaderValue::from_static("t2"));
    assert_eq!(refusal(&fields, &mut rq), "the signature is wrong");
    // A member of a field is not the field.
    let mut rq = request("GET", "/");
    rq.headers.insert("x-tenant", HeaderValue::from_static("a=1, b=2"));
    sign(&mut rq, "s", r#""@method" "x-tenant";key="a""#, &now_by("k1"));
    assert_eq!(refusal(&fields, &mut rq), "the signature does not cover all that it must");
}

#[test]
fn times_keys_and_algorithms_are_checked() {
    let identity = with(json!({"maxAge": "60s", "skew": "10s"}));
    let now = unix();
    for (parameters, why) in [
        (format!(";created={now};keyid=\"k1\";alg=\"hmac-sha256\""), None),
        (format!(";created={};keyid=\"k1\"", now - 50), None),
        (format!(";created={};keyid=\"k1\"", now + 5), None),
        (format!(";created={now};expires={};keyid=\"k1\"", now + 20), None),
        (format!(";created={};keyid=\"k1\"", now - 70), Some("the signature is too old")),
        (format!(";created={};keyid=\"k1\"", now + 30), Some("the signature is from the future")),
        (format!(";created={now};expires={};keyid=\"k1\"", now - 1), Some("the signature has expired")),
        (";keyid=\"k1\"".to_owned(), Some("the signature does not say when it was made")),
        (format!(";created={now};keyid=\"k1\";alg=\"ed25519\""), Some("the algorithm does not fit the key")),
        (format!(";created={now};keyid=\"k2\""), Some("the signature is wrong")),
        (format!(";created={now};keyid=\"k3\""), Some("the key is not known")),
        (";created=999999999999999;keyid=\"k1\"".to_owned(), Some("the signature is from the future")),
        (";created=-999999999999999;keyid=\"k1\"".to_owned(), Some("the signature is too old")),
    ] {
        let mut rq = request("GET", "/a");
        sign(&mut rq, "s", ALL, &parameters);
        match (at_once(&identity, &mut rq), why) {
            (AuthVerdict::Accepted, None) => {}
            (AuthVerdict::Refused(e), Some(why)) => assert_eq!(e.description, why, "{parameters}"),
            (other, _) => panic!("{parameters}: {other:?}"),
        }
    }
}

#[test]
fn a_nonce_is_good_once_also_after_a_reload() {
    let (directory, mut estate) = (directory(), Estate::default());
    let config = json!({"nonceRequired": true});
    let identity = made(config.clone(), &directory, &mut estate).unwrap_or_else(|e| panic!("{e}"));
    let with_nonce = |nonce: &str| {
        let mut rq = request("GET", "/a");
        sign(&mut rq, "s", ALL, &format!("{};nonce=\"{nonce}\"", now_by("k1")));
        rq
    };
    let mut asked = with_nonce("n1");
    asked.dry_run = true;
    assert!(matches!(at_once(&identity, &mut asked), AuthVerdict::Accepted));
    assert!(matches!(at_once(&identity, &mut with_nonce("n1")), AuthVerdict::Accepted), "a question uses nothing up");
    assert_eq!(refusal(&identity, &mut with_nonce("n1")), "the nonce was used before");
    assert!(matches!(at_once(&identity, &mut with_nonce("n2")), AuthVerdict::Accepted));
    let again = made(config, &directory, &mut estate).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(refusal(&again, &mut with_nonce("n2")), "the nonce was used before");
    assert_eq!(refusal(&identity, &mut signed()), "the signature has no nonce");
    // A bad signature uses no nonce up.
    let mut bad = with_nonce("n3");
    bad.method = Method::PUT;
    assert_eq!(refusal(&identity, &mut bad), "the signature is wrong");
    assert!(matches!(at_once(&identity, &mut with_nonce("n3")), AuthVerdict::Accepted));
    assert_eq!((identity.replayed.value(), again.replayed.value()), (1, 1));
}

#[test]
fn of_several_signatures_ours_counts() {
    let tagged = with(json!({"tag": "gateway"}));
    let mut rq = request("GET", "/a");
    sign(&mut rq, "one", ALL, &now_by("k3"));
    assert!(matches!(at_once(&tagged, &mut rq), AuthVerdict::Absent), "somebody else's");
    sign(&mut rq, "two", ALL, &format!("{};tag=\"gateway\"", now_by("k1")));
    assert!(matches!(at_once(&tagged, &mut rq), AuthVerdict::Accepted));
    let any = with(json!({}));
    assert!(matches!(at_once(&any, &mut rq), AuthVerdict::Accepted), "an unknown key does no harm");
    for n in 0..4 {
        sign(&mut rq, &format!("more{n}"), ALL, &now_by("k1"));
    }
    assert_eq!(refusal(&any, &mut rq), "the request has too many signatures");
}

#[test]
fn malformed_fields_are_refused() {
    let identity = with(json!({}));
    for (input, signature) in [
        (Some("sig1=()"), None),
        (None, Some("sig1=:AAAA:")),
        (Some("sig1=1"), Some("sig1=:AAAA:")),
        (Some("sig1=();keyid=\"k1\""), Some("sig2=:AAAA:")),
        (Some("sig1=();keyid=\"k1\""), Some("sig1=\"x\"")),
        (Some("sig1=();keyid=k1"), Some("sig1=:AAAA:")),
        (Some("sig1=();created=\"x\";keyid=\"k1\""), Some("sig1=:AAAA:")),
        (Some("sig1=("), Some("sig1=:AAAA:")),
        (Some(""), Some("")),
    ] {
        let mut rq = request("GET", "/");
        for (name, value) in [("signature-input", input), ("signature", signature)] {
            if let Some(value) = value {
                rq.headers.insert(name, HeaderValue::from_str(value).expect("a value"));
            }
        }
        assert!(matches!(at_once(&identity, &mut rq), AuthVerdict::Refused(_)), "{input:?} {signature:?}");
    }
}

#[test]
fn components_have_one_value_or_none() {
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("x-list", "a"), ("x-list", " b "), ("x-dict", "a=1,  b=2;x, c=(1 2)"), ("priority", "u=1,  i")]
    {
        headers.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    let method = Method::GET;
    let message = Message {
        method: &method,
        https: false,
        authority: "example.com:80",
        path: "/a",
        query: Some("q=a+b&q2=%c3%a4&twice=1&twice=2&empty"),
        headers: &headers,
        length: None,
    };
    let base = |component: &str| {
        let mut lone = HeaderMap::new();
        lone.insert("signature-input", format!("s=({component});keyid=\"k\"").parse().expect("a value"));
        lone.insert("signature", HeaderValue::from_static("s=:AAAA:"));
        let base = claims(&lone).expect("well-formed").remove(0).base(&message)?;
        Ok(base.lines().next().unwrap_or_default().to_owned())
    };
    for (component, line) in [
        (r#""@authority""#, Ok(r#""@authority": example.com"#)),
        (r#""host""#, Ok(r#""host": example.com:80"#)),
        (r#""@scheme""#, Ok(r#""@scheme": http"#)),
        (r#""@request-target""#, Ok(r#""@request-target": /a?q=a+b&q2=%c3%a4&twice=1&twice=2&empty"#)),
        (r#""@query-param";name="q""#, Ok(r#""@query-param";name="q": a%20b"#)),
        (r#""@query-param";name="q2""#, Ok(r#""@query-param";name="q2": %C3%A4"#)),
        (r#""@query-param";name="empty""#, Ok(r#""@query-param";name="empty": "#)),
        (r#""@query-param";name="twice""#, Err("a covered query parameter stands twice")),
        (r#""@query-param";name="none""#, Err("a covered query parameter is not there")),
        (r#""@query-param""#, Err("`@query-param` names no parameter")),
        (r#""x-list""#, Ok(r#""x-list": a, b"#)),
        (r#""x-list";bs"#, Ok(r#""x-list";bs: :YQ==:, :Yg==:"#)),
        (r#""x-dict";key="b""#, Ok(r#""x-dict";key="b": 2;x"#)),
        (r#""x-dict";key="c""#, Ok(r#""x-dict";key="c": (1 2)"#)),
        (r#""x-dict";key="d""#, Err("a covered field is not there")),
        (r#""priority";sf"#, Ok(r#""priority";sf: u=1, i"#)),
        (r#""x-dict";sf"#, Err("a covered component is not known here")),
        (r#""x-list";tr"#, Err("a covered component is not known here")),
        (r#""@method";req"#, Err("a covered component is not known here")),
        (r#""@status""#, Err("a covered component is not known here")),
        (r#""X-List""#, Err("a covered component is malformed")),
        (r#""none""#, Err("a covered field is not there")),
        (r#""content-length""#, Err("a covered field is not there")),
        (r#""@path" "@path""#, Err("a component is covered twice")),
    ] {
        let found: Result<String, Wrong> = base(component);
        assert_eq!(found.as_deref().map_err(|e| *e), line, "{component}");
    }
}

/// What arrives in pieces, as from a connection.
fn streamed(chunks: &[&'static str]) -> Body {
    let frames: Vec<_> = chunks.iter().map(|c| Ok(Frame::data(Bytes::from_static(c.as_bytes())))).collect();
    Body::stream(StreamBody::new(stream::iter(frames)))
}

fn posted(body: Body) -> RequestCx {
    let mut rq = request("POST", "/v1/orders");
    rq.headers.insert(CONTENT_DIGEST, HeaderValue::from_static(DIGEST));
    rq.body = body;
    sign(&mut rq, "s", &format!("{ALL} \"content-digest\""), &now_by("k1"));
    rq
}

#[tokio::test]
async fn a_body_fits_its_digest_and_goes_on() {
    use http_body_util::BodyExt;
    let identity = with(json!({"bodyLimit": "1KiB"}));
    let mut rq = posted(streamed(&[r#"{"hello""#, r#": "world"}"#]));
    assert!(matches!(verdict(&identity, &mut rq).await, AuthVerdict::Accepted));
    let body = std::mem::take(&mut rq.body).collect().await.expect("whole").to_bytes();
    assert_eq!(body, BODY, "whoever comes later reads all of it");
    assert!(matches!(at_once(&identity, &mut posted(Body::full(BODY))), AuthVerdict::Accepted));

    let mut changed = posted(streamed(&[r#"{"hello": "World"}"#]));
    let refused = verdict(&identity, &mut changed).await;
    assert!(matches!(refused, AuthVerdict::Refused(e) if e.description == "the body does not fit its digest"));
    let mut large = posted(streamed(&[BODY; 100]));
    let refused = verdict(&identity, &mut large).await;
    assert!(matches!(refused, AuthVerdict::Refused(e) if e.description.contains("too large")));
    assert_eq!(refusal(&identity, &mut posted(Body::Empty)), "the body does not fit its digest");
    // A bad signature: the body is not read at all.
    let mut forged = posted(streamed(&[BODY]));
    forged.method = Method::PUT;
    assert!(matches!(verdict(&identity, &mut forged).await, AuthVerdict::Refused(_)));
    assert_eq!(std::mem::take(&mut forged.body).collect().await.expect("whole").to_bytes(), BODY);
}

#[test]
fn digests_are_compared_or_refused() {
    use super::digest::judge;
    let sha256 = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";
    for (said, judgement) in [
        (sha256.to_owned(), Judgement::Fits),
        (format!("{sha256}, {DIGEST}"), Judgement::Fits),
        (format!("{sha256}, sha-512=:AAAA:"), Judgement::Differs),
        (format!("md5=:AAAA:, {sha256}"), Judgement::Fits),
        ("md5=:AAAA:".to_owned(), Judgement::Unusable),
        ("sha-256=abc".to_owned(), Judgement::Unusable),
        (String::new(), Judgement::Unusable),
        ("sha-256=:AAAA:".to_owned(), Judgement::Differs),
        ("not a dictionary:".to_owned(), Judgement::Unusable),
    ] {
        assert_eq!(judge(&said, BODY.as_bytes()), judgement, "{said}");
    }
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

#[test]
fn public_keys_are_read_from_pem_and_are_good_for_their_algorithm_only() {
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
    let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = rsa.public_key().as_der().expect("a key");
    let rsa_pem = pem(der.as_ref());
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("rsa.pem"), &rsa_pem).expect("written");
    let read = |key: Json| {
        let held = holding(KEYS.name, json!({"a": [key]}));
        keys::read(held.held(KEYS.name), dir.path())
    };
    let random = SystemRandom::new();
    for (algorithm, padding) in [
        ("rsa-pss-sha512", &aws::RSA_PSS_SHA512 as &'static dyn aws::RsaEncoding),
        ("rsa-v1_5-sha256", &aws::RSA_PKCS1_SHA256),
    ] {
        let (keys, errors) = read(json!({"id": "r", "algorithm": algorithm, "publicKeyFile": "rsa.pem"}));
        assert_eq!(errors, []);
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(padding, &random, b"base", &mut signature).expect("a signature");
        assert!(keys["r"].verify(b"base", &signature), "{algorithm}");
        assert!(!keys["r"].verify(b"bas", &signature));
    }
    let other = aws_lc_rs::signature::EcdsaKeyPair::generate(&aws::ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key");
    let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = other.public_key().as_der().expect("a key");
    let (keys, errors) = read(json!({"id": "e", "algorithm": "ecdsa-p384-sha384", "publicKey": pem(der.as_ref())}));
    assert_eq!(errors, []);
    let signature = other.sign(&random, b"base").expect("a signature");
    assert!(keys["e"].verify(b"base", signature.as_ref()));
    for (bad, says) in [
        (json!({"id": "x", "algorithm": "ed25519", "publicKey": rsa_pem}), "no public key for `ed25519`"),
        (json!({"id": "x", "algorithm": "rsa-pss-sha512", "publicKey": ED25519}), "no public key for"),
        (json!({"id": "x", "algorithm": "ed25519", "publicKey": "x"}), "no public key in PEM"),
        (json!({"id": "x", "algorithm": "ed25519", "publicKeyFile": "none.pem"}), "none.pem"),
        (json!({"id": "x", "algorithm": "ed25519"}), "needs `publicKey`"),
        (json!({"id": "x", "algorithm": "ed25519", "publicKey": ED25519, "secret": "y"}), "no secret"),
        (json!({"id": "x", "algorithm": "hmac-sha256", "publicKey": ED25519}), "needs `secret`"),
        (json!({"id": "x", "algorithm": "hmac-sha256", "secret": "short"}), "too short"),
        (json!({"id": "x", "algorithm": "hmac-sha256", "secret": "base64:!"}), "not base64"),
        (json!({"id": "x", "algorithm": "hmac-sha1", "secret": "short"}), "did you mean `hmac-sha256`"),
    ] {
        let (_, errors) = read(bad.clone());
        assert_eq!(errors.len(), 1, "{bad}");
        let e = &errors[0];
        assert!(e.span.is_some() && e.help.is_some() && e.to_string().contains(says), "{bad}: {e}");
        assert!(!e.to_string().contains("short\""), "no secret in an error");
    }
    let twice = holding(
        KEYS.name,
        json!({
            "a": [{"id": "k", "algorithm": "hmac-sha256", "secret": SECRET}],
            "b": [{"id": "k", "algorithm": "hmac-sha256", "secret": SECRET}],
        }),
    );
    let e = made(json!({}), &twice, &mut Estate::default()).err().expect("two owners");
    assert!(e.message.contains("consumer `a` already"), "{e}");
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({"required": []}), "over nothing"),
        (json!({"required": ["@status"]}), "no component of a request"),
        (json!({"required": ["a b"]}), "no component of a request"),
        (json!({"maxAge": "2h"}), "at most 1h"),
        (json!({"skew": "10m"}), "at most 5m"),
        (json!({"nonces": 0}), "no nonce"),
        (json!({"bodyLimit": "1GiB"}), "held in memory"),
        (json!({"require": []}), "did you mean `required`"),
    ] {
        let e = made(bad.clone(), &directory(), &mut Estate::default()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

proptest! {
    #[test]
    fn no_field_panics(input in "\\PC{0,80}", signature in "\\PC{0,40}", component in "[\"@a-z;=() ]{0,40}") {
        let mut headers = HeaderMap::new();
        if let (Ok(i), Ok(s)) = (HeaderValue::from_str(&input), HeaderValue::from_str(&signature)) {
            headers.insert("signature-input", i);
            headers.insert("signature", s);
        }
        let _ = claims(&headers);
        let input = format!("s=({component});keyid=\"k\"");
        headers.insert("signature-input", HeaderValue::from_str(&input).expect("ascii"));
        headers.insert("signature", HeaderValue::from_static("s=:AAAA:"));
        for claim in claims(&headers).into_iter().flatten() {
            let _ = claim.base(&message(&headers));
        }
    }
}
