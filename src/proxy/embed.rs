//! onehop inside another program: a listener's routes as a [`tower::Service`], without a socket.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use onehop_filters::contract::{Body, Conn};

use super::exchange::Outgoing;
use super::headers::forwarded::Stamp;
use super::request::{self, Arrived, Arriving, Caller};
use crate::snapshot::cell::Cell;

/// The routes of one listener. Every call reads the configuration in force.
#[derive(Clone)]
pub struct Embedded {
    cell: Arc<Cell>,
    caller: Arc<Caller>,
}

impl Embedded {
    /// The listener of this name, called from within the process: the caller counts as a loopback peer.
    #[must_use]
    pub fn new(cell: Arc<Cell>, listener: &str) -> Self {
        let view = cell.load();
        let plan = view.listener(listener).map(|l| l.plan.clone());
        let here = SocketAddr::from(([127, 0, 0, 1], 0));
        let conn = Arc::new(Conn {
            id: 0,
            listener: listener.into(),
            peer: here,
            local: here,
            client: here,
            trusted: plan.as_ref().is_some_and(|p| p.trusted.iter().any(|net| net.contains(&here.ip()))),
            mesh: plan.as_ref().is_some_and(|p| p.mesh),
            tls: None,
        });
        let trusted = plan.map_or_else(|| Arc::from([]), |p| p.trusted.clone());
        let stamp = Stamp::new(&conn, trusted, Some(view.telemetry.debug_header.clone()));
        Self { cell, caller: Arc::new(Caller { conn, stamp, tls: None, drain: None }) }
    }
}

impl tower::Service<Request<Body>> for Embedded {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    /// Always ready: capacity is asked for where it is used, at the gates of a service.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, rq: Request<Body>) -> Self::Future {
        let (cell, caller) = (self.cell.clone(), self.caller.clone());
        let (parts, body) = rq.into_parts();
        let arrived = Arrived { parts, body: Arriving::Made(body), link: None, on_upgrade: None };
        Box::pin(async move {
            Ok(match request::open(&cell, &caller, arrived) {
                Ok(mut rq) => request::serve(&mut rq, &caller).await,
                Err(refused) => refused,
            })
        })
    }
}
