//! Calls that filters make to services of the configuration: the mesh loop without a client, a route or a log line.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use onehop_filters::contract::call::Answering;
use onehop_filters::contract::trail::Trail;
use onehop_filters::contract::{
    Body, BodyError, Call, Conn, Fault, Optional, Reason, RequestCx, RouteInfo, Scratch, ServiceId, Services, now,
};
use smallvec::SmallVec;

use super::attempt;
use super::exchange::{Exchange, Tally, Told};
use super::ledger;
use super::request::Wants;
use crate::fault;
use crate::snapshot::cell::View;

/// The connection that callouts seem to come from: none.
static NOWHERE: LazyLock<Arc<Conn>> = LazyLock::new(|| {
    let here = SocketAddr::from(([127, 0, 0, 1], 0));
    let (peer, local, client) = (here, here, here);
    Arc::new(Conn { id: 0, listener: "".into(), peer, local, client, trusted: true, mesh: true, tls: None })
});
static NO_ROUTE: LazyLock<Arc<RouteInfo>> =
    LazyLock::new(|| Arc::new(RouteInfo { name: "".into(), upgrades: Vec::new(), to: Vec::new() }));

impl Services for View {
    fn call(self: Arc<Self>, service: ServiceId, call: Call) -> Answering {
        Box::pin(async move {
            let mut ex = exchange(self, service, call)?;
            let grpc = ex.cx.headers.get(http::header::CONTENT_TYPE).is_some_and(fault::is_grpc);
            let wants = Wants { te_trailers: grpc, expect_continue: false, upgrade: None, grpc, informational: None };
            let view = ex.view.clone();
            let got = attempt::forward(&mut ex, &view, &wants, service.0).await;
            ledger::called(&ex);
            let got = got.map_err(Box::new)?;
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = got.status;
            *response.headers_mut() = got.headers;
            *response.body_mut() = if got.body.is_end_stream() {
                Body::Empty
            } else {
                Body::stream(Held { body: got.body, _exchange: ex })
            };
            Ok(response)
        })
    }

    fn leaves_out(&self, work: Optional) -> bool {
        self.overload.as_ref().is_some_and(|overload| overload.leaves_out(&self.engine.inflight, work))
    }
}

fn exchange(view: Arc<View>, service: ServiceId, call: Call) -> Result<Box<Exchange>, Box<Fault>> {
    let unusable = || Box::new(Fault::never_ran(Reason::FilterFailed).detail("a call out has no usable target"));
    let (parts, body) = call.request.into_parts();
    let uri = parts.uri.into_parts();
    let authority = match uri.authority {
        Some(authority) => authority,
        None => Authority::try_from(&*view.targets[service.0].service.name).map_err(|_| unusable())?,
    };
    let target = uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let cx = RequestCx {
        conn: NOWHERE.clone(),
        started: now(),
        method: parts.method,
        version: Version::HTTP_11,
        https: false,
        authority,
        target: target.clone(),
        headers: parts.headers,
        body,
        client_ip: NOWHERE.peer.ip(),
        request_id: HeaderValue::from_static("-"),
        route: NO_ROUTE.clone(),
        covered: 0,
        user: None,
        consumer: None,
        workload: None,
        deadline: call.deadline,
        trace: call.trace,
        upstream_host: None,
        reply_headers: SmallVec::new(),
        scratch: Scratch::default(),
        services: view.clone(),
        trail: Trail::default(),
        dry_run: false,
    };
    let fields = Told { common: 0, own: SmallVec::new() };
    Ok(Box::new(Exchange { cx, asked: target, view, route: None, fields, tally: Tally::default(), admission: None }))
}

/// An answer's body with the place at the service that it holds.
struct Held {
    body: Body,
    _exchange: Box<Exchange>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
