//! `fault`: breaks requests on purpose, to see that callers, retries and fallbacks cope. Ends by itself.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderValue;

use self::core::{ABORT, DELAY, Draw, Plan, TRIES};
use crate::contract::chance;
use crate::contract::filter::{Filter, Step, Verdict};
use crate::contract::inject::{Abort, Injection, Injector, MARK, Tries};
use crate::contract::metrics::Counter;
use crate::contract::trail::Outcome;
use crate::contract::{
    Build, ConfigError, Entry, Expr, Fault, Moment, Node, Phase, Reason, RequestCx, Role, Spot, now,
};
use config::{Config, Failure, MAX_ACTIVE, Scope};

const NAME: &str = "fault";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Injected delays and failures, per request or per try, that end by themselves",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Fault, implied: |_, _| false, build },
};

struct Experiment {
    plan: Arc<Plan>,
    scope: Scope,
    when: Option<Expr>,
    by_header: bool,
    run: Arc<Run>,
    limit: u32,
    counts: Counts,
}

#[derive(Clone)]
struct Counts {
    delayed: Counter,
    aborted: Counter,
    passed: Counter,
}

/// What outlives a config: when the experiment began, and how much of it is going on.
#[derive(Default)]
struct Run {
    /// A [`Moment`]; 0 = not in force yet.
    begun: AtomicU64,
    /// A [`Moment`]: when it is over.
    end: AtomicU64,
    active: AtomicU32,
}

/// One of `maxActive` places.
struct Place(Arc<Run>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("fault is never implied");
    let config: Config = node.read()?;
    let plan = plan(node, &config)?;
    let lasts = config.lasts.as_ref().map(|d| d.value.0);
    let expires = config.expires.as_ref().map(expiry).transpose()?;
    if lasts.is_none() && expires.is_none() {
        return Err(ConfigError::at(node.span, "the experiment has no end")
            .help("say when it is over: `expires: 2026-12-01T00:00:00Z`, or `for: 1h`"));
    }
    let limit = config.max_active.as_ref().map_or(MAX_ACTIVE, |m| m.value);
    if let Some(m) = config.max_active.as_ref().filter(|_| limit == 0) {
        return Err(ConfigError::at(m.span, "nothing could be delayed").help("at least 1"));
    }
    let when = config.when.as_ref().map(|when| Expr::condition(&when.value, when.span)).transpose()?;
    // Not the numbers: turning a knob does not begin the experiment again, another length does.
    let run = build.keep(NAME, &format!("{lasts:?}"), Run::default);
    let kept = run.clone();
    build.at_publish(move || kept.settle(now(), lasts, expires));
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope);
    let count = |kind| {
        let help = "Requests and tries that an experiment touched, by what was done, or would have but for `maxActive`";
        build.metrics.counter("onehop_faults_injected_total", help, &[("route", route), ("kind", kind)])
    };
    let counts = Counts { delayed: count("delay"), aborted: count("abort"), passed: count("over-max-active") };
    Ok(Arc::new(Experiment {
        plan: Arc::new(plan),
        scope: config.scope,
        when,
        by_header: config.by_header,
        run,
        limit,
        counts,
    }))
}

fn plan(node: &Node, config: &Config) -> Result<Plan, ConfigError> {
    if config.delay.is_none() && config.abort.is_none() && !config.by_header {
        return Err(ConfigError::at(node.span, "nothing is injected")
            .help("add `delay`, `abort`, or `byHeader: true` for what callers ask for"));
    }
    let delay = config.delay.as_ref().map(|delay| {
        let share = delay.value.percent.0;
        match (delay.value.fixed, delay.value.range) {
            (Some(fixed), None) => Ok((share, fixed.0, fixed.0)),
            (None, Some([least, most])) if least <= most => Ok((share, least.0, most.0)),
            (None, Some(_)) => {
                Err(ConfigError::at(delay.span, "the range is upside down").help("write the shorter time first"))
            }
            _ => Err(ConfigError::at(delay.span, "exactly one of `fixed` and `range` says how long")
                .help("write `{ percent: 10%, fixed: 2s }` or `{ percent: 10%, range: [100ms, 2s] }`")),
        }
    });
    let abort = config.abort.as_ref().map(|abort| Ok((abort.value.percent.0, kind(abort)?)));
    if let Some(tries) = &config.tries
        && (config.scope != Scope::Attempt || tries.value.is_empty() || tries.value.contains(&0))
    {
        let help = "with `scope: attempt`, name tries from 1: `tries: [1]`";
        return Err(ConfigError::at(tries.span, "these tries can never be meant").help(help));
    }
    let tries = config.tries.as_ref().map_or_else(|| vec![1], |tries| tries.value.clone());
    Ok(Plan { delay: delay.transpose()?, abort: abort.transpose()?, tries })
}

fn kind(abort: &Spot<config::Abort>) -> Result<Abort, ConfigError> {
    let config::Abort { status, grpc_status, failure, .. } = &abort.value;
    match (status, grpc_status, failure) {
        (Some(status), None, None) => core::status(status.value).ok_or_else(|| {
            ConfigError::at(status.span, format!("{} is not the status of a failure", status.value)).help("400 to 599")
        }),
        (None, Some(code), None) => core::grpc(code.value).ok_or_else(|| {
            ConfigError::at(code.span, format!("{} is not the gRPC status of a failure", code.value)).help("1 to 16")
        }),
        (None, None, Some(Failure::Connect)) => Ok(Abort::ConnectFailure),
        (None, None, Some(Failure::Reset)) => Ok(Abort::Reset),
        _ => Err(ConfigError::at(abort.span, "exactly one of `status`, `grpcStatus` and `failure` says how it fails")
            .help("write `{ percent: 5%, status: 503 }`")),
    }
}

/// Time since 1970.
fn expiry(text: &Spot<String>) -> Result<Duration, ConfigError> {
    let at: jiff::Timestamp = text.value.parse().map_err(|_| {
        ConfigError::at(text.span, format!("`{}` is not a point in time", text.value))
            .help("write it with its zone, such as `2026-12-01T00:00:00Z`")
    })?;
    Ok(since_1970(at))
}

fn since_1970(at: jiff::Timestamp) -> Duration {
    Duration::from_nanos(u64::try_from(at.as_nanosecond()).unwrap_or(0))
}

impl Run {
    /// In force from now on, or again.
    fn settle(&self, now: Moment, lasts: Option<Duration>, expires: Option<Duration>) {
        let begun = match self.begun.compare_exchange(0, now.0.max(1), Relaxed, Relaxed) {
            Ok(_) => now,
            Err(begun) => Moment(begun),
        };
        let wall = since_1970(jiff::Timestamp::now());
        self.end.store(core::end(now, wall, begun, lasts, expires).0, Relaxed);
    }

    fn enter(self: &Arc<Self>, limit: u32) -> Option<Place> {
        let room = |active| if active < limit { Some(active + 1) } else { None };
        self.active.fetch_update(Relaxed, Relaxed, room).ok().map(|_| Place(self.clone()))
    }
}

/// What is done, with a place for as long as a delay takes.
fn draw(plan: &Plan, run: &Arc<Run>, limit: u32, counts: &Counts) -> (Draw, Option<Place>) {
    let mut draw = plan.draw(chance::draw);
    let mut place = None;
    if draw.delay.is_some() {
        place = run.enter(limit);
        if place.is_none() {
            counts.passed.inc();
            draw = Draw::default();
        }
    }
    if draw.delay.is_some() {
        counts.delayed.inc();
    }
    if draw.abort.is_some() {
        counts.aborted.inc();
    }
    (draw, place)
}

impl Filter for Experiment {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let plan = if self.by_header { self.asked(rq) } else { Ok(Some(self.plan.clone())) };
        let plan = match plan {
            Ok(Some(plan)) => plan,
            Ok(None) => return Step::NEXT,
            Err(fault) => return Step::fail(fault),
        };
        if now().0 >= self.run.end.load(Relaxed) || self.when.as_ref().is_some_and(|when| !when.bool(rq)) || rq.dry_run
        {
            return Step::NEXT;
        }
        if self.scope == Scope::Attempt {
            let (run, counts) = (self.run.clone(), self.counts.clone());
            rq.scratch.put(Tries(Box::new(Attempts { plan, run, limit: self.limit, counts })));
            return Step::NEXT;
        }
        let (Draw { delay, abort }, place) = draw(&plan, &self.run, self.limit, &self.counts);
        if delay.is_none() && abort.is_none() {
            return Step::NEXT;
        }
        let mark = if abort.is_some() { "abort" } else { "delay" };
        rq.reply_headers.push((MARK, HeaderValue::from_static(mark)));
        let verdict = abort.map_or(Verdict::Next, |abort| Verdict::Fail(Box::new(fault(abort))));
        let Some(delay) = delay else { return Step::Done(verdict) };
        Step::Wait(Box::pin(async move {
            rq.trail.note(NAME, Outcome::Pass, "delayed", 0, delay);
            tokio::time::sleep(delay.min(rq.deadline.since(now()))).await;
            drop(place);
            verdict
        }))
    }
}

impl Experiment {
    /// What a trusted caller asks for; the fields end here, or a hop further on would do it again.
    fn asked(&self, rq: &mut RequestCx) -> Result<Option<Arc<Plan>>, Fault> {
        let plan = if rq.conn.trusted { self.plan.asked(&rq.headers) } else { Ok(None) };
        for name in [MARK, DELAY, ABORT, TRIES] {
            rq.headers.remove(name);
        }
        match plan {
            Ok(plan) => Ok(plan.map(Arc::new)),
            Err(name) => Err(Fault::new(Reason::BadHeader).detail(format!("`{name}` cannot be read"))),
        }
    }
}

fn fault(abort: Abort) -> Fault {
    let fault = match abort {
        Abort::Status(status) => Fault::new(Reason::Injected).answer(status),
        Abort::Grpc(code) => Fault::new(Reason::Injected).grpc_status(code),
        Abort::ConnectFailure => Fault::never_ran(Reason::ConnectFailed),
        Abort::Reset => Fault::new(Reason::Reset),
    };
    fault.detail("injected")
}

/// The tries of one request.
struct Attempts {
    plan: Arc<Plan>,
    run: Arc<Run>,
    limit: u32,
    counts: Counts,
}

impl Injector for Attempts {
    fn inject(&mut self, attempt: u32) -> Option<Injection> {
        if !self.plan.tries.contains(&attempt) || now().0 >= self.run.end.load(Relaxed) {
            return None;
        }
        let (Draw { delay, abort }, place) = draw(&self.plan, &self.run, self.limit, &self.counts);
        if delay.is_none() && abort.is_none() {
            return None;
        }
        Some(Injection { delay, abort, hold: place.map(|place| Box::new(place) as _) })
    }
}
