//! A test bed: builds a role from JSON as the engine would.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::contract::entry::{Build, Directory, Keeper};
use crate::contract::mesh::{Address, Endpoint, TryOutcome};
use crate::contract::metrics::Registry;
use crate::contract::section::{Key, Node, Span, Value};
use crate::contract::{Proof, Reason};

type Kept = BTreeMap<(TypeId, String, String), Arc<dyn Any + Send + Sync>>;

/// Keeps everything; runs what is due at publish when asked.
#[derive(Default)]
pub struct Bed {
    pub metrics: Arc<Registry>,
    directory: Directory,
    shelf: Shelf,
}

#[derive(Default)]
struct Shelf {
    kept: Kept,
    due: Vec<Box<dyn FnOnce() + Send>>,
}

impl Keeper for Shelf {
    fn find(&self, kind: TypeId, key: &str, shape: &str) -> Option<Arc<dyn Any + Send + Sync>> {
        self.kept.get(&(kind, key.to_owned(), shape.to_owned())).cloned()
    }
    fn stage(&mut self, kind: TypeId, key: String, shape: String, made: Arc<dyn Any + Send + Sync>) {
        self.kept.insert((kind, key, shape), made);
    }
    fn at_publish(&mut self, act: Box<dyn FnOnce() + Send>) {
        self.due.push(act);
    }
    fn background(&mut self, _: Pin<Box<dyn Future<Output = ()> + Send>>) {}
}

impl Bed {
    /// Builds and publishes.
    pub fn build<T>(&mut self, f: impl FnOnce(&mut Build<'_>) -> T) -> T {
        let mut build = Build {
            scope: "services.stock".into(),
            span: Span::default(),
            dir: PathBuf::from("."),
            directory: &self.directory,
            metrics: self.metrics.clone(),
            keeper: &mut self.shelf,
        };
        let made = f(&mut build);
        for act in self.shelf.due.drain(..) {
            act();
        }
        made
    }
}

/// A config node from JSON text.
pub fn node(json: &str) -> Node {
    fn from(v: serde_json::Value) -> Node {
        use serde_json::Value as J;
        let value = match v {
            J::Null => Value::Null,
            J::Bool(b) => Value::Bool(b),
            J::Number(n) => n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or_default()), Value::Int),
            J::String(s) => Value::Str(s),
            J::Array(a) => Value::Seq(a.into_iter().map(from).collect()),
            J::Object(o) => {
                Value::Map(o.into_iter().map(|(k, v)| (Key { span: Span::default(), name: k }, from(v))).collect())
            }
        };
        Node { span: Span::default(), value }
    }
    from(serde_json::from_str(json).expect("a test writes valid JSON"))
}

/// Endpoints 10.0.0.1.. of these weights.
pub fn endpoints(weights: &[u32]) -> Arc<[Arc<Endpoint>]> {
    weights
        .iter()
        .enumerate()
        .map(|(i, w)| {
            let n = u32::try_from(i + 1).expect("a test has few endpoints");
            let ip = std::net::Ipv4Addr::from(0x0A00_0000 + n);
            let id = super::chance::stable_hash(&[ip.to_string().as_bytes()]);
            Arc::new(Endpoint::new(id, Address::Tcp((ip, 80).into()), "".into(), 0, *w))
        })
        .collect()
}

/// An answer with these fields.
pub fn answer(status: u16, headers: &HeaderMap) -> TryOutcome<'_> {
    TryOutcome {
        result: Ok((StatusCode::from_u16(status).expect("a test writes valid statuses"), headers)),
        grpc: None,
        latency: std::time::Duration::from_millis(5),
    }
}

/// A failure.
pub fn failure(reason: Reason, proof: Proof) -> TryOutcome<'static> {
    TryOutcome { result: Err((reason, proof)), grpc: None, latency: std::time::Duration::from_millis(5) }
}
