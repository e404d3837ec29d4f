//! The allocation gate: what a request may allocate. Included by `benches/alloc.rs` and `tests/allocations.rs`.

mod counting;
mod idle;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use futures_util::FutureExt;
use http::Request;
use onehop::config::Source;
use onehop::hop::Hop;
use onehop::proxy::embed::Embedded;
use onehop_filters::contract::{Body, Entry};
use tower::Service;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Requests before counting begins: connections are open, caches and buffers have their size.
const WARM: usize = 200;
const COUNTED: u64 = 1_000;

fn start(yaml: &str, entries: &'static [Entry]) -> Hop {
    let dir = std::env::current_dir().expect("a working directory");
    let source = Source::Text { name: "gate.yaml".to_owned(), text: yaml.to_owned(), dir };
    Hop::start(vec![source], entries).unwrap_or_else(|e| panic!("the configuration is good: {e}"))
}

/// Allocations of one request that a direct response answers, in this process and on this thread.
fn answered(service: &mut Embedded, path: &str) -> u64 {
    let mut cost = 0;
    for _ in 0..WARM {
        let rq = Request::get(path).header("host", "localhost").body(Body::Empty).expect("a good request");
        let before = counting::here();
        let rs = service.call(rq).now_or_never().expect("nothing waits").expect("never fails");
        assert_eq!(rs.status(), 200);
        drop(rs);
        cost = counting::here() - before;
    }
    cost
}

/// Allocations of a request through no filter, and what idle filters add: those of the route, and those that exist but
/// are not configured.
pub struct Chain {
    /// No filter.
    pub bare: u64,
    /// Six idle filters on the route.
    pub six: u64,
    /// Twelve idle filters on the route: more decisions than the trail keeps in place.
    pub twelve: u64,
    /// No filter on the route, twelve more known to the engine.
    pub unconfigured: u64,
}

/// Weighs the chain.
pub fn chain() -> Chain {
    let routes = format!(
        "- {{ name: bare, matches: [{{ path: {{ exact: /bare }} }}], respond: {{ status: 200 }} }}\n\
         - {{ name: six, matches: [{{ path: {{ exact: /six }} }}], {}respond: {{ status: 200 }} }}\n\
         - {{ name: full, matches: [{{ path: {{ exact: /full }} }}], {}respond: {{ status: 200 }} }}\n",
        idle::keys(6),
        idle::keys(12)
    );
    let plain = "- { name: bare, matches: [{ path: { exact: /bare } }], respond: { status: 200 } }\n";
    let config = |routes: &str| {
        format!(
            "version: 1\nadmin: {{ bind: none }}\nruntime: {{ workers: 1 }}\n\
             listeners: {{ api: {{ bind: 127.0.0.1:0 }} }}\nroutes:\n{routes}"
        )
    };
    let small = start(&config(plain), onehop_filters::BUILTIN);
    let large = start(&config(&routes), idle::entries());
    let service = |hop: &Hop| hop.service("api").expect("the listener is there");
    Chain {
        bare: answered(&mut service(&small), "/bare"),
        unconfigured: answered(&mut service(&large), "/bare"),
        six: answered(&mut service(&large), "/six"),
        twelve: answered(&mut service(&large), "/full"),
    }
}

/// Allocations of one GET over a kept HTTP/1.1 connection to an endpoint on another, the whole process counted: neither
/// the client nor the endpoint of this measurement allocates.
pub fn proxied() -> f64 {
    let endpoint = endpoint();
    let hop = start(
        &format!(
            "version: 1\nadmin: {{ bind: none }}\nruntime: {{ workers: 1 }}\n\
             listeners: {{ api: {{ bind: 127.0.0.1:0 }} }}\n\
             routes: [{{ name: all, to: all }}]\n\
             services: {{ all: {{ discover: {{ static: [\"{endpoint}\"] }} }} }}\n"
        ),
        onehop_filters::BUILTIN,
    );
    let mut client = TcpStream::connect(hop.addresses()["api"]).expect("a connection");
    client.set_nodelay(true).expect("a socket option");
    let mut buffer = vec![0; 16 << 10];
    let mut ask = || {
        client.write_all(b"GET /items/7 HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n").expect("sent");
        let mut have = 0;
        while !buffer[..have].ends_with(b"\r\n\r\nok\n") {
            let n = client.read(&mut buffer[have..]).expect("an answer");
            assert_ne!(n, 0, "the connection stays");
            have += n;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200 "));
    };
    (0..WARM).for_each(|_| ask());
    let before = counting::everywhere();
    (0..COUNTED).for_each(|_| ask());
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let each = (counting::everywhere() - before) as f64 / COUNTED as f64;
    drop(client);
    hop.stop(std::time::Duration::from_secs(1));
    each
}

/// Answers GETs without allocating.
fn endpoint() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        for mut stream in listener.incoming().map_while(Result::ok) {
            stream.set_nodelay(true).expect("a socket option");
            let mut have = 0;
            while let Ok(n @ 1..) = stream.read(&mut buffer[have..]) {
                have += n;
                if buffer[..have].ends_with(b"\r\n\r\n") {
                    have = 0;
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").is_err() {
                        break;
                    }
                }
            }
        }
    });
    address
}

/// Bytes that a route of a large configuration costs.
pub struct PerRoute {
    /// Once the configuration is in force.
    pub kept: usize,
    /// At the worst moment of the start.
    pub start: usize,
    /// At the worst moment of a reload, beyond what was kept before.
    pub reload: usize,
}

/// What one more endpoint keeps, in bytes, in a configuration of many services with ten each.
pub fn kept_by_an_endpoint() -> usize {
    const SERVICES: usize = 100;
    let config = |endpoints: usize| {
        let mut yaml = "version: 1\nadmin: { bind: none }\nruntime: { workers: 1 }\n\
                        listeners: { api: { bind: 127.0.0.1:0 } }\nroutes:\n- { name: r, to: s000 }\nservices:\n"
            .to_owned();
        for i in 0..SERVICES {
            let all: Vec<String> = (0..endpoints)
                .map(|n| {
                    format!("{{ address: \"10.{}.{i}.{n}:8080\", zone: a, labels: {{ version: v{} }} }}", n % 7, n % 2)
                })
                .collect();
            yaml += &format!("  s{i:03}: {{ discover: {{ static: [{}] }} }}\n", all.join(", "));
        }
        yaml
    };
    let weigh = |endpoints: usize| {
        let dir = std::env::current_dir().expect("a working directory");
        let source = || vec![Source::Text { name: "gate.yaml".to_owned(), text: config(endpoints), dir: dir.clone() }];
        let source = source();
        let before = counting::live();
        let hop =
            Hop::start(source, onehop_filters::BUILTIN).unwrap_or_else(|e| panic!("the configuration is good: {e}"));
        let kept = counting::live() - before;
        hop.stop(std::time::Duration::from_secs(1));
        kept
    };
    weigh(1);
    let (few, many) = (weigh(1), weigh(10));
    many.saturating_sub(few) / (SERVICES * 9)
}

/// Weighs a route: a name, a prefix, a service.
pub fn routes() -> PerRoute {
    const FEW: usize = 10;
    const MANY: usize = 2_010;
    let config = |count: usize| {
        let mut yaml = "version: 1\nadmin: { bind: none }\nruntime: { workers: 1 }\n\
                        listeners: { api: { bind: 127.0.0.1:0 } }\n\
                        services: { all: { discover: { static: [\"127.0.0.1:9\"] } } }\nroutes:\n"
            .to_owned();
        for i in 0..count {
            yaml += &format!("- {{ name: r{i:05}, matches: [{{ path: {{ prefix: /r/{i:05} }} }}], to: all }}\n");
        }
        yaml
    };
    let weigh = |count: usize| {
        let text = |yaml: &str| {
            let dir = std::env::current_dir().expect("a working directory");
            vec![Source::Text { name: "gate.yaml".to_owned(), text: yaml.to_owned(), dir }]
        };
        let (yaml, other) = (config(count), config(count) + "- { name: last, to: all }\n");
        let (yaml, other) = (text(&yaml), text(&other));
        let before = counting::live();
        counting::from_here();
        let hop =
            Hop::start(yaml, onehop_filters::BUILTIN).unwrap_or_else(|e| panic!("the configuration is good: {e}"));
        let (kept, start) = (counting::live() - before, counting::peak() - before);
        counting::from_here();
        hop.apply(&other).unwrap_or_else(|e| panic!("the configuration is good: {e}"));
        let reload = counting::peak() - before - kept;
        hop.stop(std::time::Duration::from_secs(1));
        [kept, start, reload]
    };
    // What is made once per process is made by now.
    weigh(FEW);
    let (few, many) = (weigh(FEW), weigh(MANY));
    let [kept, start, reload] = std::array::from_fn(|i| many[i].saturating_sub(few[i]) / (MANY - FEW));
    PerRoute { kept, start, reload }
}
