use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use onehop_filters::contract::Span;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use onehop_filters::contract::now;

use super::*;
use crate::config::plan::{Capture, Lifecycle, Limits, ListenerTls, Paths, ProxyProtocol};
use crate::edge::accept::{Accepted, Alpn};
use crate::edge::accept_io::Io;
use crate::edge::tls_testing::{Authority, connect, leaf};

/// A listener that this machine's balancers connect to.
fn behind_balancer() -> Listener {
    let trusted = Arc::from(["127.0.0.1/32".parse().unwrap()]);
    Listener { proxy_protocol: ProxyProtocol::Required, trusted, ..listener("in") }
}

fn listener(name: &str) -> Listener {
    Listener {
        name: name.into(),
        span: Span { file: 0, line: 7, column: 3 },
        bind: Bind::Tcp("127.0.0.1:0".parse().unwrap()),
        h1: true,
        h2: true,
        tcp: None,
        tls: None,
        trusted: Arc::from([]),
        proxy_protocol: ProxyProtocol::None,
        mesh: false,
        capture: None,
        passthrough: false,
        clients: None,
        limits: Limits {
            head: 32 * 1024,
            uri: 8 * 1024,
            fields: 100,
            body: None,
            streams: 100,
            connections: 1000,
            per_client: None,
            head_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            tls_timeout: Duration::from_secs(10),
            requests: None,
        },
        paths: Paths { reject_escaped_slashes: true, reject_underscores: true },
        via: false,
        accept_balance: false,
    }
}

fn tls(certificates: Vec<(PathBuf, PathBuf)>) -> ListenerTls {
    ListenerTls { mesh: false, certificates, only_13: false, client_ca: None, crl: Vec::new(), client_required: true }
}

/// A set whose connections arrive in a channel.
struct Rig {
    set: Arc<ListenerSet>,
    metrics: Arc<Registry>,
    accepted: mpsc::UnboundedReceiver<Accepted>,
}

impl Rig {
    fn new(workers: usize) -> Self {
        let (send, accepted) = mpsc::unbounded_channel();
        let handler = move |a: Accepted| {
            let _ = send.send(a);
        };
        let metrics = Arc::new(Registry::default());
        let handles = vec![Handle::current(); workers];
        Self { set: ListenerSet::new(handles.into(), Arc::new(handler), metrics.clone()), metrics, accepted }
    }

    fn apply(&self, listeners: impl IntoIterator<Item = Listener>) -> Result<(), ConfigError> {
        let wanted = listeners.into_iter().map(|l| (l.name.to_string(), Arc::new(l))).collect();
        self.set.apply(&wanted, None)?.commit();
        Ok(())
    }

    fn address(&self, name: &str) -> SocketAddr {
        match &self.set.addresses()[name] {
            Bind::Tcp(address) => *address,
            Bind::Unix(_) => panic!("{name} is a unix socket"),
        }
    }

    async fn dial(&self, name: &str) -> TcpStream {
        TcpStream::connect(self.address(name)).await.unwrap()
    }

    async fn next(&mut self) -> Accepted {
        soon(self.accepted.recv()).await.unwrap()
    }

    fn count(&self, listener: &str, outcome: &str) -> u64 {
        let labels = [("listener", listener), ("outcome", outcome)];
        self.metrics.counter("onehop_connections_total", "", &labels).value()
    }
}

/// A bound for what should happen at once, so that a failure is not a hang.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("happens soon")
}

/// Whether the peer ended the connection without a byte.
async fn closed(mut stream: impl tokio::io::AsyncRead + Unpin) -> bool {
    matches!(soon(stream.read(&mut [0; 8])).await, Ok(0) | Err(_))
}

async fn hello(accepted: &mut Accepted, client: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) {
    accepted.io.write_all(b"hello").await.unwrap();
    accepted.io.flush().await.unwrap();
    let mut text = [0; 5];
    soon(client.read_exact(&mut text)).await.unwrap();
    assert_eq!(&text, b"hello");
}

#[tokio::test]
async fn a_connection_knows_where_it_came_from() {
    let mut rig = Rig::new(1);
    let mut plan = listener("in");
    plan.trusted = Arc::from(["127.0.0.0/8".parse().unwrap()]);
    plan.mesh = true;
    rig.apply([plan]).unwrap();
    let mut client = rig.dial("in").await;
    let mut accepted = rig.next().await;
    assert_eq!(accepted.conn.peer, client.local_addr().unwrap());
    assert_eq!(accepted.conn.client, accepted.conn.peer);
    assert_eq!(accepted.conn.local, rig.address("in"));
    assert_eq!(&*accepted.conn.listener, "in");
    assert!(accepted.conn.trusted && accepted.conn.mesh && accepted.conn.tls.is_none());
    assert_eq!(accepted.alpn, Alpn::Unknown);
    hello(&mut accepted, &mut client).await;
}

#[tokio::test]
async fn a_reload_keeps_sockets_and_loads_settings_anew() {
    let mut rig = Rig::new(2);
    rig.apply([listener("in")]).unwrap();
    let before = rig.address("in");
    let first = rig.set.listeners().remove(0);
    let _client = rig.dial("in").await;
    let old = rig.next().await;

    let mut changed = listener("in");
    changed.limits.streams = 7;
    rig.apply([changed, listener("second")]).unwrap();
    assert_eq!(rig.address("in"), before);
    assert!(rig.set.listeners().iter().any(|l| Arc::ptr_eq(l, &first)), "the listener is the same one");
    assert_eq!(old.listener.drain.phase(), Phase::Running, "open connections are left alone");
    let _client = rig.dial("in").await;
    assert_eq!(rig.next().await.settings.plan.limits.streams, 7);
    let _client = rig.dial("second").await;
    assert_eq!(&*rig.next().await.conn.listener, "second");
}

#[tokio::test]
async fn a_removed_listener_refuses_and_its_connections_drain() {
    let mut rig = Rig::new(2);
    rig.apply([listener("stays"), listener("goes")]).unwrap();
    let gone = rig.address("goes");
    let mut client = rig.dial("goes").await;
    let mut accepted = rig.next().await;
    rig.apply([listener("stays")]).unwrap();
    soon(accepted.listener.drain.reached(Phase::Draining)).await;
    hello(&mut accepted, &mut client).await;
    assert_eq!(rig.set.connections(), 1, "still counted");
    soon(async {
        while TcpStream::connect(gone).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(accepted);
    while let Ok(late) = rig.accepted.try_recv() {
        drop(late);
    }
    assert_eq!(rig.set.connections(), 0);
    let _client = rig.dial("stays").await;
    assert_eq!(&*rig.next().await.conn.listener, "stays");
}

#[tokio::test]
async fn an_address_in_use_changes_nothing() {
    let mut rig = Rig::new(2);
    rig.apply([listener("in")]).unwrap();
    let address = rig.address("in");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bad = listener("other");
    bad.bind = Bind::Tcp(taken.local_addr().unwrap());
    let mut moved = listener("in");
    moved.limits.streams = 7;
    let error = rig.apply([moved, bad, listener("new")]).unwrap_err();
    assert_eq!(error.span.unwrap().line, 7);
    assert!(error.message.contains("`other`") && error.message.contains("in use"), "{error:?}");
    assert_eq!(rig.set.addresses().into_keys().collect::<Vec<_>>(), ["in"]);
    assert_eq!(rig.address("in"), address);
    let _client = rig.dial("in").await;
    assert_eq!(rig.next().await.settings.plan.limits.streams, 100);
}

#[tokio::test]
async fn two_listeners_cannot_share_an_address() {
    let rig = Rig::new(1);
    rig.apply([listener("in")]).unwrap();
    let bind = Bind::Tcp(rig.address("in"));
    let on = |name| Listener { bind: bind.clone(), ..listener(name) };
    let error = rig.apply([on("a"), on("b")]).unwrap_err();
    assert!(error.message.contains("`a` and `b`"));
}

#[tokio::test]
async fn a_change_of_kind_keeps_the_socket_and_drains_connections_of_the_old_kind() {
    let authority = Authority::new();
    let mut rig = Rig::new(2);
    rig.apply([listener("in")]).unwrap();
    let address = rig.address("in");
    let mut client = rig.dial("in").await;
    let mut old = rig.next().await;
    // Let in by the kernel under the old configuration, taken under the new one.
    let mut secure = listener("in");
    secure.tls = Some(tls(vec![authority.issue("a", &["a.test"])]));
    let dialled = std::net::TcpStream::connect(address).unwrap();
    rig.apply([secure]).unwrap();
    dialled.set_nonblocking(true).unwrap();
    let dialled = TcpStream::from_std(dialled).unwrap();
    assert_eq!(rig.address("in"), address);
    assert_eq!(old.listener.drain.phase(), Phase::Draining);
    let config = Arc::new(authority.client(None));
    let mut secured = soon(connect(&config, "a.test", dialled)).await.unwrap();
    let mut new = rig.next().await;
    assert!(new.conn.tls.is_some() && new.listener.drain.phase() == Phase::Running);
    hello(&mut new, &mut secured).await;
    hello(&mut old, &mut client).await;
    assert_eq!(rig.set.connections(), 2);
}

#[tokio::test]
async fn reloads_under_load_lose_no_connection() {
    let mut rig = Rig::new(2);
    rig.apply([listener("in")]).unwrap();
    let address = rig.address("in");
    let clients = tokio::spawn(async move {
        for _ in 0..200 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let mut text = [0; 5];
            soon(client.read_exact(&mut text)).await.unwrap();
        }
    });
    let mut round = 0u32;
    while !clients.is_finished() {
        tokio::select! {
            next = rig.accepted.recv() => next.unwrap().io.write_all(b"hello").await.unwrap(),
            () = tokio::task::yield_now() => {}
        }
        round += 1;
        let mut changed = listener("in");
        changed.limits.streams = round;
        changed.h2 = round.is_multiple_of(2);
        let extra = round.is_multiple_of(3).then(|| listener("extra"));
        rig.apply([changed].into_iter().chain(extra)).unwrap();
    }
    clients.await.unwrap();
}

#[tokio::test]
async fn over_the_cap_connections_are_closed_and_counted() {
    let mut rig = Rig::new(1);
    let mut plan = listener("in");
    plan.limits.connections = 1;
    rig.apply([plan]).unwrap();
    let _first = rig.dial("in").await;
    let held = rig.next().await;
    assert!(closed(rig.dial("in").await).await);
    assert_eq!((rig.count("in", "accepted"), rig.count("in", "over-limit")), (1, 1));
    let open = rig.metrics.gauge("onehop_connections_open", "", &[("listener", "in")]);
    assert_eq!(open.value(), 1);
    drop(held);
    assert_eq!(open.value(), 0);
    let _third = rig.dial("in").await;
    rig.next().await;
}

#[tokio::test]
async fn balanced_accept_deals_to_workers_in_turn() {
    let workers = crate::runtime::Workers::start(2).unwrap();
    let (send, mut threads) = mpsc::unbounded_channel();
    let handler = move |a: Accepted| {
        let _ = send.send((std::thread::current().name().map(str::to_owned), a));
    };
    let set = ListenerSet::new(workers.handles(), Arc::new(handler), Arc::default());
    let plan = Listener { accept_balance: true, ..listener("in") };
    set.apply(&BTreeMap::from([("in".to_owned(), Arc::new(plan))]), None).unwrap().commit();
    let Bind::Tcp(address) = set.addresses()["in"].clone() else { panic!("tcp") };
    let mut seen = Vec::new();
    for _ in 0..4 {
        let _client = TcpStream::connect(address).await.unwrap();
        seen.push(soon(threads.recv()).await.unwrap().0.unwrap());
    }
    assert_eq!(seen, ["worker-0", "worker-1", "worker-0", "worker-1"]);
}

#[tokio::test]
async fn the_kernel_spreads_connections_over_workers() {
    let workers = crate::runtime::Workers::start(2).unwrap();
    let (send, mut threads) = mpsc::unbounded_channel();
    let handler = move |_: Accepted| {
        let _ = send.send(onehop_filters::contract::worker::shard());
    };
    let set = ListenerSet::new(workers.handles(), Arc::new(handler), Arc::default());
    set.apply(&BTreeMap::from([("in".to_owned(), Arc::new(listener("in")))]), None).unwrap().commit();
    let Bind::Tcp(address) = set.addresses()["in"].clone() else { panic!("tcp") };
    let mut seen = std::collections::BTreeSet::new();
    // Each goes to either worker by a hash of its ports: all 100 to one is not going to happen.
    for _ in 0..100 {
        let _client = TcpStream::connect(address).await.unwrap();
        seen.insert(soon(threads.recv()).await.unwrap());
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_handler_that_panics_costs_one_connection() {
    let (send, mut accepted) = mpsc::unbounded_channel();
    let first = AtomicBool::new(true);
    let handler = move |a: Accepted| {
        assert!(!first.swap(false, SeqCst), "on purpose");
        let _ = send.send(a);
    };
    let set = ListenerSet::new([Handle::current()].into(), Arc::new(handler), Arc::default());
    set.apply(&BTreeMap::from([("in".to_owned(), Arc::new(listener("in")))]), None).unwrap().commit();
    let Bind::Tcp(address) = set.addresses()["in"].clone() else { panic!("tcp") };
    assert!(closed(TcpStream::connect(address).await.unwrap()).await);
    assert_eq!(set.connections(), 0);
    let _fine = TcpStream::connect(address).await.unwrap();
    soon(accepted.recv()).await.unwrap();
}

#[tokio::test]
async fn asking_callers_for_certificates_ends_connections_that_were_not_asked() {
    let authority = Authority::new();
    let mut rig = Rig::new(1);
    let mut plan = listener("in");
    plan.tls = Some(tls(vec![authority.issue("a", &["a.test"])]));
    rig.apply([plan.clone()]).unwrap();
    let config = Arc::new(authority.client(None));
    let _client = soon(connect(&config, "a.test", rig.dial("in").await)).await.unwrap();
    let anonymous = rig.next().await;
    rig.apply([plan.clone()]).unwrap();
    assert_eq!(anonymous.listener.drain.phase(), Phase::Running);
    plan.tls.as_mut().unwrap().client_ca = Some(authority.ca());
    rig.apply([plan]).unwrap();
    assert_eq!(anonymous.listener.drain.phase(), Phase::Draining);
}

#[tokio::test]
async fn unix_sockets_replace_stale_files_and_clean_up() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "stale");
    let mut rig = Rig::new(2);
    let on_path = || Listener { bind: Bind::Unix(path.clone()), ..listener("in") };
    rig.apply([on_path()]).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut client = UnixStream::connect(&path).await.unwrap();
    let mut accepted = rig.next().await;
    assert!(matches!(accepted.io, Io::Unix(_)));
    assert!(accepted.conn.peer.ip().is_unspecified());
    hello(&mut accepted, &mut client).await;

    rig.apply([Listener { h2: false, ..on_path() }]).unwrap();
    let _client = UnixStream::connect(&path).await.unwrap();
    assert_eq!(rig.next().await.alpn, Alpn::H1);
    rig.apply([]).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn a_unix_path_that_is_taken_is_an_error_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(1);
    let on = |path: &PathBuf| Listener { bind: Bind::Unix(path.clone()), ..listener("in") };
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(rig.apply([on(&file)]).unwrap_err().message.contains("not a socket"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let socket = dir.path().join("socket");
    let _other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(rig.apply([on(&socket)]).unwrap_err().message.contains("another process"));
    let staged = rig.set.apply(&BTreeMap::from([("in".into(), Arc::new(on(&dir.path().join("new"))))]), None).unwrap();
    drop(staged);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "what is not committed leaves no file");
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";

fn v2() -> Vec<u8> {
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 1, 187]].concat()
}

async fn first_bytes(accepted: &mut Accepted, n: usize) -> Vec<u8> {
    let mut bytes = accepted.first.to_vec();
    while bytes.len() < n {
        let mut more = [0; 64];
        let got = soon(accepted.io.read(&mut more)).await.unwrap();
        assert!(got > 0);
        bytes.extend(&more[..got]);
    }
    bytes
}

#[tokio::test]
async fn proxy_headers_name_the_client_and_leave_the_rest() {
    for header in [V1.to_vec(), v2()] {
        let mut rig = Rig::new(1);
        rig.apply([behind_balancer()]).unwrap();
        let mut client = rig.dial("in").await;
        client.set_nodelay(true).unwrap();
        for part in header.chunks(5) {
            client.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut accepted = rig.next().await;
        assert_eq!(accepted.conn.client, "192.0.2.7:56324".parse().unwrap());
        assert_eq!(accepted.conn.peer, client.local_addr().unwrap());
        assert_eq!(first_bytes(&mut accepted, 16).await, b"GET / HTTP/1.1\r\n");
    }
}

#[tokio::test]
async fn a_required_proxy_header_is_required_and_must_be_right() {
    let rig = Rig::new(1);
    rig.apply([behind_balancer()]).unwrap();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 nonsense\r\n"] {
        let mut client = rig.dial("in").await;
        client.write_all(bytes).await.unwrap();
        assert!(closed(client).await);
    }
    assert_eq!(rig.count("in", "proxy-failed"), 2);
}

#[tokio::test]
async fn a_required_proxy_header_is_taken_from_trusted_peers_only() {
    let mut rig = Rig::new(1);
    let trusted = Arc::from(["192.0.2.0/24".parse().unwrap()]);
    rig.apply([Listener { trusted, ..behind_balancer() }]).unwrap();
    let mut stranger = rig.dial("in").await;
    stranger.write_all(V1).await.unwrap();
    assert!(closed(stranger).await);
    assert_eq!(rig.count("in", "proxy-failed"), 1);
    assert!(rig.accepted.try_recv().is_err());
}

#[tokio::test]
async fn an_optional_proxy_header_is_believed_from_trusted_peers_only() {
    let mut rig = Rig::new(1);
    let mut plan = Listener { proxy_protocol: ProxyProtocol::Optional, ..listener("in") };
    rig.apply([plan.clone()]).unwrap();
    let mut stranger = rig.dial("in").await;
    stranger.write_all(V1).await.unwrap();
    let mut accepted = rig.next().await;
    assert_eq!(accepted.conn.client, accepted.conn.peer);
    assert_eq!(first_bytes(&mut accepted, V1.len()).await, V1, "a stranger's bytes are data");

    plan.trusted = Arc::from(["127.0.0.1/32".parse().unwrap()]);
    rig.apply([plan]).unwrap();
    let mut balancer = rig.dial("in").await;
    balancer.write_all(V1).await.unwrap();
    assert_eq!(rig.next().await.conn.client, "192.0.2.7:56324".parse().unwrap());
    let mut bare = rig.dial("in").await;
    bare.write_all(b"PUT / HTTP/1.1\r\n").await.unwrap();
    let mut accepted = rig.next().await;
    assert_eq!(first_bytes(&mut accepted, 16).await, b"PUT / HTTP/1.1\r\n");
}

#[tokio::test]
async fn a_silent_peer_is_cut_off_by_one_deadline() {
    let authority = Authority::new();
    let mut rig = Rig::new(1);
    let mut plan = behind_balancer();
    plan.tls = Some(tls(vec![authority.issue("a", &["a.test"])]));
    plan.limits.tls_timeout = Duration::from_millis(60);
    rig.apply([plan]).unwrap();
    let started = now();
    let silent = rig.dial("in").await;
    let mut half = rig.dial("in").await;
    half.write_all(V1).await.unwrap();
    assert!(closed(silent).await);
    assert!(closed(half).await);
    assert!(now().since(started) >= Duration::from_millis(60));
    assert_eq!(rig.count("in", "timed-out"), 2);
    assert!(rig.accepted.try_recv().is_err());
}

#[tokio::test]
async fn tls_behind_a_proxy_header() {
    let authority = Authority::new();
    let mut rig = Rig::new(1);
    let mut plan = behind_balancer();
    plan.tls = Some(tls(vec![authority.issue("a", &["a.test"])]));
    rig.apply([plan]).unwrap();
    let mut tcp = rig.dial("in").await;
    tcp.write_all(&v2()).await.unwrap();
    let mut config = authority.client(None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = soon(connect(&Arc::new(config), "a.test", tcp)).await.unwrap();
    let mut accepted = rig.next().await;
    assert_eq!(accepted.alpn, Alpn::H2);
    assert_eq!(accepted.conn.client, "192.0.2.7:56324".parse().unwrap());
    let seen = accepted.conn.tls.as_ref().unwrap();
    assert_eq!((seen.sni.as_deref(), seen.version), (Some("a.test"), "TLSv1.3"));
    assert!(seen.workload.is_none());
    hello(&mut accepted, &mut client).await;
}

#[tokio::test]
async fn changed_certificate_files_serve_new_handshakes_and_bad_ones_do_not() {
    let authority = Authority::new();
    let mut rig = Rig::new(1);
    let files = authority.issue("a", &["a.test"]);
    let mut plan = listener("in");
    plan.tls = Some(tls(vec![files.clone()]));
    rig.apply([plan]).unwrap();
    let config = Arc::new(authority.client(None));
    let old = leaf(&files.0);

    let mut standing = soon(connect(&config, "a.test", rig.dial("in").await)).await.unwrap();
    let mut held = rig.next().await;
    rig.set.reload_certificates();
    assert!(!rig.set.listeners()[0].settings().tls.as_ref().unwrap().stale());

    std::fs::write(&files.0, "broken").unwrap();
    rig.set.reload_certificates();
    let error = rig.set.listeners()[0].certificate_error().unwrap();
    assert!(error.contains("a.pem"), "{error}");
    let served = soon(connect(&Arc::new(authority.client(None)), "a.test", rig.dial("in").await)).await.unwrap();
    assert_eq!(served.get_ref().1.peer_certificates().unwrap()[0], old);

    authority.issue("a", &["a.test"]);
    let new = leaf(&files.0);
    assert_ne!(new, old);
    rig.set.reload_certificates();
    assert_eq!(rig.set.listeners()[0].certificate_error(), None);
    let served = soon(connect(&Arc::new(authority.client(None)), "a.test", rig.dial("in").await)).await.unwrap();
    assert_eq!(served.get_ref().1.peer_certificates().unwrap()[0], new);
    let resumed = soon(connect(&config, "a.test", rig.dial("in").await)).await.unwrap();
    assert!(resumed.get_ref().1.peer_certificates().is_some());
    hello(&mut held, &mut standing).await;
}

#[tokio::test]
async fn sessions_resume_across_reloads_but_never_with_client_auth() {
    let authority = Authority::new();
    let mut rig = Rig::new(1);
    let mut plan = listener("in");
    plan.tls = Some(tls(vec![authority.issue("a", &["a.test"])]));
    let me = authority.issue("me", &["spiffe://test/me"]);
    let config = Arc::new(authority.client(Some(&me)));
    let mut kinds = Vec::new();
    for round in 0..5 {
        // From the third round on a client certificate is asked for.
        plan.tls.as_mut().unwrap().client_ca = (round >= 3).then(|| authority.ca());
        rig.apply([plan.clone()]).unwrap();
        let mut client = soon(connect(&config, "a.test", rig.dial("in").await)).await.unwrap();
        kinds.push(client.get_ref().1.handshake_kind().unwrap());
        let mut accepted = rig.next().await;
        // The ticket comes with the first bytes.
        hello(&mut accepted, &mut client).await;
        assert_eq!(accepted.conn.tls.unwrap().workload.is_some(), round >= 3);
    }
    use HandshakeKind::{Full, Resumed};
    assert!(matches!(kinds[..], [Full, Resumed, Resumed, Full, Full]), "{kinds:?}");
}

#[tokio::test]
async fn client_certificates_required_optional_and_of_a_stranger() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let me = authority.issue("me", &["spiffe://test/me"]);
    let other = stranger.issue("me", &["spiffe://test/me"]);
    for required in [true, false] {
        let mut rig = Rig::new(1);
        let mut plan = listener("in");
        let own = authority.issue("a", &["a.test"]);
        plan.tls = Some(ListenerTls { client_ca: Some(authority.ca()), client_required: required, ..tls(vec![own]) });
        rig.apply([plan]).unwrap();
        for (identity, id) in [(Some(&me), Some("spiffe://test/me")), (None, None), (Some(&other), None)] {
            let config = Arc::new(authority.client(identity));
            let client = soon(connect(&config, "a.test", rig.dial("in").await)).await;
            let welcome = id.is_some() || (identity.is_none() && !required);
            if welcome {
                let accepted = rig.next().await;
                let workload = accepted.conn.tls.unwrap().workload;
                assert_eq!(workload.as_ref().map(|w| &*w.id), id);
            } else if let Ok(client) = client {
                // With TLS 1.3 the client is done before the server has judged its certificate.
                assert!(closed(client).await);
            }
        }
        assert_eq!(rig.count("in", "tls-failed"), if required { 2 } else { 1 });
        assert!(rig.accepted.try_recv().is_err());
    }
}

#[tokio::test]
async fn drain_waits_for_connections_and_stops_accepting() {
    let mut rig = Rig::new(2);
    rig.apply([listener("in")]).unwrap();
    let address = rig.address("in");
    let _client = rig.dial("in").await;
    let held = rig.next().await;
    let how = Lifecycle {
        drain: Duration::from_secs(60),
        unready: Duration::from_millis(1),
        outbound_until_app_exits: false,
    };
    let set = rig.set.clone();
    let drained = tokio::spawn(async move { set.drain(&how).await });
    soon(rig.set.drain.reached(Phase::Unready)).await;
    soon(held.listener.drain.reached(Phase::Draining)).await;
    soon(async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    while let Ok(late) = rig.accepted.try_recv() {
        drop(late);
    }
    assert!(!drained.is_finished());
    drop(held);
    assert!(soon(drained).await.unwrap(), "nothing had to be cut");
    assert_eq!(rig.set.drain.phase(), Phase::Kill);
}

#[tokio::test]
async fn what_the_kernel_let_in_before_the_drain_is_served_before_its_end() {
    let mut rig = Rig::new(1);
    rig.apply([listener("in")]).unwrap();
    let waiting = std::net::TcpStream::connect(rig.address("in")).unwrap();
    let how = Lifecycle { drain: Duration::from_secs(60), unready: Duration::ZERO, outbound_until_app_exits: false };
    let set = rig.set.clone();
    // Nothing was accepted yet: this runtime's only thread is busy here.
    let drained = tokio::spawn(async move { set.drain(&how).await });
    let mut accepted = rig.next().await;
    assert!(accepted.listener.drain.phase() < Phase::Kill);
    accepted.io.write_all(b"hello").await.unwrap();
    assert!(!drained.is_finished());
    drop(accepted);
    assert!(soon(drained).await.unwrap());
    drop(waiting);
}

#[tokio::test]
async fn drain_ends_what_does_not_end_by_itself() {
    let mut rig = Rig::new(1);
    rig.apply([listener("in")]).unwrap();
    let _client = rig.dial("in").await;
    let held = rig.next().await;
    let how = Lifecycle { drain: Duration::from_millis(50), unready: Duration::ZERO, outbound_until_app_exits: false };
    let task = tokio::spawn(async move {
        held.listener.drain.reached(Phase::Kill).await;
        drop(held);
    });
    assert!(!soon(rig.set.drain(&how)).await);
    soon(task).await.unwrap();
    assert_eq!(rig.set.connections(), 0);
}

#[tokio::test]
async fn outbound_listeners_stay_open_until_the_inbound_side_is_idle() {
    let mut rig = Rig::new(1);
    let mut out = listener("out");
    out.capture = Some(Capture::Outbound);
    rig.apply([listener("in"), out]).unwrap();
    let _client = rig.dial("in").await;
    let held = rig.next().await;
    let how = Lifecycle { drain: Duration::from_secs(60), unready: Duration::ZERO, outbound_until_app_exits: true };
    let set = rig.set.clone();
    let drained = tokio::spawn(async move { set.drain(&how).await });
    soon(held.listener.drain.reached(Phase::Draining)).await;
    let _client = rig.dial("out").await;
    let outbound = rig.next().await;
    assert_eq!(outbound.listener.drain.phase(), Phase::Running);
    drop(held);
    assert!(!drained.is_finished());
    drop(outbound);
    assert!(soon(drained).await.unwrap());
}
