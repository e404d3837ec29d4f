//! An etcd with a folder of its own.

use std::net::SocketAddr;

use super::kit::{Server, eventually, free_port, succeed, tool};

pub struct Etcd {
    pub address: SocketAddr,
    dir: tempfile::TempDir,
    pub server: Option<Server>,
}

impl Etcd {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut etcd = Self { address: SocketAddr::from(([127, 0, 0, 1], free_port())), dir, server: None };
        etcd.serve();
        etcd
    }

    fn serve(&mut self) {
        let (client, peer) = (format!("http://{}", self.address), format!("http://127.0.0.1:{}", free_port()));
        let mut command = tool("etcd");
        command
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"]);
        self.server = Some(Server::start(&mut command));
        eventually("etcd is healthy", || {
            let health = tool("curl").args(["-sf", &format!("{client}/health")]).output().expect("curl runs");
            String::from_utf8_lossy(&health.stdout).contains("\"true\"")
        });
    }

    pub fn ask(&self, path: &str, body: &str) {
        let url = format!("http://{}/v3/{path}", self.address);
        succeed(tool("curl").args(["-sfS", "-d", body, &url]));
    }

    pub fn put(&self, key: &str, value: &str) {
        use base64::Engine as _;
        let code = |text| base64::engine::general_purpose::STANDARD.encode(text);
        self.ask("kv/put", &format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", code(key), code(value)));
    }

    pub fn delete(&self, key: &str) {
        use base64::Engine as _;
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        self.ask("kv/deleterange", &format!("{{\"key\":\"{key}\"}}"));
    }

    /// Its peer address is part of its data: begins anew with what it knew of nobody else.
    pub fn peerless_restart(&mut self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("its data can be removed");
        self.serve();
        for n in 0..6 {
            self.put("/other", &n.to_string());
        }
    }
}
