//! Injected faults: seen by callers and retries, never by what learns from endpoints.

use super::common::{Endpoint, get, get_with};
use super::{config, lines, metric, start};

const ALL: &str = "retry: { attempts: 2, retryOn: [connect-failure, 503, reset], backoff: 1ms, budget: { percent: 100%, minPerSecond: 1000 } }, \
                   outlierDetection: { consecutive5xx: 1, baseEjectionTime: 30s }";

#[test]
fn a_retry_is_proven_without_touching_the_application() {
    let up = Endpoint::ok();
    let more = format!(", {ALL}");
    let hop = start(
        "- { name: status, to: up, fault: { scope: attempt, tries: [1], abort: { status: 503 }, for: 1h } }\n\
         - { name: twice, matches: [{ path: { prefix: /twice } }], to: up, \
         fault: { scope: attempt, tries: [1, 2], abort: { failure: connect }, for: 1h } }\n\
         - { name: thrice, matches: [{ path: { prefix: /thrice } }], to: up, \
         fault: { scope: attempt, tries: [1, 2, 3], abort: { status: 503 }, for: 1h } }",
        &[("up", up.address, &more)],
        "",
    );
    let web = hop.at("web");
    let once = get(web, "a", "/");
    assert_eq!((once.status(), once.header("x-onehop-fault").as_deref()), (200, Some("abort")), "{}", once.text());
    assert!(up.last().to_lowercase().contains("x-onehop-attempt: 2\r\n"), "{}", up.last());
    assert_eq!(up.seen(), 1);
    let twice = get(web, "a", "/twice");
    assert_eq!(twice.status(), 200, "{}", twice.text());
    assert!(up.last().to_lowercase().contains("x-onehop-attempt: 3\r\n"), "{}", up.last());
    assert_eq!(up.seen(), 2);
    let thrice = get(web, "a", "/thrice");
    assert_eq!(thrice.status(), 503, "{}", thrice.text());
    assert!(thrice.body().contains("\"reason\":\"injected\""), "{}", thrice.text());
    assert_eq!(up.seen(), 2, "no try left this process");

    // One 5xx ejects an endpoint here; these were none of its.
    let endpoints = hop.admin_get("/endpoints").body();
    assert!(!endpoints.contains("\"failed\":1") && !endpoints.contains("\"ejected\":true"), "{endpoints}");
    assert_eq!(get(web, "a", "/").status(), 200);
    let line = lines(&hop).into_iter().find(|l| l["path"] == "/thrice").expect("a line");
    assert_eq!(
        (&line["reason"], &line["filter"], &line["attempts"]),
        (&"injected".into(), &"fault".into(), &3.into()),
        "{line}"
    );
    assert_eq!(metric(&hop, "onehop_faults_injected_total", &["route=\"thrice\"", "kind=\"abort\""]), 3.0);
}

#[test]
fn experiments_are_seen_and_end_by_themselves() {
    let up = Endpoint::ok();
    let routes = |length: &str| {
        format!(
            "- {{ name: all, to: up, fault: {{ abort: {{ status: 418 }}, for: {length} }} }}\n\
             - {{ name: over, matches: [{{ path: {{ prefix: /over }} }}], to: up, \
             fault: {{ abort: {{ status: 418 }}, expires: \"2020-01-01T00:00:00Z\" }} }}\n\
             - {{ name: asked, matches: [{{ path: {{ prefix: /asked }} }}], to: up, fault: {{ byHeader: true, for: 1d }} }}"
        )
    };
    let hop = start(&routes("1h"), &[("up", up.address, "")], "");
    let web = hop.at("web");
    let aborted = get(web, "a", "/");
    assert_eq!(
        (aborted.status(), aborted.header("x-onehop-fault").as_deref()),
        (418, Some("abort")),
        "{}",
        aborted.text()
    );
    assert_eq!(get(web, "a", "/over").status(), 200);
    let grpc = get_with(web, "a", "/asked", "content-type: application/grpc\r\nx-onehop-fault-abort: grpc-8\r\n");
    assert_eq!((grpc.status(), grpc.header("grpc-status").as_deref()), (200, Some("8")), "{}", grpc.text());
    let begun = onehop_filters::contract::now();
    let late = get_with(web, "a", "/asked", "x-onehop-fault-delay: 100ms\r\n");
    assert!(onehop_filters::contract::now().since(begun).as_millis() >= 100);
    assert_eq!((late.status(), late.header("x-onehop-fault").as_deref()), (200, Some("delay")), "{}", late.text());
    assert!(!up.last().contains("x-onehop-fault"), "{}", up.last());
    assert_eq!(get(web, "a", "/asked").status(), 200);

    // A short one is over soon, and a reload does not begin it again.
    let (status, text) = hop.reload(&config(&routes("30ms"), &[("up", up.address, "")], ""));
    assert_eq!(status, 200, "{text}");
    super::common::eventually("the experiment ends", || get(web, "a", "/").status() == 200);
    let (status, text) = hop.reload(&config(&routes("30ms").replace("418", "500"), &[("up", up.address, "")], ""));
    assert_eq!(status, 200, "{text}");
    assert_eq!(get(web, "a", "/").status(), 200);
}
