//! The admin pages of a running process: what they show is what it does.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, SerialNumber, date_time_ymd};
use serde_json::{Value, json};

use common::{Answer, Onehop, eventually, exchange, get};

fn ask(to: SocketAddr, line: &str, body: &str) -> Answer {
    let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}", body.len());
    exchange(to, format!("{head}\r\n\r\n{body}").as_bytes())
}

fn page(hop: &Onehop, path: &str) -> Value {
    let answer = hop.admin_get(path);
    assert_eq!(answer.header("content-type").as_deref(), Some("application/json"), "{path}");
    serde_json::from_str(&answer.body()).unwrap()
}

fn config(listener: &str, more: &str) -> String {
    format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\nlifecycle: {{ drain: 5s, unready: 1s }}\n\
         listeners: {{ web: {{ bind: \"127.0.0.1:0\"{listener} }} }}\n\
         routes: [{{ name: pong, respond: {{ body: pong }} }}]\n{more}"
    )
}

#[test]
fn readiness_falls_with_the_drain_before_anybody_is_refused() {
    let mut hop = Onehop::start(&config("", ""));
    let (web, admin) = (hop.at("web"), hop.admin());
    assert_eq!((hop.admin_get("/readyz").status(), page(&hop, "/readyz")), (200, json!({ "ready": true })));
    assert_eq!(ask(admin, "GET /drain", "").status(), 405, "a link that is followed drains nothing");
    let answer = ask(admin, "POST /drain", "");
    assert_eq!((answer.status(), answer.body().trim()), (202, "{\n  \"draining\": true\n}"));
    eventually("readiness falls", || hop.admin_get("/readyz").status() == 503);
    assert_eq!(page(&hop, "/readyz"), json!({ "ready": false, "reason": "draining" }));
    assert_eq!(hop.admin_get("/livez").status(), 200, "who drains is alive");
    assert_eq!(get(web, "a", "/").status(), 200, "balancers have yet to look");
    assert_eq!(hop.wait(Duration::from_secs(10)), Some(0), "{}", hop.log());
}

/// Writes a certificate for these names under this serial number.
fn issue(dir: &Path, names: &[&str], serial: u64) -> String {
    let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2050, 1, 1));
    params.serial_number = Some(SerialNumber::from(serial));
    let key = KeyPair::generate().unwrap();
    std::fs::write(dir.join("web.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(dir.join("web.key"), key.serialize_pem()).unwrap();
    let (crt, key) = (dir.join("web.crt"), dir.join("web.key"));
    format!(", tls: {{ certificates: [{{ cert: \"{}\", key: \"{}\" }}] }}", crt.display(), key.display())
}

#[test]
fn certificates_are_shown_as_they_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&issue(dir.path(), &["shop.example", "*.shop.example", "10.0.0.1"], 0x1234), "");
    let hop = Onehop::start(&yaml);
    let expected = |names: &[&str], serial: &str| {
        json!({ "refused": [], "certificates": [{
            "listener": "web", "names": names, "serial": serial, "file": dir.path().join("web.crt"),
            "not_before": 1_577_836_800, "not_after": 2_524_608_000_u64,
        }] })
    };
    assert_eq!(page(&hop, "/certs"), expected(&["shop.example", "*.shop.example", "10.0.0.1"], "1234"));
    assert!(!hop.admin_get("/certs").text().contains("PRIVATE"));
    // New files under the same names are in use after a reload, and shown.
    issue(dir.path(), &["next.example"], 0x4321);
    assert_eq!(hop.reload(&yaml).0, 200);
    eventually("the new one is shown", || page(&hop, "/certs") == expected(&["next.example"], "4321"));
}

#[test]
fn a_log_filter_set_for_a_time_acts_and_goes_back_by_itself() {
    let yaml = config("", "telemetry: { log: warn }\n");
    let hop = Onehop::start(&yaml);
    // What a reload tells the log at level info.
    let reload = |n: u32| {
        let (status, body) = hop.reload(&format!("{yaml}# {n}\n"));
        assert_eq!(status, 200, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        format!("configuration in force generation={}\n", body["generation"])
    };
    let put = |body: &str| ask(hop.admin(), "PUT /logging", body);
    let before = page(&hop, "/logging");
    assert_eq!((&before["filter"], &before["until"]), (&json!("warn"), &Value::Null));
    let quiet = reload(1);
    assert_eq!(put(r#"{"filter": "loud"}"#).status(), 400);

    let set = put(r#"{"filter": "info", "for": "2s"}"#);
    let level: Value = serde_json::from_str(&set.body()).unwrap();
    assert_eq!((set.status(), &level["filter"], &level["configured"]), (200, &json!("info"), &json!("warn")));
    assert!(level["until"].is_string(), "{level}");
    let told = reload(2);
    eventually("what happens now is logged", || hop.log().contains(&told));

    eventually("the filter goes back", || page(&hop, "/logging") == before);
    let quiet_again = reload(3);
    // The log is in order: what is not there before this line was not written.
    assert_eq!(put("info").status(), 200);
    let last = reload(4);
    eventually("logged again", || hop.log().contains(&last));
    let log = hop.log();
    assert!(!log.contains(&quiet) && !log.contains(&quiet_again), "{log}");
}
