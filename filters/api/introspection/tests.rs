use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use http::header::AUTHORIZATION;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::core::{answer, is_token, question};
use super::*;
use crate::api::fixture::{Estate, holding, request, section};
use crate::contract::Directory;

/// An authorization server on a free port that keeps what it was sent.
struct Server {
    url: String,
    /// Status and body of answers.
    says: Arc<Mutex<(u16, String)>>,
    heard: Arc<Mutex<Vec<(Option<String>, String)>>>,
    asked: Arc<AtomicUsize>,
    /// How long it thinks.
    pause: Arc<Mutex<Duration>>,
}

impl Server {
    async fn start(says: Json) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/introspect?tenant=a", listener.local_addr().expect("an address"));
        let server = Self {
            url,
            says: Arc::new(Mutex::new((200, says.to_string()))),
            heard: Arc::default(),
            asked: Arc::default(),
            pause: Arc::default(),
        };
        let (says, heard) = (server.says.clone(), server.heard.clone());
        let (asked, pause) = (server.asked.clone(), server.pause.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (says, heard, asked, pause) = (says.clone(), heard.clone(), asked.clone(), pause.clone());
                let service = service_fn(move |rq: http::Request<hyper::body::Incoming>| {
                    let (says, heard, asked, pause) = (says.clone(), heard.clone(), asked.clone(), pause.clone());
                    async move {
                        asked.fetch_add(1, SeqCst);
                        assert_eq!(
                            (rq.method().as_str(), rq.uri().to_string().as_str()),
                            ("POST", "/introspect?tenant=a")
                        );
                        let who = rq.headers().get(AUTHORIZATION).map(|v| v.to_str().expect("ascii").to_owned());
                        let body = rq.into_body().collect().await.expect("a body").to_bytes();
                        let body = String::from_utf8(body.to_vec()).expect("a form");
                        heard.lock().expect("a lock").push((who, body));
                        let pause = *pause.lock().expect("a lock");
                        tokio::time::sleep(pause).await;
                        let (status, body) = says.lock().expect("a lock").clone();
                        let reply = http::Response::builder().status(status);
                        Ok::<_, Infallible>(reply.body(Full::new(bytes::Bytes::from(body))).expect("a response"))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        server
    }
    fn say(&self, status: u16, body: &Json) {
        *self.says.lock().expect("a lock") = (status, body.to_string());
    }
    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
    fn config(&self, more: Json) -> Json {
        let mut config = json!({"url": self.url, "clientId": "gate way", "clientSecret": "s:e%cret"});
        for (name, value) in more.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        config
    }
    fn identity(&self, more: Json) -> Introspection {
        made(self.config(more), &Directory::default()).unwrap_or_else(|e| panic!("{e}"))
    }
}

fn made(json: Json, directory: &Directory) -> Result<Introspection, ConfigError> {
    introspection(&section(json), &mut Estate::default().build("identities.corp", directory))
}

fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn active() -> Json {
    json!({"active": true, "sub": "ann", "scope": "read orders", "client_id": "c-1", "exp": unix() + 600,
           "org": {"unit": "sales"}})
}

fn bearer(token: &str) -> RequestCx {
    let mut rq = request("GET", "/v1/orders");
    rq.headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().expect("a value"));
    rq
}

async fn verdict(identity: &Introspection, rq: &mut RequestCx) -> AuthVerdict {
    match identity.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(later) => later.await,
    }
}

async fn refusal(identity: &Introspection, token: &str) -> &'static str {
    match verdict(identity, &mut bearer(token)).await {
        AuthVerdict::Refused(error) => error.description,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_active_token_makes_a_user_and_is_asked_about_once() {
    let server = Server::start(active()).await;
    let directory = holding("clientIds", json!({"acme": ["c-1", "c-2"]}));
    let more = json!({"claimsToHeaders": {"sub": "x-user", "org.unit": "x-unit"}, "consumerClaim": "client_id"});
    let identity = made(server.config(more), &directory).unwrap_or_else(|e| panic!("{e}"));
    for seen in ["asked", "remembered"] {
        let mut rq = bearer("opaque+token/1=");
        rq.headers.insert("x-user", HeaderValue::from_static("forged"));
        assert!(matches!(verdict(&identity, &mut rq).await, AuthVerdict::Accepted), "{seen}");
        let user = rq.user.as_ref().expect("a user");
        assert_eq!((&*user.subject, &*user.identity), ("ann", "corp"));
        assert_eq!(user.scopes.iter().map(|s| &**s).collect::<Vec<_>>(), ["read", "orders"]);
        assert_eq!(rq.consumer.as_ref().map(|c| &*c.name), Some("acme"));
        assert!(rq.headers["x-user"] == "ann" && rq.headers["x-unit"] == "sales");
        assert!(!rq.headers.contains_key(AUTHORIZATION), "the token does not go upstream");
    }
    assert_eq!(server.asked(), 1);
    let heard = server.heard.lock().expect("a lock").clone();
    // RFC 6749 section 2.3.1: both are form-encoded before they become a Basic credential.
    use base64::Engine;
    let pair = base64::engine::general_purpose::STANDARD.encode("gate%20way:s%3Ae%25cret");
    let body = "token=opaque%2Btoken%2F1%3D&token_type_hint=access_token".to_owned();
    assert_eq!(heard, [(Some(format!("Basic {pair}")), body)]);
    assert_eq!((identity.counters.active.value(), identity.counters.cached.value()), (1, 1));
}

#[tokio::test]
async fn a_crowd_with_one_token_asks_once_even_if_the_first_leaves() {
    let server = Server::start(active()).await;
    *server.pause.lock().expect("a lock") = Duration::from_millis(150);
    let identity = server.identity(json!({"cache": "0s"}));
    let mut first = bearer("t");
    let left = tokio::time::timeout(Duration::from_millis(20), verdict(&identity, &mut first)).await;
    assert!(left.is_err(), "left before the answer");
    let all = (0..20).map(|_| async {
        let mut rq = bearer("t");
        verdict(&identity, &mut rq).await
    });
    for verdict in futures_util::future::join_all(all).await {
        assert!(matches!(verdict, AuthVerdict::Accepted), "{verdict:?}");
    }
    assert_eq!((server.asked(), identity.issuer.flights.open()), (1, 0));
    *server.pause.lock().expect("a lock") = Duration::ZERO;
    assert!(matches!(verdict(&identity, &mut bearer("t")).await, AuthVerdict::Accepted));
    assert_eq!(server.asked(), 2, "nothing is remembered with `cache: 0s`");
}

#[tokio::test]
async fn what_is_not_active_is_refused_and_remembered_briefly() {
    let server = Server::start(json!({"active": false})).await;
    let identity = server.identity(json!({"issuer": "https://id/", "audiences": ["shop"], "negativeCache": "200ms"}));
    assert_eq!(refusal(&identity, "t").await, "the token is not active");
    assert_eq!(refusal(&identity, "t").await, "the token is not active");
    assert_eq!(server.asked(), 1);
    let good = json!({"active": true, "iss": "https://id/", "aud": ["x", "shop"]});
    server.say(200, &good);
    let accepted = async {
        while !matches!(verdict(&identity, &mut bearer("t")).await, AuthVerdict::Accepted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), accepted).await.expect("asked again");
    for (n, (name, value, why)) in [
        ("iss", json!("https://evil/"), "the issuer is not accepted"),
        ("aud", json!("shoppe"), "the audience is not accepted"),
        ("aud", json!(null), "the audience is not accepted"),
        ("exp", json!(unix() - 1), "the token has expired"),
        ("nbf", json!(unix() + 60), "the token is not valid yet"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut bad = good.clone();
        bad[name] = value;
        server.say(200, &bad);
        assert_eq!(refusal(&identity, &format!("bad-{n}")).await, why);
    }
}

/// No verdict is never a pass, and never remembered.
#[tokio::test]
async fn an_issuer_that_fails_gives_no_verdict() {
    let server = Server::start(active()).await;
    let identity = server.identity(json!({"timeout": "300ms"}));
    for (status, body) in [
        (500, json!({})),
        (401, json!({"error": "invalid_client"})),
        (302, json!({"active": true})),
        (200, json!("active")),
        (200, json!({"active": "true"})),
        (200, json!({})),
        (200, json!({"active": true, "exp": "soon"})),
        (200, json!({"active": true, "pad": "x".repeat(MAX_ANSWER)})),
    ] {
        server.say(status, &body);
        assert!(matches!(verdict(&identity, &mut bearer("t")).await, AuthVerdict::Unavailable(_)), "{status} {body}");
    }
    server.say(200, &active());
    *server.pause.lock().expect("a lock") = Duration::from_secs(2);
    assert!(matches!(verdict(&identity, &mut bearer("t")).await, AuthVerdict::Unavailable(_)), "too slow");
    *server.pause.lock().expect("a lock") = Duration::ZERO;
    assert!(matches!(verdict(&identity, &mut bearer("t")).await, AuthVerdict::Accepted), "back");
    let nobody = json!({"url": "http://127.0.0.1:1/", "clientId": "a", "clientSecret": "b"});
    let identity = made(nobody, &Directory::default()).unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(verdict(&identity, &mut bearer("t")).await, AuthVerdict::Unavailable(_)));
}

#[tokio::test]
async fn an_active_verdict_dies_with_its_token() {
    let server = Server::start(json!({"active": true, "exp": unix() as f64 + 1.5})).await;
    let identity = server.identity(json!({"cache": "1h"}));
    assert!(matches!(verdict(&identity, &mut bearer("t")).await, AuthVerdict::Accepted));
    let expired = async {
        while !matches!(verdict(&identity, &mut bearer("t")).await, AuthVerdict::Refused(_)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), expired).await.expect("asked again once it expired");
}

#[tokio::test]
async fn tokens_are_found_where_the_config_says_and_nonsense_is_not_asked_about() {
    let server = Server::start(active()).await;
    let identity =
        server.identity(json!({"from": {"query": "access_token"}, "forwardToken": true, "clientAuth": "post"}));
    let mut rq = request("GET", "/a?access_token=abc&b=1");
    assert!(matches!(verdict(&identity, &mut rq).await, AuthVerdict::Accepted));
    assert_eq!(rq.target, "/a?access_token=abc&b=1");
    let (who, body) = server.heard.lock().expect("a lock")[0].clone();
    assert_eq!(who, None);
    assert_eq!(body, "token=abc&token_type_hint=access_token&client_id=gate%20way&client_secret=s%3Ae%25cret");
    assert!(matches!(verdict(&identity, &mut request("GET", "/a")).await, AuthVerdict::Absent));
    for bad in ["a%20b", "%00", "", "%3D%3D", "a=b"] {
        let mut rq = request("GET", &format!("/a?access_token={bad}"));
        assert!(matches!(verdict(&identity, &mut rq).await, AuthVerdict::Refused(_)), "{bad}");
    }
    assert_eq!(server.asked(), 1);
    assert_eq!(identity.challenge(None), "Bearer realm=\"corp\"");
}

#[tokio::test]
async fn strangers_cannot_fill_the_issuer_with_questions() {
    let server = Server::start(json!({"active": false})).await;
    *server.pause.lock().expect("a lock") = Duration::from_millis(400);
    let identity = server.identity(json!({}));
    let all = (0..flight::MAX_FLIGHTS + 10).map(|n| {
        let identity = &identity;
        async move {
            let mut rq = bearer(&format!("t{n}"));
            matches!(verdict(identity, &mut rq).await, AuthVerdict::Unavailable(_))
        }
    });
    let lost = futures_util::future::join_all(all).await.into_iter().filter(|lost| *lost).count();
    assert!(lost >= 10, "{lost}");
    assert!(server.asked() <= flight::MAX_FLIGHTS);
}

#[test]
fn the_same_section_keeps_what_is_remembered_and_another_does_not() {
    let mut estate = Estate::default();
    let directory = Directory::default();
    let mut with = |secret: &str| {
        let config = json!({"url": "https://id/i", "clientId": "a", "clientSecret": secret});
        introspection(&section(config), &mut estate.build("identities.corp", &directory))
            .unwrap_or_else(|e| panic!("{e}"))
            .issuer
    };
    let first = with("one");
    assert!(Arc::ptr_eq(&first, &with("one")));
    assert!(!Arc::ptr_eq(&first, &with("two")));
}

#[test]
fn bad_sections_name_their_cure() {
    let base = |more: Json| {
        let mut config = json!({"url": "https://id/i", "clientId": "a", "clientSecret": "b"});
        for (name, value) in more.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        config
    };
    for (bad, says) in [
        (json!({"clientId": "a", "clientSecret": "b"}), "`url` is missing"),
        (base(json!({"url": "http://id.example/i"})), "allowPlaintext"),
        (base(json!({"url": "ftp://id/"})), "neither https nor http"),
        (base(json!({"clientSecret": {"env": "ONEHOP_NO_SUCH"}})), "ONEHOP_NO_SUCH"),
        (base(json!({"audiences": []})), "no audience"),
        (base(json!({"cache": "2h"})), "out of range"),
        (base(json!({"timeout": "0s"})), "out of range"),
        (base(json!({"clientAuth": "jwt"})), "known here: basic, post"),
        (base(json!({"claimsToHeaders": {"sub": "authorization"}})), "cannot become"),
        (base(json!({"uri": "x"})), "did you mean `url`"),
    ] {
        let e = made(bad.clone(), &Directory::default()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

#[test]
fn a_token_has_the_form_of_one() {
    for (text, good) in
        [("abc", true), ("a.b-c_d~e+f/g==", true), ("", false), ("=", false), ("a b", false), ("a\u{e4}", false)]
    {
        assert_eq!(is_token(text), good, "{text}");
    }
    assert!(!is_token(&"a".repeat(core::MAX_TOKEN + 1)));
    let asked = question("/i", "a", "b", ClientAuth::Basic, "t").expect("a question");
    assert!(asked.headers()[AUTHORIZATION].is_sensitive());
    assert!(!format!("{asked:?}").contains("YTpi"), "the secret is not shown");
}

proptest::proptest! {
    #[test]
    fn no_answer_panics(body in "\\PC{0,64}", exp in proptest::num::f64::ANY) {
        let rules = Rules { issuer: None, audiences: None };
        let _ = answer(body.as_bytes(), &rules, 1e9);
        let _ = answer(json!({"active": true, "exp": exp}).to_string().as_bytes(), &rules, 1e9);
    }
}
