//! Discovery from registries that other people wrote: etcd and Eureka.

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
