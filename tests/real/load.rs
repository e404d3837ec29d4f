//! h2load and wrk: no request fails, whatever the protocol, and none while the configuration is swapped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::common::Onehop;
use super::kit::{Authority, run, succeed, texts, tool};
use super::nginx::Nginx;

fn upstream() -> Nginx {
    Nginx::start("server { listen 127.0.0.1:PORT; access_log off; location / { return 200 \"twelve bytes\"; } }")
}

#[test]
fn h2load_sees_no_failure() {
    let nginx = upstream();
    let authority = Authority::new();
    let (cert, key) = authority.issue(&["localhost", "127.0.0.1"]);
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 plain: {{ bind: '127.0.0.1:0' }}\n\
         \x20 tls: {{ bind: '127.0.0.1:0', tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{}'] }} }} }}\n",
        nginx.address
    ));
    for (listener, scheme, options) in [
        ("plain", "http", &["--h1"][..]),
        ("plain", "http", &["-m", "20"]),
        ("tls", "https", &["--h1"]),
        ("tls", "https", &["-m", "20"]),
    ] {
        let url = format!("{scheme}://127.0.0.1:{}/x", onehop.at(listener).port());
        let out = succeed(tool("h2load").args(["-n", "4000", "-c", "16", "-t", "1"]).args(options).arg(url));
        let wanted = "4000 total, 4000 started, 4000 done, 4000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(out.contains(wanted) && out.contains("4000 2xx"), "{listener} {options:?}: {out}");
    }
}

#[test]
fn wrk_sees_no_error_in_a_reload_storm() {
    let nginx = upstream();
    let config = |generation: u32| {
        format!(
            "version: 1\n\
             admin: {{ bind: '127.0.0.1:0' }}\n\
             listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
             routes:\n\
             - {{ name: all, to: up, transform: {{ response: {{ set: {{ x-generation: '{generation}' }} }} }} }}\n\
             - {{ name: other{generation}, matches: [{{ path: {{ prefix: /other }} }}], respond: {{ status: 200 }} }}\n\
             services: {{ up: {{ discover: {{ static: ['{}'] }}, connectTimeout: {}ms }} }}\n",
            nginx.address,
            1000 + generation
        )
    };
    let onehop = Onehop::start(&config(0));
    let url = format!("http://{}/x", onehop.at("web"));
    let over = Arc::new(AtomicBool::new(false));
    let storm_over = over.clone();
    let wrk = thread::spawn(move || {
        let output =
            run(tool("wrk").args(["-t1", "-c16", "-d6s", "--timeout", "20s"]).arg(url), Duration::from_secs(60));
        storm_over.store(true, SeqCst);
        output
    });
    let mut reloads = 0;
    while !over.load(SeqCst) {
        reloads += 1;
        let (status, text) = onehop.reload(&config(reloads));
        assert_eq!(status, 200, "{text}");
    }
    let output = wrk.join().expect("wrk ran");
    let (out, err) = texts(&output);
    assert!(output.status.success() && out.contains("requests in"), "{out}{err}");
    assert!(!out.contains("Socket errors") && !out.contains("Non-2xx"), "after {reloads} reloads: {out}");
    assert!(reloads >= 20, "{reloads} reloads are no storm");
    println!("{reloads} reloads\n{out}");
}
