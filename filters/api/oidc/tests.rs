use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::build::oidc;
use super::*;
use crate::api::fixture::{Estate, request, section};
use crate::contract::entry::Directory;
use crate::contract::{ConfigError, Reason};

const SECRET: &str = "a-secret-of-more-than-thirty-two-bytes";

/// An issuer that can be told to lie.
struct Issuer {
    url: String,
    told: Arc<Mutex<Told>>,
    /// Requests to the token endpoint.
    asked: Arc<AtomicUsize>,
}

struct Told {
    url: String,
    signer: EcdsaKeyPair,
    /// Replaces members of the discovery document.
    document: Json,
    /// Replaces claims of ID tokens; null removes.
    claims: Json,
    /// Replaces members of the token endpoint's answers; null removes.
    answer: Json,
    /// The header of ID tokens.
    header: Json,
    nonce: String,
    /// Status of the token endpoint.
    status: u16,
    /// The refresh token that is good now.
    refresh: u64,
    forms: Vec<HashMap<String, String>>,
    basic: Option<HeaderValue>,
    life: u64,
    slow: bool,
}

fn overlay(onto: &mut Json, changes: &Json) {
    for (name, value) in changes.as_object().into_iter().flatten() {
        match value {
            Json::Null => drop(onto.as_object_mut().expect("an object").remove(name)),
            value => onto[name] = value.clone(),
        }
    }
}

fn pairs_of(form: &str) -> HashMap<String, String> {
    let decode = |t: &str| percent_decode_str(t).decode_utf8().expect("text").into_owned();
    form.split('&').filter_map(|p| p.split_once('=')).map(|(n, v)| (decode(n), decode(v))).collect()
}

impl Told {
    fn sign(&self, header: &Json, claims: &Json) -> String {
        let part = |json: &Json| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.signer.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
    fn id_token(&self, nonce: Option<&str>) -> String {
        let now = seconds();
        let mut claims = json!({
            "iss": self.url, "aud": "shop", "sub": "ann", "sid": "op-1", "iat": now, "exp": now + 300, "email": "ann@x",
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = json!(nonce);
        }
        overlay(&mut claims, &self.claims);
        self.sign(&self.header, &claims)
    }
    fn jwk(&self) -> Json {
        let point = self.signer.public_key().as_ref();
        let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({"kty": "EC", "crv": "P-256", "kid": "k1", "x": coordinate(1..33), "y": coordinate(33..65)})
    }
    fn serve(&mut self, path: &str, headers: &HeaderMap, body: &str) -> (u16, Json) {
        match path {
            "/.well-known/openid-configuration" => {
                let url = &self.url;
                let mut document = json!({
                    "issuer": url, "authorization_endpoint": format!("{url}/auth"), "token_endpoint": format!("{url}/token"),
                    "jwks_uri": format!("{url}/jwks"), "userinfo_endpoint": format!("{url}/me"),
                    "end_session_endpoint": format!("{url}/end"), "authorization_response_iss_parameter_supported": true,
                });
                overlay(&mut document, &self.document);
                (200, document)
            }
            "/jwks" => (200, json!({"keys": [self.jwk()]})),
            "/me" => (200, json!({"sub": "ann", "name": "Ann"})),
            "/token" => {
                self.basic = headers.get(AUTHORIZATION).cloned();
                let form = pairs_of(body);
                self.forms.push(form.clone());
                if self.status != 200 {
                    return (self.status, json!({"error": "invalid_grant"}));
                }
                if form["grant_type"] == "refresh_token" && form["refresh_token"] != format!("r{}", self.refresh) {
                    return (400, json!({"error": "invalid_grant"}));
                }
                self.refresh += 1;
                let nonce = (form["grant_type"] == "authorization_code").then_some(self.nonce.as_str());
                let mut answer = json!({
                    "access_token": format!("at-{}", self.refresh), "token_type": "Bearer", "expires_in": self.life,
                    "refresh_token": format!("r{}", self.refresh), "id_token": self.id_token(nonce), "scope": "openid orders",
                });
                overlay(&mut answer, &self.answer);
                (200, answer)
            }
            _ => (404, json!({})),
        }
    }
}

impl Issuer {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let told = Arc::new(Mutex::new(Told {
            url: url.clone(),
            signer: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
            document: json!({}),
            claims: json!({}),
            answer: json!({}),
            header: json!({"alg": "ES256", "kid": "k1"}),
            nonce: String::new(),
            status: 200,
            refresh: 0,
            forms: Vec::new(),
            basic: None,
            life: 3600,
            slow: false,
        }));
        let asked = Arc::new(AtomicUsize::new(0));
        let issuer = Self { url, told: told.clone(), asked: asked.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (told, asked) = (told.clone(), asked.clone());
                let service = service_fn(move |rq: http::Request<hyper::body::Incoming>| {
                    let (told, asked) = (told.clone(), asked.clone());
                    async move {
                        let (parts, body) = rq.into_parts();
                        let body = body.collect().await.expect("a body").to_bytes();
                        if parts.uri.path() == "/token" {
                            asked.fetch_add(1, SeqCst);
                        }
                        if told.lock().slow {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                        let text = String::from_utf8_lossy(&body).into_owned();
                        let (status, json) = told.lock().serve(parts.uri.path(), &parts.headers, &text);
                        let reply = Response::builder().status(status).body(Full::new(Bytes::from(json.to_string())));
                        Ok::<_, Infallible>(reply.expect("a response"))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        issuer
    }

    fn config(&self, more: Json) -> Json {
        let mut config = json!({
            "issuer": self.url, "clientId": "shop", "clientSecret": "s:e c", "backchannelLogoutPath": "/oauth2/bye",
            "claimsToHeaders": {"sub": "x-user"}, "session": {"secret": SECRET},
        });
        overlay(&mut config, &more);
        config
    }

    /// The identity, once it knows this issuer.
    async fn identity(&self, more: Json) -> Oidc {
        self.identity_in(&mut Estate::default(), more).await
    }

    async fn identity_in(&self, estate: &mut Estate, more: Json) -> Oidc {
        let directory = Directory::default();
        let made = oidc(&section(self.config(more)), &mut estate.build("identities.login", &directory));
        let made = made.unwrap_or_else(|e| panic!("{e}"));
        estate.publish().into_iter().for_each(|task| {
            tokio::spawn(task);
        });
        made.0.provider.settled().await;
        made
    }
}

/// A browser on one host, as far as cookies go.
#[derive(Default, Clone)]
struct Browser(Vec<(String, String)>);

impl Browser {
    fn open(&self, target: &str) -> RequestCx {
        self.send(
            "GET",
            target,
            &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"), ("sec-fetch-site", "none")],
        )
    }
    fn send(&self, method: &str, target: &str, headers: &[(&'static str, &str)]) -> RequestCx {
        let mut rq = request(method, target);
        rq.https = true;
        rq.authority = "shop.example.com".parse().expect("an authority");
        for (name, value) in headers {
            rq.headers.insert(*name, value.parse().expect("a value"));
        }
        if !self.0.is_empty() {
            let line = self.0.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("; ");
            rq.headers.insert(COOKIE, line.parse().expect("a value"));
        }
        rq
    }
    fn take(&mut self, lines: impl IntoIterator<Item = HeaderValue>) -> usize {
        let mut count = 0;
        for line in lines {
            count += 1;
            let line = line.to_str().expect("text");
            assert!(line.contains("; HttpOnly; Secure; SameSite="), "{line}");
            let (pair, rest) = line.split_once(';').expect("attributes");
            let (name, value) = pair.split_once('=').expect("a pair");
            self.0.retain(|(n, _)| n != name);
            if !rest.contains("Max-Age=0;") {
                self.0.push((name.to_owned(), value.to_owned()));
            }
        }
        count
    }
    /// Takes what the answer to a request sets; says how many lines.
    fn keep(&mut self, rq: &mut RequestCx, reply: Option<&Response<Body>>) -> usize {
        let own = rq.reply_headers.drain(..).filter(|(n, _)| n == SET_COOKIE).map(|(_, v)| v).collect::<Vec<_>>();
        let theirs = reply.into_iter().flat_map(|r| r.headers().get_all(SET_COOKIE).iter().cloned());
        self.take(theirs.chain(own))
    }
}

async fn verdict(oidc: &Oidc, rq: &mut RequestCx) -> AuthVerdict {
    match oidc.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(later) => later.await,
    }
}

fn location(reply: &Response<Body>) -> String {
    reply.headers().get(LOCATION).and_then(|l| l.to_str().ok()).unwrap_or_default().to_owned()
}

impl Issuer {
    /// Opens a page; gives the issuer's login URL's parameters.
    async fn begin(&self, oidc: &Oidc, browser: &mut Browser, target: &str) -> HashMap<String, String> {
        let mut rq = browser.open(target);
        assert!(matches!(verdict(oidc, &mut rq).await, AuthVerdict::Absent));
        let reply = oidc.invite(&mut rq).expect("an invitation").unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(reply.status(), 302);
        assert_eq!(reply.headers()["cache-control"], "no-store");
        let to = location(&reply);
        browser.keep(&mut rq, Some(&reply));
        let (page, query) = to.split_once('?').expect("a query");
        assert_eq!(page, format!("{}/auth", self.url));
        let asked = pairs_of(query);
        self.told.lock().nonce.clone_from(&asked["nonce"]);
        asked
    }
    fn back(&self, state: &str) -> String {
        format!("/oauth2/callback?code=c1&state={state}&iss={}", self.url)
    }
    /// The whole login.
    async fn login(&self, oidc: &Oidc, browser: &mut Browser, target: &str) -> Result<String, &'static str> {
        let asked = self.begin(oidc, browser, target).await;
        self.finish(oidc, browser, &self.back(&asked["state"])).await
    }
    async fn finish(&self, oidc: &Oidc, browser: &mut Browser, target: &str) -> Result<String, &'static str> {
        let mut rq = browser.open(target);
        match verdict(oidc, &mut rq).await {
            AuthVerdict::Reply(reply) => {
                browser.keep(&mut rq, Some(&reply));
                Ok(location(&reply))
            }
            AuthVerdict::Refused(error) => {
                browser.keep(&mut rq, None);
                assert!(oidc.invite(&mut rq).is_none(), "no way round in circles");
                Err(error.description)
            }
            AuthVerdict::Unavailable(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_login_from_beginning_to_end() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({"scopes": ["orders"], "parameters": {"prompt": "login"}})).await;
    let mut browser = Browser::default();
    let asked = issuer.begin(&oidc, &mut browser, "/cart?item=7").await;
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "shop"),
        ("redirect_uri", "https://shop.example.com/oauth2/callback"),
        ("scope", "openid orders"),
        ("code_challenge_method", "S256"),
        ("prompt", "login"),
    ] {
        assert_eq!(asked[name], value, "{name}");
    }
    let back = issuer.back(&asked["state"]);
    assert_eq!(issuer.finish(&oidc, &mut browser, &back).await, Ok("/cart?item=7".into()));
    {
        let told = issuer.told.lock();
        let form = &told.forms[0];
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, form["code_verifier"].as_bytes());
        assert_eq!(URL_SAFE_NO_PAD.encode(hash.as_ref()), asked["code_challenge"], "RFC 7636 section 4.6");
        assert_eq!((form["code"].as_str(), &form["redirect_uri"]), ("c1", &asked["redirect_uri"]));
        // RFC 6749 section 2.3.1: `s:e c` form-encoded.
        let basic = base64::engine::general_purpose::STANDARD.encode("shop:s%3Ae%20c");
        assert_eq!(told.basic.as_ref().map(HeaderValue::as_bytes), Some(format!("Basic {basic}").as_bytes()));
    }
    assert_eq!(browser.0.len(), 1, "the login's own cookie is gone: {:?}", browser.0);
    let mut rq = browser.open("/cart");
    rq.headers.insert("x-user", HeaderValue::from_static("eve"));
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    let user = rq.user.as_ref().expect("a user");
    assert_eq!((&*user.subject, &user.claims["email"]), ("ann", &json!("ann@x")));
    assert_eq!(user.scopes.iter().map(|s| &**s).collect::<Vec<_>>(), ["openid", "orders"]);
    assert_eq!(rq.headers["x-user"], "ann");
    assert!(!rq.headers.contains_key(AUTHORIZATION), "tokens stay here");
    assert!(rq.reply_headers.is_empty(), "nothing new for the browser");
    let sealed = URL_SAFE_NO_PAD.decode(&browser.0[0].1).expect("base64");
    for secret in [&br#""f":"r1""#[..], br#""sub""#, br#""t":""#] {
        assert!(!sealed.windows(secret.len()).any(|w| w == secret), "sealed");
    }

    // The same answer again: the state was used, the issuer is not bothered.
    let error = issuer.finish(&oidc, &mut browser, &back).await.expect_err("replayed");
    assert!(error.contains("not begun in this browser"), "{error}");
    assert_eq!(issuer.asked.load(SeqCst), 1);
}

#[tokio::test]
async fn answers_that_do_not_belong_are_refused_before_the_issuer_is_asked() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    let mut browser = Browser::default();
    let asked = issuer.begin(&oidc, &mut browser, "/").await;
    let state = asked["state"].as_str();
    let url = &issuer.url;
    for (query, says) in [
        (format!("code=c&state={}&iss={url}", "x".repeat(43)), "not begun"),
        (format!("code=c&state={}x&iss={url}", &state[..42]), "not begun"),
        (format!("code=c&iss={url}"), "no state"),
        (format!("code=c&state={state}&state={state}&iss={url}"), "twice"),
    ] {
        let error = issuer.finish(&oidc, &mut browser.clone(), &format!("/oauth2/callback?{query}")).await;
        assert!(error.as_ref().is_err_and(|e| e.contains(says)), "{query}: {error:?}");
    }
    let error = issuer.finish(&oidc, &mut Browser::default(), &issuer.back(state)).await;
    assert!(error.is_err_and(|e| e.contains("not begun")), "another browser: a forged login");
    let mut rq = browser.send("POST", &issuer.back(state), &[]);
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Refused(_)), "by GET only");
    for (query, says) in [
        (format!("code=c&state={state}&iss=https://evil.example"), "another issuer"),
        (format!("code=c&state={state}"), "does not say which issuer"),
        (format!("error=access_denied&state={state}&iss={url}"), "access_denied"),
        (format!("error=%3Cscript%3E&state={state}&iss={url}"), "refused the login"),
        (format!("state={state}&iss={url}"), "no code"),
    ] {
        let mut browser = Browser::default();
        let fresh = issuer.begin(&oidc, &mut browser, "/").await;
        let query = query.replace(state, &fresh["state"]);
        let error = issuer.finish(&oidc, &mut browser, &format!("/oauth2/callback?{query}")).await;
        assert!(error.as_ref().is_err_and(|e| e.contains(says)), "{query}: {error:?}");
        assert!(browser.0.is_empty(), "forgotten: {:?}", browser.0);
    }
    // A copy of the cookie does not make an answer good twice.
    let mut copy = browser.clone();
    issuer.told.lock().nonce.clone_from(&asked["nonce"]);
    assert!(issuer.finish(&oidc, &mut browser, &issuer.back(state)).await.is_ok());
    let error = issuer.finish(&oidc, &mut copy, &issuer.back(state)).await;
    assert!(error.is_err_and(|e| e.contains("used before")));
    assert_eq!(issuer.asked.load(SeqCst), 1);
}

#[tokio::test]
async fn tokens_that_lie_make_no_session() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({"maxAuthAge": "1h"})).await;
    let now = seconds();
    let fresh = |more: Json| {
        let mut claims = more;
        claims.as_object_mut().expect("an object").entry("auth_time").or_insert(json!(now));
        claims
    };
    let none = json!({"alg": "none"});
    let hmac = json!({"alg": "HS256", "kid": "k1"});
    let rsa = json!({"alg": "RS256", "kid": "k1"});
    let es = json!({"alg": "ES256", "kid": "k1"});
    for (header, claims, answer, says) in [
        (&es, fresh(json!({"nonce": "other"})), json!({}), "another login"),
        (&es, fresh(json!({"nonce": null})), json!({}), "no login"),
        (&es, fresh(json!({"iss": "https://evil.example"})), json!({}), "issuer"),
        (&es, fresh(json!({"aud": "other"})), json!({}), "audience"),
        (&es, fresh(json!({"aud": ["shop", "other"]})), json!({}), "who asked"),
        (&es, fresh(json!({"azp": "other"})), json!({}), "another client"),
        (&es, fresh(json!({"exp": now - 61})), json!({}), "expired"),
        (&es, fresh(json!({"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"})), json!({}), "another access token"),
        (&es, fresh(json!({"auth_time": now - 3700})), json!({}), "too long ago"),
        (&es, json!({}), json!({}), "no time of the login"),
        (&none, fresh(json!({})), json!({}), "algorithm"),
        (&hmac, fresh(json!({})), json!({}), "algorithm"),
        (&rsa, fresh(json!({})), json!({}), "does not fit the key"),
        (&es, fresh(json!({})), json!({"id_token": null}), "no ID token"),
        (&es, fresh(json!({})), json!({"token_type": "DPoP"}), "not a bearer"),
        (&es, fresh(json!({})), json!({"access_token": null}), "no tokens"),
    ] {
        {
            let mut told = issuer.told.lock();
            (told.header, told.claims, told.answer) = (header.clone(), claims, answer);
        }
        let mut browser = Browser::default();
        let error = issuer.login(&oidc, &mut browser, "/").await;
        assert!(error.as_ref().is_err_and(|e| e.contains(says)), "{says}: {error:?}");
        assert!(browser.0.is_empty(), "no session: {says}");
    }
    {
        let mut told = issuer.told.lock();
        (told.header, told.claims, told.answer) = (es, fresh(json!({})), json!({}));
        // Another's key under the right name.
        let other = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        told.signer = other;
    }
    let error = issuer.login(&oidc, &mut Browser::default(), "/").await;
    assert!(error.is_err_and(|e| e.contains("signature")));
}

#[tokio::test]
async fn scripts_are_told_401_and_plain_http_is_not_enough() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    let mut rq = Browser::default().send("GET", "/api", &[("sec-fetch-mode", "cors")]);
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Absent));
    assert!(oidc.invite(&mut rq).is_none());
    assert_eq!(oidc.challenge(None), "Cookie realm=\"login\"");
    let mut rq = Browser::default().open("/");
    rq.https = false;
    let fault = oidc.invite(&mut rq).expect("an answer").expect_err("refused");
    assert_eq!((fault.reason, &*fault.detail), (Reason::Forbidden, "a login needs https"));
    let plain = json!({"session": {"secret": SECRET, "cookie": "sid", "secure": false}});
    let plain = issuer.identity(plain).await;
    assert!(plain.invite(&mut rq).expect("an answer").is_err(), "not a loopback host");
    rq.authority = "localhost:8080".parse().expect("an authority");
    assert!(plain.invite(&mut rq).expect("an answer").is_ok());
}

#[tokio::test]
async fn an_issuer_that_is_not_there_is_503_and_old_sessions_go_on() {
    let issuer = Issuer::start().await;
    issuer.told.lock().document = json!({"issuer": "https://another.example"});
    let mut estate = Estate::default();
    let oidc = issuer.identity_in(&mut estate, json!({})).await;
    let mut rq = Browser::default().open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Absent), "not waited for a second time");
    let fault = oidc.invite(&mut rq).expect("an answer").expect_err("no page to go to");
    assert_eq!(fault.reason, Reason::IdentityUnavailable);
    for wrong in
        [json!({"code_challenge_methods_supported": ["plain"]}), json!({"token_endpoint": "http://evil.example/"})]
    {
        issuer.told.lock().document = wrong;
        let oidc = issuer.identity(json!({})).await;
        assert!(oidc.0.provider.endpoints().is_none());
    }
    issuer.told.lock().document = json!({});
    let known = issuer.identity(json!({})).await;
    let mut browser = Browser::default();
    assert!(issuer.login(&known, &mut browser, "/").await.is_ok());
    assert!(matches!(verdict(&oidc, &mut browser.open("/")).await, AuthVerdict::Accepted), "a cookie needs no issuer");
    let later = async {
        while oidc.0.provider.endpoints().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), later).await.expect("tried again by itself");
}

#[tokio::test]
async fn tampered_foreign_and_old_cookies_are_nothing() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    let mut tampered = browser.clone();
    let value = &mut tampered.0[0].1;
    let middle = value.len() / 2;
    let flipped = if &value[middle..=middle] == "A" { "B" } else { "A" };
    value.replace_range(middle..=middle, flipped);
    let mut rq = tampered.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Absent));
    assert_eq!(tampered.keep(&mut rq, None), 1, "the browser forgets it");
    assert!(tampered.0.is_empty());
    assert_eq!(oidc.0.counters.invalid.value(), 1);

    let other = issuer.identity(json!({"clientId": "stock"})).await;
    assert!(matches!(verdict(&other, &mut browser.open("/")).await, AuthVerdict::Absent), "another client's");
    let new = "another-secret-of-more-than-thirty-two-bytes";
    let changed = issuer.identity(json!({"session": {"secret": new}})).await;
    assert!(matches!(verdict(&changed, &mut browser.open("/")).await, AuthVerdict::Absent));
    let rotated = issuer.identity(json!({"session": {"secret": new, "previousSecrets": [SECRET]}})).await;
    assert!(matches!(verdict(&rotated, &mut browser.open("/")).await, AuthVerdict::Accepted));
    let short = issuer.identity(json!({"session": {"secret": SECRET, "maxAge": "1s"}})).await;
    let gone = async {
        while !matches!(verdict(&short, &mut browser.open("/")).await, AuthVerdict::Absent) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it ends");
}

#[tokio::test]
async fn a_long_session_takes_several_cookies_and_one_that_is_too_long_none() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    issuer.told.lock().claims = json!({"groups": vec!["a-group-of-some-length"; 250]});
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    let names: Vec<&str> = browser.0.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["__Host-sid.0", "__Host-sid.1", "__Host-sid.2", "__Host-sid.3"]);
    assert!(browser.0.iter().all(|(n, v)| n.len() + v.len() < 4096));
    let mut rq = browser.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!(rq.user.expect("a user").claims["groups"].as_array().map(Vec::len), Some(250));
    {
        let mut told = issuer.told.lock();
        (told.claims, told.answer) = (json!({}), json!({"refresh_token": "r".repeat(18_000)}));
    }
    let error = issuer.login(&oidc, &mut Browser::default(), "/").await;
    assert!(error.as_ref().is_err_and(|e| e.contains("does not fit")), "{error:?}");
}

#[tokio::test]
async fn tokens_are_renewed_once_for_all_who_ask() {
    let issuer = Issuer::start().await;
    let mut estate = Estate::default();
    let oidc = issuer.identity_in(&mut estate, json!({"forwardToken": true})).await;
    // At once to be renewed: a quarter of its life is 30 s or more.
    issuer.told.lock().life = 0;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    {
        let mut told = issuer.told.lock();
        (told.life, told.slow) = (3600, true);
    }
    let old = browser.clone();
    let asks = (0..20).map(|_| {
        let mut rq = old.open("/");
        let oidc = &oidc;
        async move {
            let verdict = verdict(oidc, &mut rq).await;
            (verdict, rq)
        }
    });
    for (verdict, mut rq) in futures_util::future::join_all(asks).await {
        assert!(matches!(verdict, AuthVerdict::Accepted), "{verdict:?}");
        assert_eq!(rq.headers[AUTHORIZATION], "Bearer at-2");
        assert_eq!(browser.keep(&mut rq, None), 1, "everybody gets the new cookie");
    }
    assert_eq!(issuer.asked.load(SeqCst), 2, "one login, one refresh");
    // A request that still carries the old cookie is given the new one, and the spent token is not sent again.
    let mut rq = old.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!((rq.headers[AUTHORIZATION].as_bytes(), rq.reply_headers.len()), (&b"Bearer at-2"[..], 1));
    let mut rq = browser.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    assert!(rq.reply_headers.is_empty());
    // After a reload too, and as the new configuration wants it.
    let more = json!({"forwardToken": false, "claimsToHeaders": {"email": "x-mail"}});
    let reloaded = issuer.identity_in(&mut estate, more).await;
    let mut rq = old.open("/");
    assert!(matches!(verdict(&reloaded, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!(rq.headers["x-mail"], "ann@x");
    assert!(!rq.headers.contains_key("x-user") && !rq.headers.contains_key(AUTHORIZATION));
    assert_eq!(issuer.asked.load(SeqCst), 2);
}

#[tokio::test]
async fn a_refresh_that_fails_ends_the_session_or_waits() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    issuer.told.lock().life = 0;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    issuer.told.lock().status = 503;
    let verdict_now = verdict(&oidc, &mut browser.open("/")).await;
    assert!(matches!(verdict_now, AuthVerdict::Unavailable(_)), "expired and no issuer: {verdict_now:?}");
    let asked = issuer.asked.load(SeqCst);
    assert!(matches!(verdict(&oidc, &mut browser.open("/")).await, AuthVerdict::Unavailable(_)));
    assert_eq!(issuer.asked.load(SeqCst), asked, "left alone for a while");

    let oidc = issuer.identity(json!({})).await;
    {
        let mut told = issuer.told.lock();
        (told.life, told.status) = (4, 200);
    }
    let mut living = Browser::default();
    assert!(issuer.login(&oidc, &mut living, "/").await.is_ok());
    issuer.told.lock().status = 503;
    let renewing = async {
        while issuer.asked.load(SeqCst) == asked + 1 {
            let verdict = verdict(&oidc, &mut living.open("/")).await;
            assert!(matches!(verdict, AuthVerdict::Accepted), "its token lives: {verdict:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), renewing).await.expect("it was tried");

    issuer.told.lock().status = 400;
    let over = issuer.identity(json!({})).await;
    let mut rq = browser.open("/");
    assert!(matches!(verdict(&over, &mut rq).await, AuthVerdict::Absent), "login again");
    browser.keep(&mut rq, None);
    assert!(browser.0.is_empty());
}

#[tokio::test]
async fn a_renewed_token_about_somebody_else_is_refused() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    issuer.told.lock().life = 0;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    issuer.told.lock().claims = json!({"sub": "eve"});
    assert!(matches!(verdict(&oidc, &mut browser.open("/")).await, AuthVerdict::Absent));
}

#[tokio::test]
async fn logging_out_is_for_ones_own_pages_and_ends_every_copy() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({})).await;
    let mut browser = Browser::default();
    assert!(issuer.login(&oidc, &mut browser, "/").await.is_ok());
    let copy = browser.clone();
    let cross = [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")];
    let mut rq = browser.send("POST", "/oauth2/logout", &cross);
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Refused(_)));
    let mut rq = browser.send("GET", "/oauth2/logout", &cross);
    let AuthVerdict::Reply(page) = verdict(&oidc, &mut rq).await else { panic!("a page that asks") };
    assert_eq!((page.status(), browser.keep(&mut rq, Some(&page))), (StatusCode::OK, 0));
    assert!(matches!(verdict(&oidc, &mut browser.open("/")).await, AuthVerdict::Accepted));

    let mut rq =
        browser.send("POST", "/oauth2/logout", &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate")]);
    let AuthVerdict::Reply(reply) = verdict(&oidc, &mut rq).await else { panic!("an answer") };
    assert_eq!(reply.status(), 303);
    let to = location(&reply);
    let (end, query) = to.split_once('?').expect("a query");
    let query = pairs_of(query);
    assert_eq!(end, format!("{}/end", issuer.url));
    assert_eq!(
        (query["client_id"].as_str(), query["post_logout_redirect_uri"].as_str()),
        ("shop", "https://shop.example.com/")
    );
    assert_eq!(query["id_token_hint"].split('.').count(), 3);
    browser.keep(&mut rq, Some(&reply));
    assert!(browser.0.is_empty());
    assert!(matches!(verdict(&oidc, &mut copy.open("/")).await, AuthVerdict::Absent), "a stolen copy is worth nothing");

    let here = issuer.identity(json!({"localLogout": true, "afterLogout": "/bye"})).await;
    let mut browser = Browser::default();
    assert!(issuer.login(&here, &mut browser, "/").await.is_ok());
    let mut rq =
        browser.send("POST", "/oauth2/logout", &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]);
    let AuthVerdict::Reply(reply) = verdict(&here, &mut rq).await else { panic!("an answer") };
    let (parts, body) = reply.into_parts();
    assert_eq!(parts.status, 200, "a script is told where to go");
    assert_eq!(body.collect().await.expect("a body").to_bytes(), r#"{"location":"/bye"}"#);
}

#[tokio::test]
async fn the_issuer_ends_sessions() {
    let issuer = Issuer::start().await;
    let mut estate = Estate::default();
    let oidc = issuer.identity_in(&mut estate, json!({})).await;
    let event = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
    let token = |more: Json| {
        let now = seconds();
        let told = issuer.told.lock();
        let mut claims =
            json!({"iss": told.url, "aud": "shop", "iat": now, "exp": now + 60, "jti": "j1", "events": event});
        overlay(&mut claims, &more);
        told.sign(&json!({"alg": "ES256", "kid": "k1", "typ": "logout+jwt"}), &claims)
    };
    let post = async |oidc: &Oidc, body: String| {
        let mut rq = Browser::default().send("POST", "/oauth2/bye", &[]);
        rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        rq.body = Body::full(body);
        match verdict(oidc, &mut rq).await {
            AuthVerdict::Reply(reply) => reply.status().as_u16(),
            other => panic!("{other:?}"),
        }
    };
    let mut ann = Browser::default();
    assert!(issuer.login(&oidc, &mut ann, "/").await.is_ok());
    issuer.told.lock().claims = json!({"sub": "bob", "sid": "op-2"});
    let mut bob = Browser::default();
    assert!(issuer.login(&oidc, &mut bob, "/").await.is_ok());
    for bad in [
        String::new(),
        "logout_token=x.y.z".to_owned(),
        format!("logout_token={}", token(json!({"sid": "op-1", "nonce": "n"}))),
        format!("logout_token={}", token(json!({"sid": "op-1", "aud": "other"}))),
        format!("logout_token={}", token(json!({"sid": "op-1", "exp": null}))),
        format!("logout_token={}", token(json!({"sid": "op-1", "events": {}}))),
        format!("logout_token={}", token(json!({}))),
        format!("logout_token={0}&logout_token={0}", token(json!({"sid": "op-1"}))),
        format!("logout_token={}", issuer.told.lock().id_token(None)),
    ] {
        assert_eq!(post(&oidc, bad.clone()).await, 400, "{bad}");
    }
    assert!(matches!(verdict(&oidc, &mut ann.open("/")).await, AuthVerdict::Accepted));
    let good = format!("logout_token={}", token(json!({"sid": "op-1"})));
    assert_eq!(post(&oidc, good.clone()).await, 200);
    assert_eq!(post(&oidc, good).await, 400, "once");
    let mut rq = ann.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Absent));
    assert!(matches!(verdict(&oidc, &mut bob.open("/")).await, AuthVerdict::Accepted), "another session");
    assert_eq!(post(&oidc, format!("logout_token={}", token(json!({"sub": "bob", "jti": "j2"})))).await, 200);
    let again = issuer.identity_in(&mut estate, json!({"userinfo": true})).await;
    assert!(matches!(verdict(&again, &mut bob.open("/")).await, AuthVerdict::Absent), "a reload does not forget");
}

#[tokio::test]
async fn several_tabs_log_in_at_once_and_unfinished_logins_do_not_pile_up() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({"userinfo": true})).await;
    let mut browser = Browser::default();
    let first = issuer.begin(&oidc, &mut browser, "/one").await;
    let nonce = first["nonce"].clone();
    issuer.begin(&oidc, &mut browser, "/two").await;
    issuer.told.lock().nonce = nonce;
    assert_eq!(issuer.finish(&oidc, &mut browser, &issuer.back(&first["state"])).await, Ok("/one".into()));
    let mut rq = browser.open("/");
    assert!(matches!(verdict(&oidc, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!(rq.user.expect("a user").claims["name"], "Ann", "from userinfo");
    let mut browser = Browser::default();
    for _ in 0..20 {
        issuer.begin(&oidc, &mut browser, "/").await;
        assert!(browser.0.len() <= 6, "{}", browser.0.len());
    }
}

#[tokio::test]
async fn a_strict_session_lands_on_a_page_of_its_own() {
    let issuer = Issuer::start().await;
    let oidc = issuer.identity(json!({"session": {"secret": SECRET, "sameSite": "strict"}})).await;
    let mut browser = Browser::default();
    let asked = issuer.begin(&oidc, &mut browser, "/a?b=c&d").await;
    let mut rq = browser.open(&issuer.back(&asked["state"]));
    let AuthVerdict::Reply(reply) = verdict(&oidc, &mut rq).await else { panic!("a page") };
    let lines: Vec<String> = rq.reply_headers.iter().map(|(_, v)| v.to_str().expect("text").to_owned()).collect();
    assert!(lines.iter().any(|l| l.starts_with("__Host-sid=") && l.ends_with("SameSite=Strict")), "{lines:?}");
    let body = reply.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("0;url=/a?b=c&amp;d"), "{body:?}");
}

#[test]
fn a_hypothetical_request_changes_nothing() {
    let oidc = made(json!({})).unwrap_or_else(|e| panic!("{e}"));
    let mut rq = Browser::default().open("/oauth2/callback?code=c&state=s");
    rq.dry_run = true;
    assert!(matches!(oidc.authenticate(&mut rq), AuthStep::Done(AuthVerdict::Absent)));
}

fn made(more: Json) -> Result<Oidc, ConfigError> {
    let mut config = json!({"issuer": "https://id.test/", "clientId": "shop"});
    overlay(&mut config, &more);
    oidc(&section(config), &mut Estate::default().build("identities.login", &Directory::default()))
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({"issuer": null}), "`issuer` is missing"),
        (json!({"clientId": null}), "`clientId` is missing"),
        (json!({"clientId": ""}), "client id is empty"),
        (json!({"issuer": "http://id.example.com"}), "not encrypted"),
        (json!({"issuer": "https://id.example.com/?a"}), "no query"),
        (json!({"clientAuth": "basic"}), "no secret to show"),
        (json!({"clientAuth": "none", "clientSecret": "s"}), "never be sent"),
        (json!({"clientSecret": {"env": "ONEHOP_NO_SUCH"}}), "ONEHOP_NO_SUCH is not set"),
        (json!({"scopes": ["a b"]}), "not a scope"),
        (json!({"parameters": {"state": "x"}}), "set by the login itself"),
        (json!({"algorithms": ["HS256"]}), "not accepted"),
        (json!({"algorithms": []}), "no algorithm"),
        (json!({"redirectPath": "callback"}), "not a plain path"),
        (json!({"redirectPath": "/a/../b"}), "not a plain path"),
        (json!({"logoutPath": "/oauth2/callback"}), "two things"),
        (json!({"afterLogout": "//evil.example"}), "not a plain path"),
        (json!({"afterLogout": "/oauth2/logout"}), "another logout"),
        (json!({"leeway": "1h"}), "too long"),
        (json!({"claimsToHeaders": {"sub": "cookie"}}), "cannot become"),
        (json!({"ca": "missing.pem"}), "missing.pem"),
        (json!({"session": {"cookie": "a b"}}), "not a cookie name"),
        (json!({"session": {"secure": false}}), "browsers refuse `__Host-sid`"),
        (json!({"session": {"cookie": "__secure-x", "secure": false}}), "browsers refuse"),
        (json!({"session": {"cookie": "sid", "secure": false, "sameSite": "none"}}), "sameSite: none"),
        (json!({"session": {"secret": "short"}}), "shorter than 32"),
        (json!({"session": {"maxAge": "0s"}}), "end at once"),
        (json!({"session": {"idleTimeout": "10ms"}}), "end at once"),
        (json!({"session": {"maxage": "1h"}}), "did you mean `maxAge`"),
    ] {
        let e = made(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
    assert!(made(json!({"session": {"cookie": "sid", "secure": false}})).is_ok());
}
