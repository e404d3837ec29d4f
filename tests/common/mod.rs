//! What black-box tests share: the built binary as a process, endpoints it can call, and raw bytes to throw at it.
#![allow(clippy::disallowed_types, reason = "seen from outside, the process is timed by the machine's clock")]
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod authority;
pub mod backend;
pub mod load;
pub mod streams;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub mod h2;

/// A running `onehop run`. Killed when dropped.
pub struct Onehop {
    child: Child,
    /// The config file; write it anew and call [`Onehop::reload`].
    pub config: PathBuf,
    dir: tempfile::TempDir,
    addresses: BTreeMap<String, SocketAddr>,
    log: Arc<Mutex<String>>,
}

impl Onehop {
    /// Starts with this configuration (listeners on port 0, `admin: { bind: "127.0.0.1:0" }`) and waits until it is ready.
    pub fn start(yaml: &str) -> Self {
        Self::start_with(yaml, &[])
    }

    /// As [`Onehop::start`], with environment variables.
    pub fn start_with(yaml: &str, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = dir.path().join("onehop.yaml");
        std::fs::write(&config, yaml).expect("the config can be written");
        Self::spawn(dir, config, env)
    }

    /// Runs a config file where it lies.
    pub fn run_file(config: &Path, env: &[(&str, &str)]) -> Self {
        Self::spawn(tempfile::tempdir().expect("a temporary folder"), config.to_owned(), env)
    }

    fn spawn(dir: tempfile::TempDir, config: PathBuf, env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(binary())
            .args(["run", "-c"])
            .arg(&config)
            .envs(env.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let kept = log.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.starts_with("onehop: ready") {
                    let _ = ready.send(line.clone());
                }
                let mut log = kept.lock().expect("no panic under the lock");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let Ok(line) = is_ready.recv_timeout(Duration::from_secs(20)) else {
            let _ = child.kill();
            panic!("onehop did not become ready:\n{}", log.lock().expect("no panic under the lock"));
        };
        let addresses = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter_map(|(name, address)| Some((name.to_owned(), address.parse().ok()?)))
            .collect();
        Self { child, config, dir, addresses, log }
    }

    /// Where a listener listens.
    pub fn at(&self, listener: &str) -> SocketAddr {
        *self.addresses.get(listener).unwrap_or_else(|| panic!("no listener {listener} in {:?}", self.addresses))
    }

    /// Where admin listens.
    pub fn admin(&self) -> SocketAddr {
        self.at("admin")
    }

    /// A folder of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Everything it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic under the lock").clone()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let ok = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(ok.is_ok_and(|s| s.success()), "the process takes SIG{name}");
    }

    /// Replaces the config and asks for a reload; the admin endpoint's status and body.
    pub fn reload(&self, yaml: &str) -> (u16, String) {
        let new = self.config.with_extension("new");
        std::fs::write(&new, yaml).expect("the config can be written");
        std::fs::rename(&new, &self.config).expect("the config can be replaced");
        let answer = exchange(
            self.admin(),
            b"POST /reload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
        (answer.status(), answer.body())
    }

    /// GETs an admin page.
    pub fn admin_get(&self, path: &str) -> Answer {
        get(self.admin(), "localhost", path)
    }

    /// Waits for the process to end; its exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let until = onehop_filters::contract::now() + limit;
        while onehop_filters::contract::now() < until {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Onehop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary under test: `ONEHOP_BIN`, else what Cargo built.
pub fn binary() -> PathBuf {
    std::env::var_os("ONEHOP_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_onehop")), PathBuf::from)
}

/// The bytes of one answer.
pub struct Answer(pub Vec<u8>);

impl Answer {
    /// Status of the (first) head, 0 if there is none.
    pub fn status(&self) -> u16 {
        self.text().split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }
    /// Everything, lossy.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
    /// What follows the first empty line.
    pub fn body(&self) -> String {
        self.text().split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())
    }
    /// First value of a field.
    pub fn header(&self, name: &str) -> Option<String> {
        let text = self.text();
        let head = text.split("\r\n\r\n").next().unwrap_or_default().to_owned();
        head.lines().skip(1).find_map(|line| {
            let (n, v) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim().to_owned())
        })
    }
}

/// Sends raw bytes and reads until the peer closes (or 5 s pass).
pub fn exchange(to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(to).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
    // The peer may refuse before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return Answer(answer),
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
        }
    }
}

/// A byte stream, encrypted or not.
pub trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A client connection that reads one answer at a time.
pub struct Client {
    wire: Box<dyn Wire>,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects.
    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
        stream.set_nodelay(true).expect("a socket option");
        Self::over(stream)
    }

    /// Speaks over what is connected already.
    pub fn over(wire: impl Wire + 'static) -> Self {
        Self { wire: Box::new(wire), buffer: Vec::new() }
    }

    /// Sends bytes. A peer that refused before it has read everything is no failure here.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.wire.write_all(bytes).and_then(|()| self.wire.flush());
    }

    /// One read; false: nothing more comes.
    fn more(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        match self.wire.read(&mut bytes) {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                true
            }
        }
    }

    /// Everything up to and with `end`; what there is if it does not come.
    pub fn until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut from = 0;
        loop {
            if let Some(at) = self.buffer[from..].windows(end.len()).position(|w| w == end) {
                return self.buffer.drain(..from + at + end.len()).collect();
            }
            from = self.buffer.len().saturating_sub(end.len());
            if !self.more() {
                return std::mem::take(&mut self.buffer);
            }
        }
    }

    /// So many bytes, or fewer if they end.
    pub fn exactly(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n && self.more() {}
        self.buffer.drain(..n.min(self.buffer.len())).collect()
    }

    /// The next head alone: for informational answers, answers to HEAD, and streams.
    pub fn head(&mut self) -> Answer {
        Answer(self.until(b"\r\n\r\n"))
    }

    /// The next answer with its body: by length, chunked (as on the wire), or to the end.
    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        if let Some(length) = answer.header("content-length").and_then(|l| l.parse().ok()) {
            answer.0.extend(self.exactly(length));
        } else if answer.header("transfer-encoding").is_some() {
            loop {
                let size = self.until(b"\r\n");
                let digits = String::from_utf8_lossy(&size).trim().to_owned();
                answer.0.extend(size);
                let Ok(n) = usize::from_str_radix(&digits, 16) else { return answer };
                if n == 0 {
                    loop {
                        let line = self.until(b"\r\n");
                        let last = line == b"\r\n" || line.is_empty();
                        answer.0.extend(line);
                        if last {
                            return answer;
                        }
                    }
                }
                answer.0.extend(self.exactly(n + 2));
            }
        }
        answer
    }

    /// Everything until the peer closes.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.buffer)
    }
}

/// Waits until `is` holds; panics after ten seconds.
pub fn eventually(what: &str, is: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(tokio::time::Instant::now() < until, "{what}: not within ten seconds");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A TCP server of which every connection is a script, on a thread of its own.
pub fn scripted(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A configuration with one listener, `edge`, one route and one service, `up`. Logs to standard error.
pub fn simple(up: &Endpoint) -> String {
    before(up.address)
}

/// As [`simple`], before any server.
pub fn before(up: impl std::fmt::Display) -> String {
    format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\nlisteners:\n  edge: {{ bind: \"127.0.0.1:0\" }}\n\
         routes:\n- {{ name: all, to: up }}\nservices:\n  up: {{ discover: {{ static: [\"{}\"] }} }}\n\
         telemetry: {{ accessLog: {{ path: /dev/stderr }} }}\n",
        up
    )
}

/// One GET on a connection of its own.
pub fn get(to: SocketAddr, host: &str, path: &str) -> Answer {
    get_with(to, host, path, "")
}

/// As [`get`], with extra header lines, each ended by CRLF.
pub fn get_with(to: SocketAddr, host: &str, path: &str, headers: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n");
    exchange(to, request.as_bytes())
}

/// A plain HTTP/1.1 endpoint on a thread per connection. Counts and keeps the heads it saw.
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Requests seen.
    pub requests: Arc<AtomicUsize>,
    /// Heads seen, as text.
    pub heads: Arc<Mutex<Vec<String>>>,
}

impl Endpoint {
    /// Answers every request with what `answer` makes of its head and body: the complete response bytes.
    pub fn start(answer: impl Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let requests = Arc::new(AtomicUsize::new(0));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let (count, seen) = (requests.clone(), heads.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, count, seen) = (answer.clone(), count.clone(), seen.clone());
                thread::spawn(move || serve(stream, &*answer, &count, &seen));
            }
        });
        Self { address, requests, heads }
    }

    /// Says 200 and `ok` to everything.
    pub fn ok() -> Self {
        Self::start(|_, _| b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n".to_vec())
    }

    /// Requests seen.
    pub fn seen(&self) -> usize {
        self.requests.load(SeqCst)
    }

    /// The last head seen.
    pub fn last(&self) -> String {
        self.heads.lock().expect("no panic under the lock").last().cloned().unwrap_or_default()
    }
}

fn serve(
    stream: TcpStream,
    answer: &(impl Fn(&str, &[u8]) -> Vec<u8> + ?Sized),
    count: &AtomicUsize,
    seen: &Mutex<Vec<String>>,
) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::new(stream);
    loop {
        let mut head = String::new();
        loop {
            let mut line = Vec::new();
            match input.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line == b"\r\n" => break,
                // Field values may be any bytes.
                Ok(_) => head.push_str(&String::from_utf8_lossy(&line)),
            }
        }
        let body = read_body(&head, &mut input);
        count.fetch_add(1, SeqCst);
        seen.lock().expect("no panic under the lock").push(head.clone());
        if out.write_all(&answer(&head, &body)).is_err() {
            return;
        }
    }
}

fn read_body(head: &str, input: &mut impl BufRead) -> Vec<u8> {
    let field = |name: &str| {
        head.lines().find_map(|l| {
            let (n, v) = l.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim().to_owned())
        })
    };
    let mut body = Vec::new();
    if let Some(length) = field("content-length").and_then(|l| l.parse::<u64>().ok()) {
        let _ = input.take(length).read_to_end(&mut body);
    } else if field("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            if input.read_line(&mut line).is_err() {
                break;
            }
            let size = u64::from_str_radix(line.trim().split(';').next().unwrap_or("0"), 16).unwrap_or(0);
            let _ = input.take(size).read_to_end(&mut body);
            let mut end = String::new();
            let _ = input.read_line(&mut end);
            if size == 0 {
                break;
            }
        }
    }
    body
}

/// Writes `shop.pb`, the descriptor set of the shop's services.
pub fn descriptors(dir: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/proto");
    let mut compiler = protox::Compiler::new([root]).expect("the folder is there");
    compiler.include_imports(true).open_file("shop/shop.proto").expect("the proto compiles");
    std::fs::write(dir.join("shop.pb"), compiler.encode_file_descriptor_set()).unwrap();
}
