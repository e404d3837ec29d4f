//! A connection's side of the engine: what the edge calls with each request of it.

use std::pin::Pin;
use std::sync::Arc;
use std::future::Future;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use onehop_filters::contract::Fault;

use super::exchange::Outgoing;
use super::headers::forwarded::Stamp;
use super::headers::request_id;
use super::ledger;
use super::request::{self, Caller};
use crate::edge::serve::{Link, Serve, Settings, serve};
use crate::edge::accept::{self, Accepted};
use crate::edge::drain_signal::DrainSignal;
use crate::edge::stream::Stream;
use crate::fault;
use crate::observe::metrics::ListenerMetrics;
use crate::snapshot::cell::Cell;

/// Serves the requests of one connection.
pub struct Session {
    cell: Arc<Cell>,
    caller: Caller,
    metrics: Arc<ListenerMetrics>,
}

impl Serve for Session {
    type Body = Outgoing;
    type Future = Pin<Box<dyn Future<Output = Response<Outgoing>> + Send>>;

    fn call(self: &Arc<Self>, mut rq: Request<Incoming>, link: &Arc<Link>) -> Self::Future {
        let wants_upgrade = rq.headers().contains_key(http::header::UPGRADE)
            || rq.extensions().get::<hyper::ext::Protocol>().is_some();
        let on_upgrade = wants_upgrade.then(|| hyper::upgrade::on(&mut rq));
        let (parts, body) = rq.into_parts();
        let rq = request::Arrived { parts, body: request::Arriving::Wire(body), link: Some(link.clone()), on_upgrade };
        Box::pin(request::serve(self.clone(), rq))
    }

    fn reject(self: &Arc<Self>, _link: &Link, fault: &Fault) -> Bytes {
        let id = request_id::fresh();
        ledger::refused_at_gate(&self.cell.view(), &self.caller.conn, fault, &id);
        fault::render_h1(fault, id.as_bytes())
    }

    fn closed(self: &Arc<Self>, _link: &Link, why: &'static str) {
        self.metrics.broken(why);
    }
}
