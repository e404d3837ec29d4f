//! Failures made on purpose at attempt scope: a filter leaves an [`Injector`] in the request's scratch, and the mesh loop
//! asks it before each try. What is injected never reaches an endpoint, so no gate, balancer or check learns from it;
//! only the retry policy sees it, as if an endpoint had failed.

use std::any::Any;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::fault::Reason;

/// Marks the answer to a request that something was done to: `delay` or `abort`.
pub const MARK: HeaderName = HeaderName::from_static("x-onehop-fault");

/// Decides about the tries of one request.
pub trait Injector: Send {
    /// What to do to the try of this number, from 1.
    fn inject(&mut self, attempt: u32) -> Option<Injection>;
}

/// What stands in the scratch.
pub struct Tries(pub Box<dyn Injector>);

/// What to do to a try.
pub struct Injection {
    /// Waits first.
    pub delay: Option<Duration>,
    /// Then fails it, instead of sending it.
    pub abort: Option<Abort>,
    /// Given back when the injection is over.
    pub hold: Option<Box<dyn Any + Send>>,
}

/// How a request or a try fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// An answer with this status.
    Status(StatusCode),
    /// An answer with this `grpc-status`.
    Grpc(u16),
    /// No connection: the request provably never ran.
    ConnectFailure,
    /// The connection breaks after the request was sent.
    Reset,
}

impl Abort {
    /// The reason an endpoint's failure of this kind would have; `None` for answers.
    #[must_use]
    pub const fn failure(self) -> Option<Reason> {
        match self {
            Self::Status(_) | Self::Grpc(_) => None,
            Self::ConnectFailure => Some(Reason::ConnectFailed),
            Self::Reset => Some(Reason::Reset),
        }
    }
}
