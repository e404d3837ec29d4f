//! A connection's side of the engine: what the edge calls with each request of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use onehop_filters::contract::Fault;
use onehop_filters::contract::metrics::Registry;

use super::exchange::Outgoing;
use super::headers::forwarded::Stamp;
use super::headers::request_id;
use super::ledger;
use super::request::{self, Arrived, Arriving, Caller};
use super::tcp;
use crate::edge::accept::{Accepted, Handler};
use crate::edge::body::Incoming;
use crate::edge::drain_signal::DrainSignal;
use crate::edge::serve::{self, Link, Serve};
use crate::edge::switch::Switch;
use crate::fault;
use crate::snapshot::cell::Cell;

/// Makes a session of every accepted connection.
pub struct Sessions {
    cell: Arc<Cell>,
    metrics: Arc<Registry>,
}

impl Sessions {
    /// Sessions that read their routes from `cell`.
    #[must_use]
    pub const fn new(cell: Arc<Cell>, metrics: Arc<Registry>) -> Self {
        Self { cell, metrics }
    }
}

impl Handler for Sessions {
    fn handle(&self, accepted: Accepted) {
        if accepted.settings.plan.tcp.is_some() {
            tokio::spawn(tcp::serve(self.cell.clone(), self.metrics.clone(), accepted));
            return;
        }
        let Accepted { io, first, conn, alpn, listener, settings, permit, .. } = accepted;
        let conn = Arc::new(conn);
        let debug = self.cell.view().telemetry.debug_header.clone();
        let stamp = Stamp::new(&conn, settings.plan.trusted.clone(), Some(debug));
        let caller =
            Caller { conn: conn.clone(), stamp, tls: settings.tls.clone(), drain: Some(listener.drain.clone()) };
        let session = Arc::new(Session { cell: self.cell.clone(), caller, metrics: self.metrics.clone() });
        let drain = DrainSignal::from(listener.drain.subscribe());
        let edge = settings.edge.clone();
        tokio::spawn(async move {
            serve::serve(io.into_stream(first), session, Link::new(conn), edge, alpn, drain).await;
            drop(permit);
        });
    }
}

/// Serves the requests of one connection.
pub struct Session {
    pub(super) cell: Arc<Cell>,
    pub(super) caller: Caller,
    metrics: Arc<Registry>,
}

impl Serve for Session {
    type Body = Outgoing;
    type Future = Pin<Box<dyn Future<Output = Response<Outgoing>> + Send>>;

    fn call(self: &Arc<Self>, mut rq: Request<Incoming>, link: &Arc<Link>, stream: u32) -> Self::Future {
        let on_upgrade = Switch::of(&mut rq);
        let (parts, body) = rq.into_parts();
        let arrived = Arrived { parts, body: Arriving::Wire(body), link: Some((link.clone(), stream)), on_upgrade };
        let mut rq = match request::open(&self.cell, &self.caller, arrived) {
            Ok(rq) => rq,
            Err(refused) => return Box::pin(std::future::ready(refused)),
        };
        let session = self.clone();
        Box::pin(async move { request::serve(&mut rq, &session.caller).await })
    }

    fn reject(self: &Arc<Self>, _link: &Link, fault: &Fault) -> Bytes {
        let id = request_id::fresh();
        ledger::refused_at_gate(&self.cell.view(), &self.caller.conn, fault, &id);
        fault::render_h1(fault, id.as_bytes())
    }

    fn closed(self: &Arc<Self>, _link: &Link, why: &'static str) {
        // The rare end of a connection: looking the counter up costs nobody.
        let labels = &[("listener", &*self.caller.conn.listener), ("why", why)];
        self.metrics
            .counter("onehop_connections_broken_total", "Connections that ended other than by agreement.", labels)
            .inc();
    }
}
