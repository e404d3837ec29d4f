//! `policy: utilization`: more to endpoints that say they have room (ORCA load reports).

mod config;
mod core;
mod report;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use self::config::{Section, Settings};
use self::core::Utilization;
pub use self::report::Report;
use super::config::{Keys, read, zoned};
use super::pool::{Pool, Rules};
use crate::contract::mesh::{Balance, Endpoint, Picker, TryOutcome};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Body, BodyError, Build, Entry, Moment, Role, now};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "utilization",
    summary: "Sends more to endpoints that report room (ORCA)",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Section>(),
    role: Role::Balance(build),
};

fn build(section: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Balance>, ConfigError> {
    let s: Section = read(section)?;
    let keys =
        Keys { slow_start: s.slow_start, panic: s.panic_threshold, overprovisioning: s.overprovisioning.as_ref() };
    Ok(Arc::new(Policy { settings: s.settings()?, rules: zoned(&keys, s.zones.as_ref(), build)? }))
}

struct Policy {
    settings: Settings,
    rules: Rules,
}

impl Balance for Policy {
    fn index(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Box<dyn Picker> {
        Box::new(Pool::new(Utilization(self.settings.clone()), &endpoints, self.rules.clone()))
    }
    fn observe(&self, endpoint: &Endpoint, outcome: &TryOutcome<'_>, now: Moment) {
        if let Ok((_, headers)) = &outcome.result
            && let Some(report) = Report::find(headers, &self.settings.names)
        {
            core::learn(&self.settings, &endpoint.state, &report, now);
        }
    }
    fn takes_answers(&self) -> bool {
        true
    }
    fn answered(&self, endpoint: &Arc<Endpoint>, headers: &mut HeaderMap, body: &mut Body) {
        strip(headers);
        // Only a stream can have trailers.
        if let Body::Stream(_) = body {
            let inner = std::mem::take(body);
            *body = Body::stream(Reported { body: inner, endpoint: endpoint.clone(), settings: self.settings.clone() });
        }
    }
}

/// The load of our endpoints is not the caller's business.
fn strip(fields: &mut HeaderMap) {
    fields.remove(&report::PLAIN);
    fields.remove(&report::BINARY);
}

/// A body whose trailers may hold a report.
struct Reported {
    body: Body,
    endpoint: Arc<Endpoint>,
    settings: Settings,
}

impl HttpBody for Reported {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            if let Some(report) = Report::find(trailers, &self.settings.names) {
                core::learn(&self.settings, &self.endpoint.state, &report, now());
            }
            strip(trailers);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
