//! A change of configuration with 10, 1,000 and 10,000 routes while requests run: from text to the moment every new
//! request sees it. A request that fails stops the bench.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use onehop::config::Source;
use onehop::hop::Hop;

/// The configuration with this many routes; `turn` makes it differ from the one before.
fn config(routes: usize, turn: usize) -> Vec<Source> {
    let mut text = String::from(
        "version: 1\nadmin: { bind: none }\nruntime: { workers: 1 }\nlisteners: { api: { bind: \"127.0.0.1:0\" } }\nroutes:\n",
    );
    text += "- { name: ping, matches: [{ path: { exact: /ping } }], respond: { status: 200, body: pong } }\n";
    for n in 1..routes {
        text += &format!(
            "- {{ name: r{n}, matches: [{{ path: {{ prefix: /v{turn}/service-{n} }} }}], \
             transform: {{ response: {{ set: {{ x-route: r{n} }} }} }}, respond: {{ status: 200 }} }}\n"
        );
    }
    let dir = std::env::current_dir().expect("a working directory");
    vec![Source::Text { name: "bench.yaml".to_owned(), text, dir }]
}

/// Asks for `/ping` on one kept connection until told to stop.
fn load(to: SocketAddr, stop: &AtomicBool, asked: &AtomicU64) {
    let mut stream = TcpStream::connect(to).expect("a connection");
    stream.set_nodelay(true).expect("a socket option");
    let mut buffer = [0; 4096];
    while !stop.load(Relaxed) {
        stream.write_all(b"GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
        let mut have = 0;
        while !buffer[..have].ends_with(b"\r\n\r\npong") {
            let n = stream.read(&mut buffer[have..]).expect("an answer");
            assert_ne!(n, 0, "a swap closed the connection");
            have += n;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200 "), "a swap failed a request");
        asked.fetch_add(1, Relaxed);
        thread::sleep(Duration::from_micros(200));
    }
}

fn swaps(c: &mut Criterion) {
    let mut group = c.benchmark_group("swap");
    group.sample_size(10);
    for routes in [10, 1_000, 10_000] {
        let configs = [config(routes, 1), config(routes, 2)];
        let hop = Hop::start(configs[0].clone(), onehop_filters::BUILTIN).unwrap_or_else(|e| panic!("good: {e}"));
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = thread::spawn({
            let (to, stop, asked) = (hop.addresses()["api"], stop.clone(), asked.clone());
            move || load(to, &stop, &asked)
        });
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(routes), |b| {
            b.iter(|| {
                turn += 1;
                hop.apply(&configs[turn % 2]).expect("a good config")
            });
        });
        stop.store(true, Relaxed);
        client.join().expect("no request failed");
        println!("swap/{routes}: {turn} swaps, {} requests meanwhile, none failed", asked.load(Relaxed));
        hop.stop(Duration::from_secs(1));
    }
    group.finish();
}

criterion_group!(benches, swaps);
criterion_main!(benches);
