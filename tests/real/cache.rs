//! The cache in front of a real nginx, and under the public tests of HTTP caches.

use std::path::Path;
use std::time::Duration;

use super::common::{Answer, Onehop, get, get_with};
use super::kit::{Server, eventually, free_port, reachable, run, texts, tool};
use super::nginx::Nginx;

fn start(cache: &str, up: impl std::fmt::Display) -> Onehop {
    Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes: [{{ name: all, cache: {cache}, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{up}'] }}, retry: {{ attempts: 0 }} }} }}\n"
    ))
}

fn status(answer: &Answer) -> String {
    answer.header("cache-status").unwrap_or_default()
}

#[test]
fn nginx_serves_files_through_the_cache() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("page.txt");
    std::fs::write(&file, "0123456789").expect("written");
    let nginx = Nginx::start(&format!(
        "server {{ listen 127.0.0.1:PORT; root {at};\n\
         location / {{ add_header cache-control 'max-age=1, stale-if-error=600'; }}\n\
         location /by-language {{ alias {at}/page.txt; add_header cache-control max-age=60; add_header vary accept-language; }}\n\
         location /private {{ return 200 private; add_header cache-control private; }} }}",
        at = folder.path().display()
    ));
    let onehop = start("{}", nginx.address);
    let ask = |path: &str, fields: &str| get_with(onehop.at("web"), "a.example", path, fields);

    // Kept with nginx's own validators; a caller that has it is told so here.
    let first = ask("/page.txt", "");
    assert_eq!((first.status(), &*first.body()), (200, "0123456789"), "{}", first.text());
    let tag = first.header("etag").expect("nginx makes one");
    assert!(status(&ask("/page.txt", "")).contains("hit"), "fresh for a second");
    let unchanged = ask("/page.txt", &format!("if-none-match: {tag}\r\n"));
    assert_eq!((unchanged.status(), &*unchanged.body()), (304, ""));
    assert_eq!(nginx.served(), 1);

    // Once stale, nginx answers 304 and the body does not travel again.
    eventually("it is checked", || status(&ask("/page.txt", "")).contains("fwd-status=304"));
    // nginx takes size and second for its tag.
    std::fs::write(&file, "another text").expect("written");
    eventually("the new text", || ask("/page.txt", "").body() == "another text");

    // A part is asked of nginx itself, and what is kept stays whole.
    let part = ask("/page.txt", "range: bytes=0-6\r\n");
    assert_eq!((part.status(), &*part.body()), (206, "another"));
    assert_eq!(part.header("content-range").as_deref(), Some("bytes 0-6/12"));
    assert_eq!(ask("/page.txt", "").body(), "another text");

    // Each language its own.
    let served = nginx.served();
    for (language, new) in [("de", 1), ("en", 2), ("de", 2), ("en", 2)] {
        assert_eq!(ask("/by-language", &format!("accept-language: {language}\r\n")).body(), "another text");
        assert_eq!(nginx.served(), served + new, "{language}");
    }
    assert!(!status(&ask("/private", "")).contains("stored"));

    // nginx is gone: what it allowed to stand in does, everything else fails.
    drop(nginx);
    eventually("it is stale", || status(&ask("/page.txt", "")).contains("detail=stale-if-error"));
    assert_eq!(ask("/page.txt", "").body(), "another text");
    assert_eq!(ask("/never-asked", "").status(), 502);
}

#[test]
fn the_public_tests_of_http_caches() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/real-cache-tests/package");
    assert!(package.is_dir(), "{} is missing: run tests/real/install.sh", package.display());
    let port = free_port();
    let pidfile = tempfile::NamedTempFile::new().expect("a file");
    let mut server = tool("node");
    server.arg("--no-warnings").arg(package.join("server/server.mjs")).current_dir(&package);
    server.env("npm_config_protocol", "http").env("npm_config_port", port.to_string());
    let _server = Server::start(server.env("npm_config_pidfile", pidfile.path()));
    reachable(([127, 0, 0, 1], port).into());
    let onehop = start("{}", format!("127.0.0.1:{port}"));
    assert_eq!(get(onehop.at("web"), "a.example", "/state/none").status(), 404, "the server answers through the cache");

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/node/cache_tests.mjs");
    let mut client = tool("node");
    client.arg("--no-warnings").arg(script).arg(format!("http://{}", onehop.at("web")));
    let (out, err) = texts(&run(&mut client, Duration::from_secs(300)));
    assert!(out.ends_with("all\n"), "{out}\n{err}");
    // Of all lists of ages this one alone would count by its first member; a list is no age, and in doubt stale.
    let known = |line: &&str| !line.starts_with("missed=age-parse-prefix ");
    let missed: Vec<&str> = out.lines().filter(|line| line.starts_with("missed=")).filter(known).collect();
    assert!(missed.is_empty(), "{missed:#?}");
    let met = out.lines().find_map(|line| line.strip_prefix("required=met ")?.parse::<usize>().ok());
    assert!(met.is_some_and(|met| met >= 140), "{out}");
}
