//! Discovery from the API server of Kubernetes, on an etcd of its own.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::common::{Onehop, get};
use super::etcd::Etcd;
use super::kit::{Authority, Server, eventually, free_port, succeed, tool};
use super::nginx::Nginx;

const TOKEN: &str = "a-token-for-tests";

struct ApiServer {
    address: SocketAddr,
    authority: Authority,
    dir: tempfile::TempDir,
    etcd: Etcd,
    server: Option<Server>,
}

impl ApiServer {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("tokens.csv"), format!("{TOKEN},gateway,1,\"system:masters\"\n"))
            .expect("a file");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut api = Self { address, authority: Authority::new(), dir, etcd: Etcd::start(), server: None };
        api.serve();
        api
    }

    fn serve(&mut self) {
        let (cert, key) = self.authority.issue(&["127.0.0.1"]);
        let (accounts, log) = (self.dir.path().join("accounts.key"), self.dir.path().join("log"));
        succeed(tool("openssl").args(["genrsa", "-out"]).arg(&accounts).arg("2048"));
        let accounts = accounts.display().to_string();
        let mut command = tool("kube-apiserver");
        command
            .args(["--etcd-servers", &format!("http://{}", self.etcd.address)])
            .args(["--bind-address", "127.0.0.1", "--secure-port", &self.address.port().to_string()])
            .args(["--tls-cert-file", &cert, "--tls-private-key-file", &key])
            .args(["--service-account-issuer", "https://kubernetes.example", "--service-account-key-file", &accounts])
            .args(["--service-account-signing-key-file", &accounts, "--service-cluster-ip-range", "10.0.0.0/24"])
            .args(["--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount"])
            .arg("--token-auth-file")
            .arg(self.dir.path().join("tokens.csv"))
            .arg("--cert-dir")
            .arg(self.dir.path());
        self.server = Some(Server::start(command.stderr(std::fs::File::create(&log).expect("a file"))));
        let ready = || self.curl(&["-o", "/dev/null", &self.url("/readyz")]).status().is_ok_and(|s| s.success());
        for _ in 0..3 {
            // It fills its caches and writes its roles first.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually("Kubernetes answers", ready)))
                .is_ok()
            {
                break;
            }
        }
        assert!(ready(), "Kubernetes answers: {}", std::fs::read_to_string(&log).unwrap_or_default());
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    fn curl(&self, args: &[&str]) -> std::process::Command {
        let mut curl = tool("curl");
        curl.args(["-sfS", "--cacert", &self.authority.ca(), "-H", &format!("Authorization: Bearer {TOKEN}")])
            .args(args);
        curl.stderr(std::process::Stdio::null());
        curl
    }

    fn send(&self, method: &str, path: &str, body: &serde_json::Value) {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let kind = format!("Content-Type: {kind}");
        succeed(&mut self.curl(&["-X", method, "-H", &kind, "-d", &body.to_string(), &self.url(path)]));
    }

    fn kubeconfig(&self) -> String {
        let file = self.dir.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{ name: test, cluster: {{ server: 'https://{}', certificate-authority: '{}' }} }}]\n\
             contexts: [{{ name: test, context: {{ cluster: test, user: gateway, namespace: shop }} }}]\n\
             users: [{{ name: gateway, user: {{ token: {TOKEN} }} }}]\n",
            self.address,
            self.authority.ca()
        );
        std::fs::write(&file, text).expect("a file");
        file.display().to_string()
    }
}

/// An address of this host that is not loopback, which Kubernetes takes for no endpoint. Sends nothing.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect("203.0.113.1:9").expect("a route out of this host");
    socket.local_addr().expect("bound").ip()
}

fn site(says: &str) -> Nginx {
    Nginx::start(&format!("server {{ listen 0.0.0.0:PORT; return 200 \"{says}\\n\"; }}"))
}

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";

/// A slice with one endpoint.
fn slice(name: &str, port: u16, ready: bool) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "up"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": [own_address().to_string()], "zone": "eu-1a",
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
        }],
    })
}

fn says(onehop: &Onehop) -> String {
    get(onehop.at("web"), "a.example", "/").body()
}

fn only(onehop: &Onehop, expected: &str) -> bool {
    (0..4).all(|_| says(onehop) == expected)
}

/// The service as `/endpoints` shows it.
fn view(onehop: &Onehop) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&onehop.admin_get("/endpoints").body()).expect("JSON");
    all["services"]["up"].clone()
}

#[test]
fn endpoint_slices_come_and_go() {
    let (one, two) = (site("one"), site("two"));
    let mut api = ApiServer::start();
    api.send("POST", "/api/v1/namespaces", &serde_json::json!({"metadata": {"name": "shop"}}));
    let ports = serde_json::json!([{"name": "http", "port": 80}]);
    let service = serde_json::json!({"metadata": {"name": "up"}, "spec": {"ports": ports}});
    api.send("POST", "/api/v1/namespaces/shop/services", &service);
    api.send("POST", SLICES, &slice("up-1", one.address.port(), true));
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         routes: [{{ name: all, to: up }}]\n\
         services:\n\
         \u{20} up:\n\
         \u{20}   discover: {{ kubernetes: {{ service: up, port: 80, kubeconfig: '{}' }} }}\n\
         \u{20}   loadBalancer: {{ policy: round-robin }}\n",
        api.kubeconfig()
    ));
    eventually("the slice is used", || says(&onehop) == "one\n");
    assert_eq!(view(&onehop)["endpoints"][0]["zone"], "eu-1a");
    api.send("POST", SLICES, &slice("up-2", two.address.port(), true));
    eventually("the second slice joins", || says(&onehop) == "two\n");
    assert_eq!(view(&onehop)["endpoints"].as_array().map(Vec::len), Some(2));
    let gone = slice("up-1", one.address.port(), false);
    api.send("PATCH", &format!("{SLICES}/up-1"), &serde_json::json!({"endpoints": gone["endpoints"]}));
    eventually("what is not ready gets nothing", || only(&onehop, "two\n"));

    api.server = None;
    eventually("the failure shows", || view(&onehop)["stale"].is_string());
    assert!(only(&onehop, "two\n"), "the last answer stays");
    api.serve();
    succeed(&mut api.curl(&["-X", "DELETE", "-o", "/dev/null", &api.url(&format!("{SLICES}/up-2"))]));
    api.send("PATCH", &format!("{SLICES}/up-1"), &serde_json::json!({"endpoints": slice("", 1, true)["endpoints"]}));
    eventually("it is heard again", || only(&onehop, "one\n"));
    let back = view(&onehop);
    assert!(back["stale"].is_null() && back["errors"].as_u64() > Some(0), "{back}");
    let metrics = onehop.admin_get("/metrics").body();
    assert!(metrics.contains("onehop_discovery_stale{service=\"up\"} 0"), "{metrics}");
}
