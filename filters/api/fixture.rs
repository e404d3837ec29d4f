//! A request, a config section and a keeper for the tests of filters.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Version};
use parking_lot::Mutex;

use crate::contract::call::Answering;
use crate::contract::entry::{Build, Directory, Keeper};
use crate::contract::metrics::Registry;
use crate::contract::principal::{Consumer, User};
use crate::contract::request::{Conn, RequestCx, RouteInfo, Trace};
use crate::contract::section::{Key, Node, Span, Value};
use crate::contract::trail::Trail;
use crate::contract::{Body, Call, Fault, Held, Moment, Reason, Scratch, ServiceId, Services, Step, Verdict, now};

/// No service can be called.
struct Nobody;

impl Services for Nobody {
    fn call(self: Arc<Self>, _: ServiceId, _: Call) -> Answering {
        Box::pin(async { Err(Box::new(Fault::new(Reason::NoEndpoint))) })
    }
}

/// Services that are a function.
struct Played<F>(F);

impl<F: Fn(ServiceId, Call) -> Answering + Send + Sync> Services for Played<F> {
    fn call(self: Arc<Self>, service: ServiceId, call: Call) -> Answering {
        (self.0)(service, call)
    }
}

/// Services that answer what `play` makes of a call.
pub fn services(play: impl Fn(ServiceId, Call) -> Answering + Send + Sync + 'static) -> Arc<dyn Services> {
    Arc::new(Played(play))
}

/// A directory of services by these names.
pub fn directory(services: &[&str]) -> Directory {
    let services = services.iter().zip(0..).map(|(name, n)| ((*name).to_owned(), ServiceId(n))).collect();
    Directory { services, ..Directory::default() }
}

/// What a step decides, in the end.
pub async fn settled(step: Step<'_>) -> Verdict {
    match step {
        Step::Done(verdict) => verdict,
        Step::Wait(later) => later.await,
    }
}

pub fn request(method: &str, target: &str) -> RequestCx {
    let peer: SocketAddr = "192.0.2.7:5000".parse().expect("an address");
    RequestCx {
        conn: Arc::new(Conn {
            id: 1,
            listener: "public".into(),
            peer,
            local: "192.0.2.1:80".parse().expect("an address"),
            client: peer,
            trusted: false,
            mesh: false,
            tls: None,
        }),
        started: now(),
        method: Method::from_bytes(method.as_bytes()).expect("a method"),
        version: Version::HTTP_11,
        https: false,
        authority: "api.example.com:8443".parse().expect("an authority"),
        target: target.parse().expect("a target"),
        headers: HeaderMap::new(),
        body: Body::Empty,
        client_ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
        request_id: HeaderValue::from_static("rid-1"),
        route: Arc::new(RouteInfo { name: "orders".into(), upgrades: Vec::new(), to: vec![(ServiceId(0), 1)] }),
        covered: 0,
        user: None,
        consumer: None,
        workload: None,
        deadline: Moment::MAX,
        trace: Trace::default(),
        upstream_host: None,
        reply_headers: Default::default(),
        scratch: Scratch::default(),
        services: Arc::new(Nobody),
        trail: Trail::default(),
        dry_run: false,
    }
}

pub fn user(claims: serde_json::Value) -> Arc<User> {
    let serde_json::Value::Object(claims) = claims else { panic!("claims are an object") };
    let scopes = claims.get("scope").and_then(|s| s.as_str()).unwrap_or_default();
    Arc::new(User {
        identity: "corp".into(),
        subject: claims.get("sub").and_then(|s| s.as_str()).unwrap_or_default().into(),
        scopes: scopes.split_ascii_whitespace().map(Into::into).collect(),
        claims,
        expires: now() + Duration::from_secs(60),
    })
}

/// Consumers that hold these sections under `key`.
pub fn holding(key: &str, sections: serde_json::Value) -> Directory {
    let mut directory = Directory::default();
    let serde_json::Value::Object(sections) = sections else { panic!("a section for each consumer") };
    for (name, json) in sections {
        let consumer = Consumer { name: name.as_str().into(), plan: None, scopes: Vec::new() };
        directory.consumers.insert(name.clone(), Arc::new(consumer));
        let held = Held { owner: name, section: section(json) };
        directory.held.entry(key.to_owned()).or_default().push(held);
    }
    directory
}

/// A section as the engine would hand it over. Lines count list items and keys, so that places can be told apart.
pub fn section(json: serde_json::Value) -> Node {
    fn node(json: serde_json::Value, line: &mut u32) -> Node {
        *line += 1;
        let span = Span { file: 0, line: *line, column: 1 };
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => Value::Bool(b),
            serde_json::Value::Number(n) => {
                n.as_i64().map_or_else(|| Value::Float(n.as_f64().expect("a number")), Value::Int)
            }
            serde_json::Value::String(s) => Value::Str(s),
            serde_json::Value::Array(a) => Value::Seq(a.into_iter().map(|j| node(j, line)).collect()),
            serde_json::Value::Object(o) => {
                Value::Map(o.into_iter().map(|(name, j)| (Key { span, name }, node(j, line))).collect())
            }
        };
        Node { span, value }
    }
    node(json, &mut 0)
}

type Kept = HashMap<(TypeId, String), (String, Arc<dyn Any + Send + Sync>)>;
type Act = Box<dyn FnOnce() + Send>;
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Keeps everything, publishes when told to.
#[derive(Default)]
pub struct Estate {
    kept: Kept,
    acts: Vec<Act>,
    tasks: Mutex<Vec<Task>>,
}

impl Keeper for Estate {
    fn find(&self, kind: TypeId, key: &str, shape: &str) -> Option<Arc<dyn Any + Send + Sync>> {
        self.kept.get(&(kind, key.to_owned())).filter(|(s, _)| s == shape).map(|(_, o)| o.clone())
    }
    fn stage(&mut self, kind: TypeId, key: String, shape: String, made: Arc<dyn Any + Send + Sync>) {
        self.kept.insert((kind, key), (shape, made));
    }
    fn at_publish(&mut self, act: Act) {
        self.acts.push(act);
    }
    fn background(&mut self, task: Task) {
        self.tasks.get_mut().push(task);
    }
}

impl Estate {
    pub fn build<'a>(&'a mut self, scope: &str, directory: &'a Directory) -> Build<'a> {
        Build {
            scope: scope.to_owned(),
            span: Span { file: 0, line: 99, column: 1 },
            dir: PathBuf::from("/nowhere"),
            directory,
            metrics: Arc::new(Registry::default()),
            keeper: self,
        }
    }
    /// Runs what waits for the publish; background tasks are given back.
    pub fn publish(&mut self) -> Vec<Task> {
        self.acts.drain(..).for_each(|act| act());
        std::mem::take(self.tasks.get_mut())
    }
}

/// The verdict of a step that must not wait.
pub fn decided(step: Step<'_>) -> Verdict {
    match step {
        Step::Done(verdict) => verdict,
        Step::Wait(_) => panic!("decided without waiting"),
    }
}
