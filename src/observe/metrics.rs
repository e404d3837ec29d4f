//! The engine's own metrics: handles resolved when a configuration is compiled, so that a request counts by index.
//!
//! Labels are bounded: names from the configuration, status classes, reasons from a fixed table; never a path, a host
//! or an address.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use onehop_filters::contract::Reason;
use onehop_filters::contract::mesh::TryOutcome;
use onehop_filters::contract::metrics::{Counter, Gauge, Histogram, Registry};

/// Values of the label `code`.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Index into [`CLASSES`]. A status outside 100..=599 counts with the server's errors.
fn class(status: StatusCode) -> usize {
    match status.as_u16() {
        n @ 100..=599 => usize::from(n / 100 - 1),
        _ => 4,
    }
}

fn by_class(registry: &Registry, name: &'static str, help: &'static str, key: (&'static str, &str)) -> [Histogram; 5] {
    CLASSES.map(|code| registry.histogram(name, help, &[key, ("code", code)]))
}

/// What is counted of the requests of one route. Its series are made with its first request: a configuration may have
/// thousands of routes that nobody calls, and each series costs memory on every worker.
#[derive(Clone)]
pub struct RouteMetrics {
    registry: Arc<Registry>,
    route: Arc<str>,
    series: OnceLock<Arc<RouteSeries>>,
}

struct RouteSeries {
    duration: [Histogram; 5],
    overhead: Histogram,
    bytes_in: Counter,
    bytes_out: Counter,
}

impl RouteMetrics {
    /// Handles of the route of this name.
    #[must_use]
    pub fn new(registry: &Arc<Registry>, route: &Arc<str>) -> Self {
        Self { registry: registry.clone(), route: route.clone(), series: OnceLock::new() }
    }

    /// Counts a request that ended. `upstream` is the part of `duration` spent waiting for endpoints.
    pub fn record(&self, status: StatusCode, duration: Duration, upstream: Duration) {
        let series = self.series();
        series.duration[class(status)].observe(duration);
        series.overhead.observe(duration.saturating_sub(upstream));
    }

    /// Counts the bodies of a request that ended.
    pub fn bodies(&self, bytes_in: u64, bytes_out: u64) {
        let series = self.series();
        // Most requests have no body; nothing is added for it.
        if bytes_in > 0 {
            series.bytes_in.add(bytes_in);
        }
        if bytes_out > 0 {
            series.bytes_out.add(bytes_out);
        }
    }

    fn series(&self) -> &RouteSeries {
        self.series.get_or_init(|| Arc::new(RouteSeries::new(&self.registry, &self.route)))
    }
}

impl RouteSeries {
    fn new(registry: &Registry, route: &str) -> Self {
        Self {
            duration: by_class(
                registry,
                "http_server_request_duration_seconds",
                "Time from the end of the request head to the end of the response, by route and status class.",
                ("route", route),
            ),
            overhead: registry.fine_histogram(
                "onehop_proxy_overhead_seconds",
                "Time a request spent in this process: its duration without the time spent waiting for endpoints.",
                &[("route", route)],
            ),
            bytes_in: registry.counter(
                "onehop_request_body_bytes_total",
                "Request body bytes received, by route.",
                &[("route", route)],
            ),
            bytes_out: registry.counter(
                "onehop_response_body_bytes_total",
                "Response body bytes sent, by route.",
                &[("route", route)],
            ),
        }
    }
}

/// How a try ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response below 500.
    Ok,
    /// A response of 500 or above.
    Error,
    /// No connection.
    Connect,
    /// Too late.
    Timeout,
    /// The endpoint closed, reset or refused the stream.
    Reset,
    /// The endpoint broke the protocol.
    Protocol,
    /// Not sent: no endpoint, breaker open, queue full.
    Refused,
    /// The caller left, or another try won.
    Cancelled,
}

impl Outcome {
    const LABELS: [&str; 8] = ["ok", "error", "connect", "timeout", "reset", "protocol", "refused", "cancelled"];

    /// Of a try.
    #[must_use]
    pub fn of(outcome: &TryOutcome<'_>) -> Self {
        match &outcome.result {
            Ok((status, _)) => Self::of_status(*status),
            Err((reason, _)) => Self::of_reason(*reason),
        }
    }

    /// Of a try that got a response head.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        if status.as_u16() < 500 { Self::Ok } else { Self::Error }
    }

    /// Of a try that failed.
    #[must_use]
    pub const fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => Self::Connect,
            Reason::Deadline | Reason::TryTimeout | Reason::IdleTimeout => Self::Timeout,
            Reason::RefusedStream | Reason::Reset | Reason::Truncated => Self::Reset,
            Reason::BadResponse
            | Reason::ResponseTooLarge
            | Reason::ResponseBodyTooLarge
            | Reason::BodyUnusable
            | Reason::InvalidResponse => Self::Protocol,
            Reason::NoEndpoint
            | Reason::NoHealthyEndpoint
            | Reason::BreakerOpen
            | Reason::PendingOverflow
            | Reason::PendingTimeout => Self::Refused,
            _ => Self::Cancelled,
        }
    }
}

/// What is counted of the tries against one service.
#[derive(Clone)]
pub struct ServiceMetrics {
    duration: [Histogram; 5],
    outcomes: [Counter; 8],
    retries: Counter,
    inflight: Gauge,
}

impl ServiceMetrics {
    /// Handles of the service of this name.
    #[must_use]
    pub fn new(registry: &Registry, service: &str) -> Self {
        let service = ("service", service);
        Self {
            duration: by_class(
                registry,
                "http_client_request_duration_seconds",
                "Time from sending a try to the end of its response, by service and status class.",
                service,
            ),
            outcomes: Outcome::LABELS.map(|outcome| {
                registry.counter(
                    "onehop_upstream_requests_total",
                    "Tries by service and how they ended.",
                    &[service, ("outcome", outcome)],
                )
            }),
            retries: registry.counter("onehop_upstream_retries_total", "Tries after the first.", &[service]),
            inflight: registry.gauge("onehop_upstream_inflight_requests", "Tries in flight.", &[service]),
        }
    }

    /// Counts a try by what came of it.
    pub fn count(&self, outcome: &TryOutcome<'_>) {
        self.record(Outcome::of(outcome), outcome.result.as_ref().ok().map(|(status, _)| (*status, outcome.latency)));
    }

    /// Counts a try that ended. Its duration counts if there was a response.
    pub fn record(&self, outcome: Outcome, response: Option<(StatusCode, Duration)>) {
        self.outcomes[outcome as usize].inc();
        if let Some((status, took)) = response {
            self.duration[class(status)].observe(took);
        }
    }

    /// Counts a try after the first.
    pub fn retry(&self) {
        self.retries.inc();
    }

    /// Tries in flight: add 1 and -1.
    #[must_use]
    pub const fn inflight(&self) -> &Gauge {
        &self.inflight
    }
}

/// What is counted of the connections that TCP listeners pass to one service.
#[derive(Clone)]
pub struct TcpMetrics {
    /// Bytes from callers.
    pub received: Counter,
    /// Bytes to callers.
    pub sent: Counter,
    /// Connections under way: add 1 and -1.
    pub open: Gauge,
    /// Time to the connection that was used, its failed tries apart.
    pub connect: Histogram,
    /// Connections that ended by agreement.
    pub closed: Counter,
}

impl TcpMetrics {
    /// Outcome of a connection that ended by agreement.
    pub const CLOSED: &'static str = "closed";

    /// Handles of the service of this name.
    #[must_use]
    pub fn new(registry: &Registry, service: &str) -> Self {
        let labels = [("service", service)];
        let received = "Bytes that callers sent over connections of TCP listeners, by service.";
        let sent = "Bytes that callers got over connections of TCP listeners, by service.";
        Self {
            received: registry.counter("onehop_tcp_received_bytes_total", received, &labels),
            sent: registry.counter("onehop_tcp_sent_bytes_total", sent, &labels),
            open: registry.gauge("onehop_tcp_connections_open", "Connections passed on now.", &labels),
            connect: registry.histogram(
                "onehop_tcp_connect_duration_seconds",
                "Time to connect to an endpoint for a caller of a TCP listener.",
                &labels,
            ),
            closed: Self::ended(registry, service, Self::CLOSED),
        }
    }

    /// Connections by how they ended: [`Self::CLOSED`], or a reason. The service is empty where no route was found.
    #[must_use]
    pub fn ended(registry: &Registry, service: &str, outcome: &'static str) -> Counter {
        let help = "Connections of TCP listeners, by service and how they ended.";
        registry.counter("onehop_tcp_connections_total", help, &[("service", service), ("outcome", outcome)])
    }
}

/// What is counted once per process.
#[derive(Clone)]
pub struct EngineMetrics {
    /// Requests between head and last byte: add 1 and -1.
    pub inflight: Gauge,
    /// Generation of the configuration in force; set from the control thread.
    pub generation: Gauge,
    /// Configurations put in force.
    pub swaps: Counter,
    /// Configurations that were refused.
    pub swaps_rejected: Counter,
    /// Time to compile and publish a configuration.
    pub swap_duration: Histogram,
    rejected: Vec<Counter>,
}

impl EngineMetrics {
    /// Handles of the process.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            inflight: registry.gauge("onehop_inflight_requests", "Requests in flight.", &[]),
            generation: registry.gauge("onehop_config_generation", "Generation of the configuration in force.", &[]),
            swaps: registry.counter("onehop_config_swaps_total", "Configurations put in force.", &[]),
            swaps_rejected: registry.counter("onehop_config_rejected_total", "Configurations refused.", &[]),
            swap_duration: registry.histogram(
                "onehop_config_swap_duration_seconds",
                "Time to compile and publish a configuration.",
                &[],
            ),
            rejected: Reason::ALL
                .iter()
                .map(|reason| {
                    registry.counter(
                        "onehop_requests_rejected_total",
                        "Requests answered by this process instead of an endpoint, by reason.",
                        &[("reason", reason.code())],
                    )
                })
                .collect(),
        }
    }

    /// Counts a request that got a fault for an answer (or none, as for a caller that left).
    pub fn reject(&self, reason: Reason) {
        // `Reason::ALL` is in the order of the variants.
        self.rejected[reason as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::exposition::{Format, expose};

    #[test]
    fn requests_count_by_class() {
        let registry = Arc::new(Registry::default());
        let route = RouteMetrics::new(&registry, &"orders".into());
        for status in [200, 204, 404, 503, 999] {
            let status = StatusCode::from_u16(status).expect("three digits");
            route.record(status, Duration::from_millis(20), Duration::from_millis(19));
        }
        let text = expose(&registry, Format::Text);
        let line =
            |code, n| format!("http_server_request_duration_seconds_count{{route=\"orders\",code=\"{code}\"}} {n}\n");
        for (code, n) in [("1xx", 0), ("2xx", 2), ("4xx", 1), ("5xx", 2)] {
            assert!(text.contains(&line(code, n)), "{text}");
        }
        assert!(text.contains("onehop_proxy_overhead_seconds_bucket{route=\"orders\",le=\"0.0005\"} 0\n"), "{text}");
        assert!(text.contains("onehop_proxy_overhead_seconds_bucket{route=\"orders\",le=\"0.001\"} 5\n"), "{text}");
    }

    #[test]
    fn a_reload_keeps_what_was_counted() {
        let registry = Registry::default();
        ServiceMetrics::new(&registry, "stock").record(Outcome::Ok, None);
        let again = ServiceMetrics::new(&registry, "stock");
        again.record(Outcome::Ok, None);
        assert_eq!(again.outcomes[Outcome::Ok as usize].value(), 2);
    }

    #[test]
    fn every_reason_has_its_own_counter() {
        let registry = Registry::default();
        let engine = EngineMetrics::new(&registry);
        for (n, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, n, "the table is in order");
            engine.reject(reason);
        }
        assert!(engine.rejected.iter().all(|c| c.value() == 1));
    }

    #[test]
    fn every_upstream_failure_has_a_word() {
        for &reason in Reason::ALL {
            let outcome = Outcome::of_reason(reason);
            let upstream = reason.side() == onehop_filters::contract::Side::Upstream;
            assert!(!upstream || !matches!(outcome, Outcome::Ok | Outcome::Refused | Outcome::Cancelled), "{reason}");
        }
    }
}
