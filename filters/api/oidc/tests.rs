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

mod logins;
mod logouts;
mod sessions;

const EC_KEY: &str = include_str!("../../../tests/data/example-issuer.key");
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
        (json!({"clientKey": {"key": "no key"}}), "not a private key"),
        (json!({"clientKey": {"key": EC_KEY, "algorithm": "RS256"}}), "not one for this algorithm"),
        (json!({"clientKey": {"key": EC_KEY, "algorithm": "HS256"}}), "HS"),
        (json!({"clientKey": {"key": EC_KEY}, "clientSecret": "s"}), "way of its own"),
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
