//! Discovery from an xDS control plane that stands on go-control-plane, in both variants of the protocol.

use std::net::SocketAddr;

use super::common::{Onehop, get};
use super::kit::{Server, eventually, free_port, reachable, tool};
use super::nginx::Nginx;

struct ControlPlane {
    address: SocketAddr,
    server: Server,
}

impl ControlPlane {
    fn start(address: SocketAddr) -> Self {
        let server = Server::start_listening(tool("control-plane").arg(address.to_string()));
        reachable(address);
        Self { address, server }
    }

    /// Serves these assignments from now on, such as `up=127.0.0.1:80`; what is seen of it comes later.
    fn set(&mut self, version: &str, assignments: &str) {
        self.server.tell(&format!("set {version} {assignments}"));
        eventually("the snapshot is set", || self.server.lines().contains(&format!("set {version}")));
    }

    fn heard(&self, what: &[&str]) -> usize {
        self.server.lines().iter().filter(|line| what.iter().all(|word| line.contains(word))).count()
    }
}

fn site(says: &str) -> Nginx {
    Nginx::start(&format!("server {{ listen 127.0.0.1:PORT; return 200 \"{says}\\n\"; }}"))
}

fn onehop(plane: SocketAddr, mode: &str) -> Onehop {
    let eds = |name| {
        format!("{{ eds: {{ service: {name}, mode: {mode}, servers: ['http://{plane}'], node: {{ id: gw-1 }} }} }}")
    };
    Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes:\n\
         - {{ name: all, to: up }}\n\
         - {{ name: side, matches: [{{ path: {{ exact: /side }} }}], to: side }}\n\
         services:\n\
         \u{20} up: {{ discover: {}, loadBalancer: {{ policy: round-robin }} }}\n\
         \u{20} side: {{ discover: {} }}\n",
        eds("up"),
        eds("side")
    ))
}

fn says(onehop: &Onehop, path: &str) -> String {
    get(onehop.at("web"), "a.example", path).body()
}

fn only(onehop: &Onehop, expected: &str) -> bool {
    (0..4).all(|_| says(onehop, "/") == expected)
}

/// The service as `/endpoints` shows it.
fn view(onehop: &Onehop) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&onehop.admin_get("/endpoints").body()).expect("JSON");
    all["services"]["up"].clone()
}

fn follows_the_control_plane(mode: &str) {
    let (one, two) = (site("one"), site("two"));
    let mut plane = ControlPlane::start(SocketAddr::from(([127, 0, 0, 1], free_port())));
    plane.set("1", &format!("up={} side={}", one.address, two.address));
    let onehop = onehop(plane.address, mode);
    eventually("both services are known", || says(&onehop, "/") == "one\n" && says(&onehop, "/side") == "two\n");
    assert!(plane.heard(&[mode, "stream=1 ", "node=gw-1"]) > 0, "{:?}", plane.server.lines());
    assert_eq!(plane.heard(&["stream=2 "]), 0, "one stream for both: {:?}", plane.server.lines());
    let first = view(&onehop);
    assert_eq!(first["endpoints"][0]["zone"], "eu-1");
    assert_eq!(first["endpoints"][0]["labels"]["version"], "v2");
    assert!(first["stale"].is_null() && first["age_ms"].is_u64(), "{first}");

    plane.set("2", &format!("up={},{},-127.0.0.1:1 side={}", one.address, two.address, two.address));
    eventually("the second joins", || says(&onehop, "/") == "two\n");
    assert_eq!(view(&onehop)["endpoints"].as_array().map(Vec::len), Some(2), "who drains is not offered");

    // What is wrong is refused, and what was good goes on.
    plane.set("3", &format!("up={},! side={}", one.address, one.address));
    eventually("the refusal and its reason are heard", || plane.heard(&[mode, "up: an endpoint has no address"]) > 0);
    eventually("the other service takes its part", || says(&onehop, "/side") == "one\n");
    let wrong = view(&onehop);
    assert!(wrong["stale"].as_str().is_some_and(|why| why.contains("no address")), "{wrong}");
    assert_eq!(wrong["endpoints"].as_array().map(Vec::len), Some(2));

    plane.set("4", &format!("up={} side={}", two.address, one.address));
    eventually("the first leaves", || only(&onehop, "two\n"));
    assert!(view(&onehop)["stale"].is_null());

    let address = plane.address;
    drop(plane);
    eventually("the failure shows", || view(&onehop)["stale"].as_str().is_some_and(|why| why.contains("connect")));
    assert!(only(&onehop, "two\n"), "the last answer stays");

    let mut plane = ControlPlane::start(address);
    plane.set("5", &format!("up={},{} side={}", one.address, two.address, one.address));
    eventually("it is heard again", || says(&onehop, "/") == "one\n");
    let back = view(&onehop);
    assert!(back["stale"].is_null(), "{back}");
    assert!(back["endpoints"].as_array().expect("a list").iter().any(|e| e["tries"].as_u64() > Some(4)), "{back}");
}

#[test]
fn increments_come_from_a_control_plane() {
    follows_the_control_plane("delta");
}

#[test]
fn states_of_the_world_come_from_a_control_plane() {
    follows_the_control_plane("sotw");
}
