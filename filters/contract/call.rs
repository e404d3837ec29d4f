//! Calls that a filter makes in the middle of a request to a service of the same configuration: discovery, balancing,
//! retries, breaker and TLS of that service apply, as they would to a route's own call.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::{Request, Response};

use super::body::Body;
use super::clock::Moment;
use super::fault::Fault;
use super::request::Trace;

/// A service by its place in the configuration, from [`super::Build::service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceId(pub usize);

/// A call to make.
pub struct Call {
    /// What to send. The URI's authority becomes `Host`; without one the service's name stands there.
    pub request: Request<Body>,
    /// When the whole answer's head must be there, tries and queue included.
    pub deadline: Moment,
    /// The trace it belongs to: the caller's own.
    pub trace: Trace,
}

/// The answer to a [`Call`]: its head, and a body that holds its place at the service until it ends or is dropped.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Box<Fault>>> + Send>>;

/// The services of the configuration that a request runs under.
pub trait Services: Send + Sync {
    /// Calls one. The future owns all it needs: it may be spawned and outlive the request.
    fn call(self: Arc<Self>, service: ServiceId, call: Call) -> Answering;
    /// Whether work of this kind is left out now, because the process has too much to do (`runtime.brownout`).
    fn leaves_out(&self, work: Optional) -> bool {
        let _ = work;
        false
    }
}

/// Work that no caller waits for: left out before any request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optional {
    /// Copies for another service.
    Mirror,
    /// Spans.
    Tracing,
    /// Checks of messages that would refuse none.
    Validation,
}

impl std::fmt::Debug for dyn Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Services")
    }
}
