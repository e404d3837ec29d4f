use std::sync::Arc;

use http::HeaderValue;
use http::header::{COOKIE, SET_COOKIE};
use proptest::prelude::*;

use super::config::Section;
use super::core::Session;
use crate::api::fixture::request;
use crate::contract::mesh::Affinity;
use crate::contract::{RequestCx, Role};
use crate::mesh::bed::{self, Bed};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn built(bed: &mut Bed, json: &str) -> Result<Arc<dyn Affinity>, crate::contract::ConfigError> {
    let Role::Affinity(build) = super::ENTRY.role else { panic!("an affinity") };
    bed.build(|b| build(&bed::node(json), b))
}

fn cookie(json: &str) -> Arc<dyn Affinity> {
    built(&mut Bed::default(), json).expect("valid")
}

/// The cookie that an answer to this request sets.
fn given(rq: &RequestCx) -> Option<String> {
    let (name, value) = rq.reply_headers.last()?;
    assert_eq!(name, SET_COOKIE);
    Some(value.to_str().expect("text").to_owned())
}

fn with(cookie: &str) -> RequestCx {
    let mut rq = request("GET", "/");
    let pair = cookie.split(';').next().expect("a first part");
    rq.headers.insert(COOKIE, HeaderValue::try_from(format!("a=1; {pair}; b=2")).expect("a value"));
    rq
}

#[test]
fn a_caller_stays_where_it_was() {
    let sticky = cookie(&format!(r#"{{"cookie":"node","secret":"{SECRET}"}}"#));
    let set = bed::endpoints(&[1, 1]);
    let mut first = request("GET", "/");
    assert_eq!(sticky.wanted(&mut first), None);
    sticky.answered(&mut first, &set[0]);
    let token = given(&first).expect("a session begins");
    assert!(token.starts_with("node=") && token.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{token}");
    assert!(!token.contains("10.0.0.1") && !token.contains(&set[0].id.to_string()), "nothing leaks");

    let mut second = with(&token);
    assert_eq!(sticky.wanted(&mut second), Some(set[0].id));
    assert_eq!(second.headers[COOKIE], "a=1; b=2", "it does not go on to the endpoint");
    sticky.answered(&mut second, &set[0]);
    assert_eq!(given(&second), None, "nothing new to say");

    let mut moved = with(&token);
    assert_eq!(sticky.wanted(&mut moved), Some(set[0].id));
    sticky.answered(&mut moved, &set[1]);
    let next = given(&moved).expect("another endpoint, another session");
    assert_eq!(sticky.wanted(&mut with(&next)), Some(set[1].id));
}

#[test]
fn nobody_chooses_an_endpoint_by_himself() {
    let sticky = cookie(&format!(r#"{{"cookie":"node","secret":"{SECRET}"}}"#));
    let set = bed::endpoints(&[1]);
    let mut rq = request("GET", "/");
    sticky.answered(&mut rq, &set[0]);
    let token = given(&rq).expect("a session");
    let other = cookie(r#"{"cookie":"node","secret":"another secret of thirty-two bytes"}"#);
    assert_eq!(other.wanted(&mut with(&token)), None);
    let rotated =
        format!(r#"{{"cookie":"node","secret":"another secret of thirty-two bytes","previousSecrets":["{SECRET}"]}}"#);
    assert_eq!(cookie(&rotated).wanted(&mut with(&token)), Some(set[0].id));
    let sealed = token.split(['=', ';']).nth(1).expect("a value");
    for wrong in ["node=", "node=10.0.0.1:80", &format!("node={}", &sealed[1..]), &format!("node={}", "A".repeat(5000))]
    {
        assert_eq!(sticky.wanted(&mut with(wrong)), None, "{wrong}");
    }
    let mut twice = with(&token);
    twice.headers.append(COOKIE, HeaderValue::try_from(format!("node={sealed}")).expect("a value"));
    assert_eq!(sticky.wanted(&mut twice), None, "two are not chosen between");
    assert_eq!(twice.headers[COOKIE], "a=1; b=2");
}

#[test]
fn a_field_does_it_too() {
    let sticky = cookie(&format!(r#"{{"header":"x-session","secret":"{SECRET}"}}"#));
    let set = bed::endpoints(&[1]);
    let mut rq = request("GET", "/");
    sticky.answered(&mut rq, &set[0]);
    let (name, value) = rq.reply_headers.pop().expect("a session");
    assert_eq!(name, "x-session");
    let mut next = request("GET", "/");
    next.headers.insert("x-session", value);
    assert_eq!(sticky.wanted(&mut next), Some(set[0].id));
    assert!(!next.headers.contains_key("x-session"));
}

#[test]
fn a_secret_that_was_made_outlives_the_config() {
    let mut bed = Bed::default();
    let set = bed::endpoints(&[1]);
    let mut rq = request("GET", "/");
    built(&mut bed, r#"{"cookie":"node"}"#).expect("valid").answered(&mut rq, &set[0]);
    let token = given(&rq).expect("a session");
    let after = built(&mut bed, r#"{"cookie":"node","idleTimeout":"30m"}"#).expect("valid");
    assert_eq!(after.wanted(&mut with(&token)), Some(set[0].id));
    assert_eq!(cookie(r#"{"cookie":"node"}"#).wanted(&mut with(&token)), None, "another process");
}

#[test]
fn sessions_end() {
    let node = bed::node(r#"{"cookie":"n","absoluteTimeout":"1h","idleTimeout":"80s","lifetime":"permanent"}"#);
    let settings = node.read::<Section>().expect("reads").settings(&node).expect("valid");
    let session = Session { endpoint: 1, created: 1000, used: 2000 };
    assert!(session.lives(&settings, 2080) && !session.lives(&settings, 2081), "idle");
    assert!(!session.is_stale(&settings, 2009) && session.is_stale(&settings, 2010));
    let used = Session { used: 4590, ..session };
    assert!(used.lives(&settings, 4600) && !used.lives(&settings, 4601), "absolute");
    assert!(session.lives(&settings, 10), "the clock of who wrote it was ahead");
}

#[test]
fn a_permanent_cookie_says_how_long() {
    let sticky =
        cookie(&format!(r#"{{"cookie":"node","secret":"{SECRET}","absoluteTimeout":"8h","lifetime":"permanent"}}"#));
    let mut rq = request("GET", "/");
    rq.https = true;
    sticky.answered(&mut rq, &bed::endpoints(&[1])[0]);
    let token = given(&rq).expect("a session");
    assert!(token.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=28800; Secure"), "{token}");
}

#[test]
fn sections() {
    for bad in [
        "{}",
        r#"{"cookie":"a","header":"b"}"#,
        r#"{"cookie":"a b"}"#,
        r#"{"header":"a b"}"#,
        r#"{"cookie":"a","idleTimeout":"0s"}"#,
        r#"{"cookie":"a","idleTimeout":"1h","absoluteTimeout":"1h"}"#,
        r#"{"cookie":"a","lifetime":"permanent"}"#,
        r#"{"header":"a","lifetime":"permanent","absoluteTimeout":"1h"}"#,
        r#"{"cookie":"a","secret":"short"}"#,
    ] {
        assert!(built(&mut Bed::default(), bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(endpoint: u64, created: u64, used: u64) {
        let session = Session { endpoint, created, used };
        prop_assert_eq!(Session::read(&session.write()), Some(session));
    }
    #[test]
    fn anything_else_is_no_session(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        prop_assert_eq!(Session::read(&bytes).is_some(), bytes.len() == 24);
    }
}
