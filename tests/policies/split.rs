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
