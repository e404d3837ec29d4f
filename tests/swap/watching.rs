//! What starts a swap, what refuses one, and what becomes of the connections of a listener that changes.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::common::backend::{Backend, Mood};
use super::common::load::{Load, Plan};
use super::common::{Onehop, get};
use super::{series, until};

/// A configuration that says `word`.
fn says(word: &str) -> String {
    format!(
        r#"version: 1
admin: {{ bind: "127.0.0.1:0" }}
runtime: {{ workers: 2 }}
listeners: {{ web: {{ bind: "127.0.0.1:0" }} }}
routes: [{{ name: word, respond: {{ body: {word} }} }}]
"#
    )
}

fn word(hop: &Onehop) -> String {
    get(hop.at("web"), "localhost", "/").body()
}

fn replace(file: &Path, text: &str) {
    let new = file.with_extension("next");
    std::fs::write(&new, text).expect("the folder can be written");
    std::fs::rename(&new, file).expect("the file can be replaced");
}

#[test]
fn an_atomic_rename_is_seen() {
    let hop = Onehop::start(&says("before"));
    replace(&hop.config, &says("after"));
    until("the new word", || word(&hop) == "after");
}

#[test]
fn a_config_map_is_seen() {
    // As the kubelet does it: files in a dated folder, `..data` points there, the names point through `..data`.
    let dir = tempfile::tempdir().expect("a folder");
    let version = |name: &str, text: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("onehop.yaml"), text).expect("the folder can be written");
        let link = dir.path().join("..data_tmp");
        std::os::unix::fs::symlink(name, &link).expect("a link");
        std::fs::rename(link, dir.path().join("..data")).expect("the link can be replaced");
    };
    version("..2026_01", &says("before"));
    let config = dir.path().join("onehop.yaml");
    std::os::unix::fs::symlink("..data/onehop.yaml", &config).expect("a link");
    let hop = Onehop::run_file(&config, &[]);
    assert_eq!(word(&hop), "before");
    version("..2026_02", &says("after"));
    until("the new word", || word(&hop) == "after");
    std::fs::remove_dir_all(dir.path().join("..2026_01")).expect("the old folder can go");
    version("..2026_03", &says("again"));
    until("the third word", || word(&hop) == "again");
}

#[test]
fn a_half_written_file_is_not_believed() {
    let hop = Onehop::start(&says("before"));
    let whole = says("after");
    // As an editor without an atomic save: empty first, then a part, then the rest.
    std::fs::write(&hop.config, "").expect("the file can be written");
    for part in [20, whole.len() / 2, whole.len() - 8] {
        std::thread::sleep(Duration::from_millis(60));
        std::fs::write(&hop.config, &whole[..part]).expect("the file can be written");
        assert_eq!(word(&hop), "before");
    }
    std::thread::sleep(Duration::from_millis(60));
    std::fs::write(&hop.config, &whole).expect("the file can be written");
    until("the new word", || word(&hop) == "after");
    assert_eq!(series(&hop)["onehop_config_rejected_total"], 0.0, "no part was taken for the whole: {}", hop.log());
}

#[test]
fn a_hangup_reloads() {
    let hop = Onehop::start(&says("before"));
    let generation = series(&hop)["onehop_config_generation"];
    hop.signal("HUP");
    until("a reload of the same file", || series(&hop)["onehop_config_generation"] > generation);
}

#[test]
fn a_bad_file_is_told_everywhere_and_changes_nothing() {
    let hop = Onehop::start(&says("before"));
    replace(&hop.config, &says("after").replace("respond:", "responds:"));
    until("the refusal", || series(&hop)["onehop_config_rejected_total"] >= 1.0);
    assert_eq!(word(&hop), "before");
    until("the log", || hop.log().contains("onehop.yaml:5:"));
    let shown = hop.admin_get("/config").body();
    assert!(
        shown.contains("before") && !shown.contains("responds"),
        "what runs is shown, not what the file says: {shown}"
    );
    let health = hop.admin_get("/healthz");
    assert!(health.status() == 200 && health.body().contains("responds"), "{}", health.text());
    assert_eq!(series(&hop)["onehop_config_generation"], 1.0);
    // The next good one heals.
    replace(&hop.config, &says("after"));
    until("the new word", || word(&hop) == "after");
    assert!(!hop.admin_get("/healthz").body().contains("responds"));
}

/// The watch looks 150 ms after a change and sees what a reload has already read.
#[test]
fn a_reload_that_was_asked_for_happens_once() {
    let hop = Onehop::start(&says("before"));
    let count = |name: &str| series(&hop)[name];
    assert_eq!(hop.reload(&says("after")).0, 200);
    let bad = says("after").replace("respond:", "responds:");
    assert_eq!(hop.reload(&bad).0, 422);
    // The watch has looked by then; one that looks later fails nothing here, and is caught at the end.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((count("onehop_config_generation"), count("onehop_config_rejected_total")), (2.0, 1.0));
    assert!(hop.admin_get("/healthz").body().contains("responds"));
    replace(&hop.config, &says("after"));
    until("the file is as it runs again", || !hop.admin_get("/healthz").body().contains("responds"));
    replace(&hop.config, &says("last"));
    until("the last word", || word(&hop) == "last");
    assert_eq!((count("onehop_config_generation"), count("onehop_config_rejected_total")), (3.0, 1.0));
}

#[test]
fn a_bad_file_is_refused_with_its_place() {
    let hop = Onehop::start(&says("before"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = port.local_addr().expect("bound");
    let cases = [
        (says("[after"), "syntax", 5),
        (says("after").replace("respond: { body: after }", "to: nobody"), "nobody", 5),
        (
            says("after").replace("web: {", "web: { tls: { certificates: [{ cert: no.crt, key: no.key }] },"),
            "no.crt",
            4,
        ),
        (says("after").replace("web: {", &format!("more: {{ bind: \"{taken}\" }}, web: {{")), "listen on", 4),
        (says("after").replace("127.0.0.1:0\" }\nruntime", &format!("{taken}\" }}\nruntime")), "admin", 2),
    ];
    for (n, (yaml, word_in_it, line)) in cases.iter().enumerate() {
        let (status, body) = hop.reload(yaml);
        assert_eq!(status, 422, "case {n}: {body}");
        let report: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let first = &report[0];
        assert_eq!(first["line"], *line, "case {n}: {body}");
        assert!(first["column"].as_u64().is_some_and(|c| c > 0), "case {n}: {body}");
        assert!(*word_in_it == "syntax" || body.contains(word_in_it), "case {n}: {body}");
        assert_eq!(word(&hop), "before");
        assert_eq!(series(&hop)["onehop_config_generation"], 1.0);
    }
    assert!(series(&hop)["onehop_config_rejected_total"] >= 5.0);
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

/// Keep-alive clients over both versions.
fn clients(to: SocketAddr) -> [Load; 2] {
    let plan = Plan { pause: Duration::from_millis(2), ..Plan::get(to, "/") };
    [Plan { h2: true, ..plan.clone() }, plan].map(Load::start)
}

fn listeners(app: &Backend, listeners: &str) -> String {
    format!(
        r#"version: 1
admin: {{ bind: "127.0.0.1:0" }}
runtime: {{ workers: 2 }}
listeners: {{ {listeners} }}
routes: [{{ name: app, to: app }}]
services: {{ app: {{ discover: {{ static: ["{}"] }}, retry: {{ attempts: 0 }} }} }}
"#,
        app.address
    )
}

#[test]
fn a_listener_with_another_name_goes_on() {
    let (app, at) = (Backend::start(Mood::Slow(3)), free());
    let hop = Onehop::start(&listeners(&app, &format!("a: {{ bind: \"{at}\" }}")));
    let loads = clients(at);
    for n in 0..20 {
        loads.iter().for_each(|l| l.wait_for(10));
        let (status, body) = hop.reload(&listeners(&app, &format!("{}: {{ bind: \"{at}\" }}", ["b", "a"][n % 2])));
        assert_eq!(status, 200, "{body}");
    }
    for load in loads {
        load.stop().assert_clean("renamed listener", 100);
    }
}

#[test]
fn a_listener_that_leaves_finishes_its_work() {
    let (app, at) = (Backend::start(Mood::Slow(3)), free());
    let stays = "stays: { bind: \"127.0.0.1:0\" }";
    let both = listeners(&app, &format!("{stays}, goes: {{ bind: \"{at}\" }}"));
    let hop = Onehop::start(&both);
    for _ in 0..5 {
        let loads = clients(at);
        for load in &loads {
            load.wait_for(20);
            load.wind_down();
        }
        assert_eq!(hop.reload(&listeners(&app, stays)).0, 200);
        until("all clients are sent away", || loads.iter().all(Load::ended));
        for load in loads {
            load.stop().assert_clean("leaving listener", 20);
        }
        assert_eq!(get(hop.at("stays"), "localhost", "/").status(), 200);
        assert_eq!(hop.reload(&both).0, 200);
    }
}
