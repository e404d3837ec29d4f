//! Endpoints that are replaced one after the other, and registries that are gone: under load, without a failed request.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;

use super::common::backend::{Backend, Mood};
use super::common::load::{Load, Plan};
use super::common::{Onehop, scripted};
use super::{forward, head, until};

const CHECKED: &str = ", healthCheck: { http: { path: / }, interval: 100ms, timeout: 500ms, healthy: 1, unhealthy: 1 }, \
                       retry: { attempts: 2, retryOn: [connect-failure, refused-stream, reset] }";

/// A number of `/endpoints` of the service `app`, by address.
fn of(hop: &Onehop, address: SocketAddr, field: &str) -> serde_json::Value {
    let view: serde_json::Value = serde_json::from_str(&hop.admin_get("/endpoints").body()).expect("JSON");
    let all = view["services"]["app"]["endpoints"].as_array().cloned().unwrap_or_default();
    all.iter().find(|e| e["address"] == address.to_string()).map_or(serde_json::Value::Null, |e| e[field].clone())
}

/// Clients of every kind that ask idempotently.
fn loads(to: SocketAddr) -> Vec<Load> {
    let plan = Plan { clients: 4, pause: Duration::from_millis(2), ..Plan::get(to, "/") };
    let kinds = [
        plan.clone(),
        Plan { h2: true, clients: 2, ..plan.clone() },
        Plan { method: "DELETE", clients: 2, ..plan.clone() },
        Plan { per_connection: 3, clients: 2, ..plan },
    ];
    kinds.map(Load::start).into()
}

#[test]
fn endpoints_restart_one_by_one_and_no_idempotent_request_fails() {
    let app = [Mood::Slow(2), Mood::Slow(2), Mood::Slow(2), Mood::Slow(2)].map(Backend::start);
    let hop = Onehop::start(&forward(&app.each_ref(), CHECKED));
    let loads = loads(hop.at("web"));
    for load in &loads {
        load.wait_for(50);
    }
    for leaving in &app {
        // The hard way: what it carried is reset, and whoever comes is refused.
        leaving.kill();
        until("the check finds it out", || of(&hop, leaving.address, "health") == "unhealthy");
        for load in &loads {
            load.wait_for(40);
        }
        leaving.revive();
        until("it is healthy again", || of(&hop, leaving.address, "health") == "healthy");
        let seen = of(&hop, leaving.address, "tries").as_u64().unwrap_or(0);
        until("it is used again", || of(&hop, leaving.address, "tries").as_u64().unwrap_or(0) > seen + 5);
    }
    for load in loads {
        load.stop().assert_clean("rolling restart", 200);
    }
}

/// An endpoint that says farewell in an orderly way: HTTP/2 with GOAWAY, and a drain.
fn orderly(at: SocketAddr) -> Onehop {
    Onehop::start(&format!(
        "version: 1\nadmin: {{ bind: \"127.0.0.1:0\" }}\nruntime: {{ workers: 1 }}\n\
         lifecycle: {{ drain: 3s, unready: 50ms }}\nlisteners: {{ web: {{ bind: \"{at}\", protocols: [h2] }} }}\n\
         routes: [{{ name: all, respond: {{ body: ok }} }}]\n"
    ))
}

#[test]
fn endpoints_over_http2_say_goaway_one_by_one_and_no_request_fails() {
    let free = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    // Held together, so that they differ.
    let addresses: BTreeSet<SocketAddr> = (0..3).map(|_| free()).collect();
    let mut app: Vec<(SocketAddr, Onehop)> = addresses.into_iter().map(|at| (at, orderly(at))).collect();
    let list: Vec<String> = app.iter().map(|(at, _)| format!("\"{at}\"")).collect();
    let hop = Onehop::start(
        &(head("")
            + &format!(
                "routes: [{{ name: all, to: app }}]\nservices:\n  app:\n    discover: {{ static: [{}] }}\n    \
                 protocol: h2\n    connections: {{ maxRequests: 150, h2: {{ maxStreams: 3 }} }}\n    \
                 healthCheck: {{ tcp: {{}}, interval: 100ms, healthy: 1, unhealthy: 1 }}\n    \
                 retry: {{ attempts: 2, retryOn: [connect-failure, refused-stream, reset] }}\n",
                list.join(", ")
            )),
    );
    let mut loads = loads(hop.at("web"));
    // Not even what is not idempotent fails: what GOAWAY excludes was never looked at.
    let plan = Plan { method: "POST", clients: 2, pause: Duration::from_millis(2), ..Plan::get(hop.at("web"), "/") };
    loads.push(Load::start(plan));
    for load in &loads {
        load.wait_for(60);
    }
    for (at, endpoint) in &mut app {
        endpoint.signal("TERM");
        assert_eq!(endpoint.wait(Duration::from_secs(10)), Some(0));
        for load in &loads {
            load.wait_for(40);
        }
        *endpoint = orderly(*at);
        until("it is healthy again", || of(&hop, *at, "health") == "healthy");
        let seen = of(&hop, *at, "tries").as_u64().unwrap_or(0);
        until("it is used again", || of(&hop, *at, "tries").as_u64().unwrap_or(0) > seen + 5);
    }
    for load in loads {
        load.stop().assert_clean("farewells", 150);
    }
}

#[test]
fn a_kept_connection_that_ends_at_the_worst_moment_fails_no_safe_request() {
    // Answers the first request of a connection; the second is met by an end, by a reset, or by an end in the middle of it.
    let turn = Arc::new(AtomicUsize::new(0));
    let up = scripted(move |mut stream| {
        let mut buffer = [0; 4096];
        let Ok(1..) = stream.read(&mut buffer) else { return };
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n");
        match turn.fetch_add(1, SeqCst) % 3 {
            0 => drop(stream.read(&mut buffer)),
            1 => {
                let _ = stream.read(&mut buffer);
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            _ => drop(stream.read(&mut [0; 4])),
        }
    });
    // No retry policy helps: this is the pool's own business.
    let config = head("")
        + &format!(
            "routes: [{{ name: all, to: app }}]\n\
             services: {{ app: {{ discover: {{ static: [\"{up}\"] }}, retry: {{ attempts: 0 }} }} }}\n"
        );
    let hop = Onehop::start(&config);
    let loads = loads(hop.at("web"));
    for load in &loads {
        load.wait_for(200);
    }
    for load in loads {
        load.stop().assert_clean("worst moment", 200);
    }
}

/// A Consul that can be killed. Says which endpoints there are, and holds questions for what it says already.
struct Registry {
    address: SocketAddr,
    says: Arc<Mutex<(u64, Vec<SocketAddr>)>>,
    alive: Arc<Mutex<Option<TcpListener>>>,
    asked: Arc<AtomicUsize>,
}

impl Registry {
    fn start(endpoints: &[SocketAddr]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let registry = Self {
            address,
            says: Arc::new(Mutex::new((1, endpoints.to_vec()))),
            alive: Arc::new(Mutex::new(None)),
            asked: Arc::default(),
        };
        registry.open(listener);
        registry
    }

    fn open(&self, listener: TcpListener) {
        let accepting = listener.try_clone().expect("a descriptor");
        *self.alive.lock().expect("no panic") = Some(listener);
        let (says, alive, asked) = (self.says.clone(), self.alive.clone(), self.asked.clone());
        std::thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                if alive.lock().expect("no panic").is_none() {
                    return;
                }
                let (says, alive, asked) = (says.clone(), alive.clone(), asked.clone());
                std::thread::spawn(move || answer(stream, &says, &alive, &asked));
            }
        });
    }

    /// Closes the port and everything that waits for an answer.
    fn kill(&self) {
        *self.alive.lock().expect("no panic") = None;
        // Wakes the thread that accepts, which then lets go of the port.
        let _ = TcpStream::connect(self.address);
        until("nobody listens", || TcpStream::connect(self.address).is_err());
    }

    fn revive(&self, endpoints: &[SocketAddr]) {
        *self.says.lock().expect("no panic") = (2, endpoints.to_vec());
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&self.address.into()).expect("the port is free");
        socket.listen(64).expect("listens");
        self.open(socket.into());
    }
}

fn answer(
    mut stream: TcpStream,
    says: &Mutex<(u64, Vec<SocketAddr>)>,
    alive: &Mutex<Option<TcpListener>>,
    asked: &AtomicUsize,
) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        asked.fetch_add(1, SeqCst);
        let head = String::from_utf8_lossy(&buffer[..n]).into_owned();
        let known = |index: u64| head.contains(&format!("index={index}"));
        // A question for the index that is known waits.
        while known(says.lock().expect("no panic").0) {
            if alive.lock().expect("no panic").is_none() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (index, list) = says.lock().expect("no panic").clone();
        let list: Vec<_> = list
            .iter()
            .map(|at| {
                serde_json::json!({ "Node": { "Address": at.ip() }, "Checks": [{ "Status": "passing" }],
                    "Service": { "Address": at.ip().to_string(), "Port": at.port(), "Tags": [] } })
            })
            .collect();
        let body = serde_json::to_string(&list).expect("JSON");
        let head = format!(
            "HTTP/1.1 200 OK\r\nx-consul-index: {index}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        if stream.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn a_registry_that_is_gone_costs_no_request_and_is_followed_again() {
    let app = [Mood::Slow(1), Mood::Slow(1), Mood::Slow(1)].map(Backend::start);
    let [one, two, three] = app.each_ref().map(|b| b.address);
    let registry = Registry::start(&[one, two]);
    let hop = Onehop::start(
        &(head("")
            + &format!(
                "routes: [{{ name: all, to: app }}]\nservices:\n  app:\n    \
                 discover: {{ consul: {{ service: app, servers: [\"http://{}\"], wait: 1s }} }}\n    \
                 retry: {{ attempts: 2, retryOn: [connect-failure, refused-stream, reset] }}\n",
                registry.address
            )),
    );
    until("the registry is asked", || of(&hop, two, "available") == true);
    let loads = loads(hop.at("web"));
    for load in &loads {
        load.wait_for(50);
    }
    registry.kill();
    let stale = |hop: &Onehop| {
        let view: serde_json::Value = serde_json::from_str(&hop.admin_get("/endpoints").body()).expect("JSON");
        view["services"]["app"]["stale"].is_string()
    };
    until("it is known that nobody answers", || stale(&hop));
    // Several rounds of questions into the void, and a whole configuration on top.
    let failures = || super::metric(&hop, "onehop_discovery_failures_total{service=\"app\"}");
    let before = failures();
    until("it goes on asking", || failures() > before + 1.0);
    assert_eq!(hop.reload(&std::fs::read_to_string(&hop.config).expect("there")).0, 200);
    for load in &loads {
        load.wait_for(400);
    }
    assert!(stale(&hop) && of(&hop, one, "available") == true && of(&hop, two, "available") == true);
    registry.revive(&[two, three]);
    until("the new answer is taken", || of(&hop, three, "available") == true && !stale(&hop));
    for load in &loads {
        load.wait_for(50);
    }
    for load in loads {
        load.stop().assert_clean("no registry", 400);
    }
    assert!(app[2].requests() > 0 && registry.asked.load(SeqCst) > 2);
}

#[test]
fn a_list_that_vanishes_costs_no_request() {
    let app = [Mood::Slow(1), Mood::Slow(1)].map(Backend::start);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("endpoints.json");
    let text = format!("[\"{}\", \"{}\"]", app[0].address, app[1].address);
    std::fs::write(&file, &text).expect("written");
    let hop = Onehop::start(
        &(head("")
            + &format!(
                "routes: [{{ name: all, to: app }}]\nservices: {{ app: {{ discover: {{ file: \"{}\" }} }} }}\n",
                file.display()
            )),
    );
    let loads = loads(hop.at("web"));
    for load in &loads {
        load.wait_for(50);
    }
    std::fs::remove_file(&file).expect("removed");
    until("it is missed", || hop.admin_get("/endpoints").body().contains("\"stale\""));
    for load in &loads {
        load.wait_for(150);
    }
    std::fs::write(&file, &text).expect("written");
    until("it is read again", || !hop.admin_get("/endpoints").body().contains("\"stale\""));
    for load in loads {
        load.stop().assert_clean("no list", 200);
    }
}
