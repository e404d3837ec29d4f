//! What the real-server tests share: tools that must exist, servers that end with their test, certificates.

use std::io::{BufRead, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// How long a server may take to start or a fact to come true. The machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A tool of the machine or one that `tests/real/install.sh` put into `target/`. Missing is a failure, never a skip.
pub fn tool(name: &str) -> Command {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let path = std::env::var("PATH").unwrap_or_default();
    let places = [target.join("real-venv/bin"), target.join("real-venv-envoy/bin"), target.join("real-bin")];
    let path = places.into_iter().chain(path.split(':').map(PathBuf::from)).chain(["/usr/sbin".into()]);
    match path.map(|dir| dir.join(name)).find(|file| file.is_file()) {
        Some(file) => Command::new(file),
        None => panic!("`{name}` is not installed: run tests/real/install.sh"),
    }
}

/// A script of `tests/real/python`, run by the Python that has gRPC, WebSocket and OTLP packages.
pub fn python(script: &str) -> Command {
    python_of("real-venv", script)
}

/// The same by the Python that has Envoy's messages.
pub fn python_of(place: &str, script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target").join(place).join("bin/python3");
    assert!(python.is_file(), "{} is missing: run tests/real/install.sh", python.display());
    let mut command = Command::new(python);
    command.arg("-u").arg(root.join("tests/real/python").join(script));
    command
}

/// Runs to the end (`limit` as an upper bound); what it printed. Its exit status is the caller's to judge.
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let mut bounded = Command::new("timeout");
    bounded.arg(format!("{}", limit.as_secs())).arg(command.get_program()).args(command.get_args());
    bounded.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{:?}: {e}", command.get_program()))
}

/// Runs to the end and wants success; standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command, Duration::from_secs(120));
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out
}

/// Standard output and standard error as text.
pub fn texts(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A server process; ended with SIGTERM when dropped, then for good.
pub struct Server {
    child: Child,
    input: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts it and keeps the lines of its standard output.
    pub fn start(command: &mut Command) -> Self {
        Self::spawn(command.stdin(Stdio::null()))
    }

    /// The same for one that is told what to do by lines on its standard input, see [`Server::tell`].
    pub fn start_listening(command: &mut Command) -> Self {
        Self::spawn(command.stdin(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{:?}: {e}", command.get_program()));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, kept) = (BufReader::new(child.stdout.take().expect("stdout is piped")), lines.clone());
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                kept.lock().expect("no panic under the lock").push(line);
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    /// As [`Server::start`], for a script that prints `port=N` once it listens on 127.0.0.1.
    pub fn start_on_a_port(command: &mut Command) -> (Self, SocketAddr) {
        let mut server = Self::start(command);
        let mut port = None;
        eventually("the server says where it listens", || {
            port = server.lines().iter().find_map(|line| line.strip_prefix("port=")?.parse().ok());
            assert!(port.is_some() || server.is_running(), "{command:?} ended");
            port.is_some()
        });
        (server, SocketAddr::from((Ipv4Addr::LOCALHOST, port.expect("found"))))
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("a server that listens to its input");
        writeln!(input, "{line}").expect("the server reads");
    }

    /// What it printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic under the lock").clone()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// Sends a signal by name, such as `HUP`.
    pub fn signal(&self, name: &str) {
        let ok = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(ok.is_ok_and(|status| status.success()), "the server takes SIG{name}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).stderr(Stdio::null()).status();
        for _ in 0..100 {
            if !self.is_running() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free on 127.0.0.1 now. For servers that cannot bind port 0 and tell.
pub fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("a bound socket").port()
}

/// Waits until this comes true.
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = SystemTime::now();
    while !is_true() {
        assert!(start.elapsed().is_ok_and(|waited| waited < PATIENCE), "it did not come true that {what}");
        thread::sleep(Duration::from_millis(25));
    }
}

/// Waits until something accepts connections there.
pub fn reachable(address: SocketAddr) {
    eventually(&format!("{address} accepts"), || TcpStream::connect(address).is_ok());
}

/// A certificate authority with a folder of its own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "onehop test CA");
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a certificate");
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("ca.pem"), root.pem()).expect("a file");
        Self { issuer: Issuer::new(params, key), dir }
    }

    /// Its root certificate.
    pub fn ca(&self) -> String {
        self.path("ca.pem")
    }

    /// Files of a certificate for these names, the first of which is its common name, and of its key.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        let name = |text: &&str| match text.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(Ia5String::try_from(*text).expect("an ASCII name")),
        };
        params.subject_alt_names = names.iter().map(name).collect();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = (self.path(&format!("{}.pem", names[0])), self.path(&format!("{}.key", names[0])));
        std::fs::write(&files.0, certificate.pem()).expect("a file");
        std::fs::write(&files.1, key.serialize_pem()).expect("a file");
        files
    }

    fn path(&self, file: &str) -> String {
        self.dir.path().join(file).display().to_string()
    }
}
