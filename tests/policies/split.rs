//! Which of several services a caller gets.

use super::common::{Endpoint, get, get_with};
use super::{config, start};

fn named(name: &'static str) -> Endpoint {
    Endpoint::start(move |_, _| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()).into_bytes())
}

#[test]
fn callers_stay_with_their_service() {
    let (blue, green) = (named("blue"), named("green"));
    let services = [("blue", blue.address, ""), ("green", green.address, "")];
    let route = |weights: (u32, u32)| {
        let (b, g) = weights;
        format!(
            "- {{ name: all, sticky: {{ by: \"header:x-user\" }}, to: [{{ service: blue, weight: {b} }}, {{ service: green, weight: {g} }}] }}"
        )
    };
    let hop = start(&route((50, 50)), &services, "");
    let ask = |user: usize| get_with(hop.at("web"), "a", "/", &format!("x-user: u{user}\r\n")).body();
    let first: Vec<String> = (0..100).map(ask).collect();
    assert_eq!(first, (0..100).map(ask).collect::<Vec<_>>(), "each gets the same again");
    let greens = first.iter().filter(|s| *s == "green").count();
    assert!((30..=70).contains(&greens), "{greens}");

    // More weight for green: nobody leaves it, and some come.
    let (status, text) = hop.reload(&config(&route((25, 75)), &services, ""));
    assert_eq!(status, 200, "{text}");
    let second: Vec<String> = (0..100).map(ask).collect();
    assert!(first.iter().zip(&second).all(|(a, b)| a == b || b == "green"), "nobody moves the other way");
    assert!(second.iter().filter(|s| *s == "green").count() > greens);
    let (status, text) = hop.reload(&config(&route((0, 1)), &services, ""));
    assert_eq!(status, 200, "{text}");
    assert!((0..20).all(|user| ask(user) == "green"));
}

#[test]
fn a_cookie_is_given_to_whoever_has_none() {
    let (blue, green) = (named("blue"), named("green"));
    let hop = start(
        "- { name: all, sticky: { cookie: split, maxAge: 7d }, to: [{ service: blue, weight: 1 }, { service: green, weight: 1 }] }",
        &[("blue", blue.address, ""), ("green", green.address, "")],
        "",
    );
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let first = get(hop.at("web"), "a", "/");
        let given = first.header("set-cookie").expect("a cookie");
        assert!(
            given.starts_with("split=") && given.contains("HttpOnly") && given.ends_with("Max-Age=604800"),
            "{given}"
        );
        let cookie = given.split(';').next().expect("a pair").to_owned();
        let again = get_with(hop.at("web"), "a", "/", &format!("cookie: other=1; {cookie}\r\n"));
        assert_eq!((again.body(), again.header("set-cookie")), (first.body(), None));
        seen.insert(again.body());
    }
    assert_eq!(seen.len(), 2, "both are used");
}

#[test]
fn a_canary_is_chosen_by_cookie() {
    let (blue, green) = (named("blue"), named("green"));
    let hop = start(
        "- { name: stable, to: blue }\n\
         - { name: canary, matches: [{ cookies: { canary: \"1\" } }, { cookies: { group: { regex: \"b.*\" } } }], to: green }",
        &[("blue", blue.address, ""), ("green", green.address, "")],
        "",
    );
    for (fields, expected) in [
        ("", "blue"),
        ("cookie: canary=1\r\n", "green"),
        ("cookie: a=b; canary=1; c=d\r\n", "green"),
        ("cookie: a=b\r\ncookie: canary=1\r\n", "green"),
        ("cookie: canary=10\r\n", "blue"),
        ("cookie: xcanary=1\r\n", "blue"),
        ("cookie: group=beta\r\n", "green"),
        ("x-cookie: canary=1\r\n", "blue"),
    ] {
        assert_eq!(get_with(hop.at("web"), "a", "/", fields).body(), expected, "{fields}");
    }
}

#[test]
fn each_service_has_its_own_fields() {
    let answer = |name: &'static str| {
        move |_: &str, _: &[u8]| {
            format!("HTTP/1.1 200 OK\r\nserver: {name}/9\r\ncontent-length: {}\r\n\r\n{name}", name.len()).into_bytes()
        }
    };
    let (old, new) = (Endpoint::start(answer("old")), Endpoint::start(answer("new")));
    let route = r#"
- name: all
  sticky: { by: "header:x-user" }
  transform: { request: { set: { x-stage: route, x-both: route } }, response: { set: { x-seen: "route" } } }
  to:
  - { service: old, weight: 50 }
  - service: new
    weight: 50
    request: { set: { x-stage: "canary of ${request.headers['x-user']}" }, add: { x-both: service }, remove: [cookie] }
    response: { set: { x-canary: "${route.name}", x-seen: service }, remove: [server] }
"#;
    let hop = start(route, &[("old", old.address, ""), ("new", new.address, "")], "");
    let ask = |user: usize| get_with(hop.at("web"), "a", "/", &format!("x-user: u{user}\r\ncookie: sid=1\r\n"));
    let answers: Vec<_> = (0..40).map(|user| (user, ask(user))).collect();
    let (user, canary) = answers.iter().find(|(_, answer)| answer.body() == "new").expect("some");
    assert_eq!((canary.header("x-canary"), canary.header("server")), (Some("all".to_owned()), None));
    assert_eq!(
        canary.header("x-seen"),
        Some("route".to_owned()),
        "the route's filters have the last word on the way out"
    );
    drop(ask(*user));
    let told = new.last().to_ascii_lowercase();
    assert!(told.contains(&format!("x-stage: canary of u{user}\r\n")) && !told.contains("cookie"), "{told}");
    assert!(told.contains("x-both: route\r\n") && told.contains("x-both: service\r\n"), "{told}");

    let (user, plain) = answers.iter().find(|(_, answer)| answer.body() == "old").expect("some");
    assert_eq!((plain.header("x-canary"), plain.header("server")), (None, Some("old/9".to_owned())));
    drop(ask(*user));
    let told = old.last().to_ascii_lowercase();
    assert!(told.contains("x-stage: route\r\n") && told.contains("cookie: sid=1\r\n"), "{told}");
}

#[test]
fn what_stands_in_for_an_answer_is_not_edited() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let hop = start(
        "- { name: all, to: [{ service: gone, response: { set: { x-edited: \"yes\" } } }] }",
        &[("gone", gone, ", fallback: { respond: { status: 203, body: resting } }")],
        "",
    );
    let answer = get(hop.at("web"), "a", "/");
    assert_eq!((answer.status(), answer.header("x-edited")), (203, None));
}
