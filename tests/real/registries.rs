//! Discovery from registries that other people wrote: Consul, etcd and Eureka.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::common::{Onehop, get};
use super::etcd::Etcd;
use super::kit::{Server, eventually, free_port, succeed, tool};
use super::nginx::Nginx;

fn site(says: &str) -> Nginx {
    Nginx::start(&format!("server {{ listen 127.0.0.1:PORT; return 200 \"{says}\\n\"; }}"))
}

fn onehop(discover: &str) -> Onehop {
    Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services: {{ up: {{ discover: {discover}, loadBalancer: {{ policy: round-robin }} }} }}\n"
    ))
}

fn says(onehop: &Onehop) -> String {
    get(onehop.at("web"), "a.example", "/").body()
}

/// The service as `/endpoints` shows it.
fn view(onehop: &Onehop) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&onehop.admin_get("/endpoints").body()).expect("JSON");
    all["services"]["up"].clone()
}

#[test]
fn etcd_keys_come_and_go() {
    let (one, two) = (site("one"), site("two"));
    let mut etcd = Etcd::start();
    etcd.put("/services/up/1", &one.address.to_string());
    etcd.put("/services/upper/1", "127.0.0.1:1");
    let onehop = onehop(&format!("{{ etcd: {{ prefix: /services/up/, servers: ['http://{}'] }} }}", etcd.address));
    eventually("the key is used", || says(&onehop) == "one\n");
    etcd.put("/services/up/2", &format!("{{\"Op\":0,\"Addr\":\"{}\",\"Metadata\":{{\"v\":\"2\"}}}}", two.address));
    eventually("the second joins", || says(&onehop) == "two\n");
    assert!(view(&onehop)["endpoints"].as_array().expect("a list").iter().any(|e| e["labels"]["v"] == "2"));
    etcd.delete("/services/up/1");
    eventually("the first leaves", || (0..4).all(|_| says(&onehop) == "two\n"));

    // The history that the watch would go on from is thrown away while it is cut off; nothing is lost by that.
    etcd.server = None;
    eventually("the failure shows", || view(&onehop)["stale"].is_string());
    assert!((0..4).all(|_| says(&onehop) == "two\n"), "the last answer stays");
    etcd.peerless_restart();
    etcd.put("/services/up/1", &one.address.to_string());
    etcd.ask("kv/compaction", "{\"revision\":\"5\"}");
    eventually("it is heard again", || says(&onehop) == "one\n");
}

struct Consul {
    address: SocketAddr,
    server: Option<Server>,
}

impl Consul {
    fn start() -> Self {
        let mut consul = Self { address: SocketAddr::from(([127, 0, 0, 1], free_port())), server: None };
        consul.serve();
        consul
    }

    /// Keeps nothing: a restarted one counts from the beginning again.
    fn serve(&mut self) {
        let mut command = tool("consul");
        command
            .args([
                "agent",
                "-dev",
                "-bind=127.0.0.1",
                "-client=127.0.0.1",
                "-log-level=error",
                "-disable-host-node-id",
            ])
            .args([format!("-http-port={}", self.address.port()), format!("-server-port={}", free_port())])
            .args([format!("-serf-lan-port={}", free_port()), format!("-serf-wan-port={}", free_port())])
            .args(["-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1"]);
        self.server = Some(Server::start(&mut command));
        let url = format!("http://{}/v1/status/leader", self.address);
        eventually("Consul has a leader", || {
            let answer = tool("curl").args(["-sf", &url]).output().expect("curl runs");
            answer.stdout.len() > 4
        });
    }

    fn put(&self, path: &str, body: &str) {
        let url = format!("http://{}/v1/agent/{path}", self.address);
        succeed(tool("curl").args(["-sfS", "-X", "PUT", "-d", body, &url]));
    }

    fn register(&self, id: &str, address: SocketAddr) {
        let body = format!(
            "{{\"ID\":\"{id}\",\"Name\":\"up\",\"Address\":\"{}\",\"Port\":{},\"Tags\":[\"v2\"],\
             \"Meta\":{{\"zone\":\"a\"}},\"Check\":{{\"TTL\":\"10m\",\"Status\":\"passing\"}}}}",
            address.ip(),
            address.port()
        );
        self.put("service/register", &body);
    }
}

#[test]
fn consul_instances_come_and_go() {
    let (one, two) = (site("one"), site("two"));
    let mut consul = Consul::start();
    consul.register("first", one.address);
    let onehop = onehop(&format!("{{ consul: {{ service: up, servers: ['http://{}'] }} }}", consul.address));
    eventually("the instance is used", || says(&onehop) == "one\n");
    let first = view(&onehop)["endpoints"][0].clone();
    assert_eq!((&first["zone"], &first["labels"]["tag.v2"]), (&"a".into(), &"".into()));
    for n in 0..20 {
        // The index runs ahead of what the next one begins with.
        consul.register(&format!("other-{n}"), two.address);
    }
    eventually("the second joins", || says(&onehop) == "two\n");
    consul.put("check/fail/service:first", "");
    eventually("what fails its check gets nothing", || (0..4).all(|_| says(&onehop) == "two\n"));

    consul.server = None;
    eventually("the failure shows", || view(&onehop)["stale"].is_string());
    assert!((0..4).all(|_| says(&onehop) == "two\n"), "the last answer stays");
    consul.serve();
    consul.register("first", one.address);
    eventually("it is heard again", || says(&onehop) == "one\n");
    consul.register("second", two.address);
    eventually("also of what comes then, whatever the index was before", || says(&onehop) == "two\n");
    assert!(view(&onehop)["errors"].as_u64() > Some(0));
}

struct Eureka {
    url: String,
    server: Option<Server>,
}

impl Eureka {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let libraries = root.join("target/real-java");
        assert!(libraries.is_dir(), "{} is missing: run tests/real/install.sh", libraries.display());
        let port = free_port();
        let mut command: Command = tool("java");
        command
            .args(["-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp", &format!("{}/*", libraries.display())])
            .arg(root.join("tests/real/java/Eureka.java"))
            .args([&format!("--server.port={port}"), "--server.address=127.0.0.1"])
            .args(["--eureka.client.register-with-eureka=false", "--eureka.client.fetch-registry=false"])
            // Answers are otherwise 30 s old.
            .args(["--eureka.server.use-read-only-response-cache=false", "--logging.level.root=error"])
            .arg("--spring.main.banner-mode=off");
        let server = Server::start(&mut command);
        let url = format!("http://127.0.0.1:{port}/eureka");
        let ready = || {
            tool("curl").args(["-sf", "-o", "/dev/null", &format!("{url}/apps")]).status().is_ok_and(|s| s.success())
        };
        for _ in 0..3 {
            // Java starts slowly where others use the machine too.
            if std::panic::catch_unwind(|| eventually("Eureka answers", ready)).is_ok() {
                break;
            }
        }
        assert!(ready(), "Eureka answers");
        Self { url, server: Some(server) }
    }

    fn register(&self, id: &str, address: SocketAddr) {
        let body = format!(
            "{{\"instance\":{{\"instanceId\":\"{id}\",\"hostName\":\"{id}\",\"app\":\"UP\",\"ipAddr\":\"{}\",\"status\":\"UP\",\
             \"port\":{{\"$\":{},\"@enabled\":\"true\"}},\"metadata\":{{\"zone\":\"a\"}},\
             \"dataCenterInfo\":{{\"@class\":\"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo\",\"name\":\"MyOwn\"}}}}}}",
            address.ip(),
            address.port()
        );
        let url = format!("{}/apps/UP", self.url);
        succeed(tool("curl").args(["-sfS", "-H", "content-type: application/json", "-d", &body, &url]));
    }

    fn ask(&self, method: &str, path: &str) {
        succeed(tool("curl").args(["-sfS", "-X", method, &format!("{}/apps/UP/{path}", self.url)]));
    }
}

#[test]
fn eureka_instances_come_and_go() {
    let (one, two) = (site("one"), site("two"));
    let mut eureka = Eureka::start();
    eureka.register("first", one.address);
    let onehop = onehop(&format!("{{ eureka: {{ app: up, servers: ['{}'], interval: 1s }} }}", eureka.url));
    eventually("the instance is used", || says(&onehop) == "one\n");
    assert_eq!(view(&onehop)["endpoints"][0]["zone"], "a");
    eureka.register("second", two.address);
    eventually("the second joins", || says(&onehop) == "two\n");
    eureka.ask("PUT", "first/status?value=OUT_OF_SERVICE");
    eventually("what an operator took out gets nothing", || (0..4).all(|_| says(&onehop) == "two\n"));
    eureka.ask("DELETE", "first/status?value=UP");
    eventually("and is back", || says(&onehop) == "one\n");
    eureka.ask("DELETE", "first");
    eventually("the first leaves", || (0..4).all(|_| says(&onehop) == "two\n"));

    eureka.server = None;
    eventually("the failure shows", || view(&onehop)["stale"].is_string());
    assert!((0..4).all(|_| says(&onehop) == "two\n"), "the last answer stays");
}
