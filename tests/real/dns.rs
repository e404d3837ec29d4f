//! Discovery against dnsmasq: A, AAAA and SRV, records that change, a floor under the TTL, a server that dies.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::common::{Onehop, get};
use super::kit::{Server, eventually, free_port, tool};
use super::nginx::Nginx;

/// Two sites on one port: 127.0.0.2 says `two`, 127.0.0.3 says `three`, ::1 says `six`.
fn sites() -> Nginx {
    Nginx::start(
        "server { listen 127.0.0.1:PORT; return 200 \"one\\n\"; }\n\
         server { listen 127.0.0.2:PORT; return 200 \"two\\n\"; }\n\
         server { listen 127.0.0.3:PORT; return 200 \"three\\n\"; }\n\
         server { listen [::1]:PORT; return 200 \"six\\n\"; }",
    )
}

struct Dnsmasq {
    address: SocketAddr,
    dir: tempfile::TempDir,
    server: Server,
}

impl Dnsmasq {
    /// `hosts` as in /etc/hosts, `extra` as lines of its config.
    fn start(hosts: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let server = Self::serve(&dir, address, hosts, extra);
        Self { address, dir, server }
    }

    fn serve(dir: &tempfile::TempDir, address: SocketAddr, hosts: &str, extra: &str) -> Server {
        let (at, port) = (dir.path().display(), address.port());
        std::fs::write(dir.path().join("hosts"), hosts).expect("a file");
        let config = format!(
            "keep-in-foreground\nport={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nuser=\n\
             pid-file={at}/pid\naddn-hosts={at}/hosts\nlog-queries\nlog-facility={at}/log\nlog-async=0\n\
             local=/test/\n{extra}\n"
        );
        std::fs::write(dir.path().join("conf"), config).expect("a file");
        let server = Server::start(tool("dnsmasq").arg("-C").arg(dir.path().join("conf")));
        // It reads its files before it listens.
        eventually("dnsmasq listens", || std::net::TcpStream::connect(address).is_ok());
        server
    }

    /// Other hosts, read again on SIGHUP.
    fn change(&self, hosts: &str) {
        std::fs::write(self.dir.path().join("hosts"), hosts).expect("a file");
        self.server.signal("HUP");
    }

    fn log(&self) -> String {
        let file: PathBuf = self.dir.path().join("log");
        std::fs::read_to_string(file).unwrap_or_default()
    }

    fn questions(&self, what: &str) -> usize {
        self.log().lines().filter(|line| line.contains(what)).count()
    }
}

fn config(discover: &str) -> String {
    format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services: {{ up: {{ discover: {discover}, loadBalancer: {{ policy: round-robin }} }} }}\n"
    )
}

fn says(onehop: &Onehop) -> String {
    get(onehop.at("web"), "a.example", "/").body()
}

#[test]
fn addresses_follow_their_records() {
    let sites = sites();
    let dns = Dnsmasq::start("127.0.0.2 app.test\n", "local-ttl=1");
    let (port, resolver) = (sites.address.port(), dns.address);
    let onehop = Onehop::start(&config(&format!(
        "{{ dns: {{ name: app.test, port: {port}, resolver: '{resolver}', minTtl: 1s }} }}"
    )));
    eventually("the first answer is used", || says(&onehop) == "two\n");

    dns.change("127.0.0.2 app.test\n127.0.0.3 app.test\n");
    eventually("the second address joins", || says(&onehop) == "three\n");
    dns.change("127.0.0.3 app.test\n");
    eventually("the first address leaves", || (0..4).all(|_| says(&onehop) == "three\n"));

    drop(dns);
    // Longer than the records live and two questions take to fail.
    eventually("the failure shows", || onehop.admin_get("/endpoints").body().to_lowercase().contains("stale"));
    for _ in 0..8 {
        assert_eq!(says(&onehop), "three\n", "the last answer stays");
    }
}

#[test]
fn ipv6_addresses_are_used_when_asked_for() {
    let sites = sites();
    let dns = Dnsmasq::start("127.0.0.2 app.test\n::1 app.test\n", "local-ttl=1");
    let (port, resolver) = (sites.address.port(), dns.address);
    let onehop = Onehop::start(&config(&format!(
        "{{ dns: {{ name: app.test, port: {port}, resolver: '{resolver}', family: v6 }} }}"
    )));
    eventually("the AAAA record is used", || says(&onehop) == "six\n");
    assert_eq!((says(&onehop), dns.questions("query[A] app.test")), ("six\n".to_owned(), 0));
}

#[test]
fn of_two_families_the_one_that_works_is_used() {
    let both = sites();
    let four = Nginx::start(
        "server { listen 127.0.0.1:PORT; return 200 \"one\\n\"; }\n\
         server { listen 127.0.0.2:PORT; return 200 \"two\\n\"; }",
    );
    // Nobody listens at 127.0.0.9.
    for (hosts, port, expected) in [
        ("127.0.0.2 app.test\n::1 app.test\n", four.address.port(), "two\n"),
        ("127.0.0.9 app.test\n::1 app.test\n", both.address.port(), "six\n"),
        ("127.0.0.2 app.test\n::1 app.test\n", both.address.port(), "six\n"),
    ] {
        let dns = Dnsmasq::start(hosts, "local-ttl=60");
        let resolver = dns.address;
        let onehop =
            Onehop::start(&config(&format!("{{ dns: {{ name: app.test, port: {port}, resolver: '{resolver}' }} }}")));
        eventually("the answer is used", || get(onehop.at("web"), "a.example", "/").status() == 200);
        assert!((0..4).all(|_| says(&onehop) == expected), "never the other family: {hosts}");
        let endpoints = onehop.admin_get("/endpoints").body();
        assert_eq!(endpoints.matches("\"address\"").count(), 1, "{endpoints}");
    }
}

#[test]
fn service_records_give_ports_and_weights() {
    let sites = sites();
    let port = sites.address.port();
    let srv =
        |target: &str, priority: u16| format!("srv-host=_http._tcp.app.test,{target}.app.test,{port},{priority},3\n");
    let hosts = "127.0.0.2 two.app.test\n127.0.0.3 three.app.test\n";
    let mut dns = Dnsmasq::start(hosts, &("local-ttl=1\n".to_owned() + &srv("two", 1) + &srv("three", 2)));
    let resolver = dns.address;
    let onehop = Onehop::start(&config(&format!(
        "{{ srv: {{ name: _http._tcp.app.test, resolver: '{resolver}', minTtl: 1s }} }}"
    )));
    eventually("the record is used", || says(&onehop) == "two\n");
    assert!((0..8).all(|_| says(&onehop) == "two\n"), "the lower priority comes first");

    // dnsmasq reads these records only when it starts.
    drop(dns.server);
    dns.server = Dnsmasq::serve(&dns.dir, resolver, hosts, &("local-ttl=1\n".to_owned() + &srv("three", 1)));
    eventually("the new record is used", || (0..4).all(|_| says(&onehop) == "three\n"));
}

#[test]
fn a_short_ttl_does_not_make_many_questions() {
    let sites = sites();
    let dns = Dnsmasq::start("127.0.0.2 app.test\n", "local-ttl=0");
    let (port, resolver) = (sites.address.port(), dns.address);
    let onehop = Onehop::start(&config(&format!(
        "{{ dns: {{ name: app.test, port: {port}, resolver: '{resolver}', minTtl: 4s, family: v4 }} }}"
    )));
    eventually("the first answer is used", || says(&onehop) == "two\n");
    eventually("it asks again", || dns.questions("query[A] app.test") >= 2);
    let log = dns.log();
    let asked: Vec<u32> = log.lines().filter(|line| line.contains("query[A] app.test")).filter_map(second).collect();
    // A tenth of jitter below 4 s, and whole seconds in the log.
    assert!((asked[1] + 86_400 - asked[0]) % 86_400 >= 3, "{log}");
}

/// Second of the day of a line such as `Nov 22 16:52:34 dnsmasq[1]: ...`.
fn second(line: &str) -> Option<u32> {
    let clock = line.split_whitespace().nth(2)?;
    let parts: Vec<u32> = clock.split(':').filter_map(|part| part.parse().ok()).collect();
    (parts.len() == 3).then(|| parts[0] * 3600 + parts[1] * 60 + parts[2])
}
