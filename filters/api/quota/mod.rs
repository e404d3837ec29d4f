//! `quota`: how many requests a caller has left. Several limits hold together, those of its plan included.
//!
//! The life of a request: each limit is charged in turn, here and now where it can be; the first that refuses takes the
//! charges before it back. What was charged is noted, so that the way out can settle a cost that only the answer knows,
//! and give back what a request cost that we could not serve.

mod calendar;
mod cells;
mod config;
mod core;
mod cost;
pub mod guard;
mod saved;
mod service;
mod shared;
mod slots;
mod store;
#[cfg(test)]
mod tests;
pub mod usage;
mod window;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;

use self::core::Charge;
use crate::api::left::{Limit as Told, Register, TELLERS};
use crate::contract::filter::{Filter, Needs, Step, Verdict};
use crate::contract::scratch::Failure;
use crate::contract::trail::Outcome;
use crate::contract::{
    Build, ConfigError, Directory, Entry, Fault, Node, Origin, Phase, Reason, RequestCx, ResponseCx, Role, RouteView,
    Spot, now,
};
use config::Limit;
use cost::Settlement;
use window::{Asked, Pending, Taken, Window};

const NAME: &str = "quota";
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Request quotas by caller, of routes and of plans: rolling, by calendar, shared, by cost",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Vec<Limit>>(),
    role: Role::Api { phase: Phase::Quota, implied, build },
};

/// A plan's quota acts wherever consumers are told apart; asking what is left is free.
fn implied(route: &RouteView<'_>, directory: &Directory) -> bool {
    route.keys.contains(&"auth")
        && !route.keys.iter().any(|key| TELLERS.contains(key))
        && directory.plans.values().any(|p| p.sections.contains_key(NAME))
}

struct Quota {
    /// Of the route; holds for callers without a plan.
    own: Limits,
    /// Of plans, by plan name.
    plans: BTreeMap<Arc<str>, Limits>,
    /// Whether any limit reads the answer's JSON, which must then come uncoded.
    reads_json: bool,
}

struct Limits {
    windows: Vec<Arc<Window>>,
    /// `RateLimit-Policy` of the route's windows and these; `None` where there are none.
    policy: Option<HeaderValue>,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let own = node.map(|n| windows(n, None, build)).transpose()?.unwrap_or_default();
    let route = std::mem::take(&mut build.scope);
    let mut plans = BTreeMap::new();
    for plan in build.directory.plans.values() {
        let Some(section) = plan.sections.get(NAME) else { continue };
        // One count per consumer, whatever route it calls.
        build.scope = format!("plans.{}", plan.name);
        let windows = windows(section, Some((&plan.name, &route)), build);
        let windows = windows?;
        plans.insert(plan.name.clone(), Limits { policy: policy(own.iter().chain(&windows)), windows });
    }
    build.scope = route;
    let all = || own.iter().chain(plans.values().flat_map(|p| &p.windows));
    let reads_json = all().any(|w| w.cost.response().is_some_and(|e| e.reads_json()));
    let told = all().map(|window| Arc::downgrade(window) as Weak<dyn Told>).collect();
    Register::of(build).enter(told, build);
    Ok(Arc::new(Quota { own: Limits { policy: policy(own.iter()), windows: own }, plans, reads_json }))
}

/// draft-ietf-httpapi-ratelimit-headers-10 section 3: q and w are whole numbers, w in seconds; a month has no w. Limits
/// that refuse nobody are not told.
fn policy<'a>(windows: impl Iterator<Item = &'a Arc<Window>>) -> Option<HeaderValue> {
    let told = windows.filter(|w| !w.shadow);
    let items: Vec<String> = told.filter_map(|w| policy_item(w)).collect();
    if items.is_empty() { None } else { HeaderValue::try_from(items.join(", ")).ok() }
}

fn policy_item(window: &Window) -> Option<String> {
    let mut item = format!("{};q={}", window.quoted, window.limit);
    let seconds = match window.per? {
        config::Per::Time(time) => Some(time.0.as_secs().max(1)),
        config::Per::Unit(unit) => unit.seconds(),
    };
    if let Some(seconds) = seconds {
        // Writing to a string cannot fail.
        let _ = write!(item, ";w={seconds}");
    }
    Some(item)
}

fn windows(node: &Node, plan: Option<(&str, &str)>, build: &mut Build<'_>) -> Result<Vec<Arc<Window>>, ConfigError> {
    let limits: Vec<Spot<Limit>> = node.read()?;
    if limits.is_empty() {
        return Err(
            ConfigError::at(node.span, "`quota` has no limit").help("write `[{ by: ip, limit: 100, per: 1m }]`")
        );
    }
    let mut windows: Vec<Arc<Window>> = Vec::with_capacity(limits.len());
    for limit in limits {
        let span = limit.value.name.as_ref().map_or(limit.span, |n| n.span);
        let window = window::build(limit, plan, build)?;
        if windows.iter().any(|w| w.name == window.name) {
            return Err(ConfigError::at(span, format!("two limits are called `{}`", window.name))
                .help("give them different names with `name`"));
        }
        windows.push(Arc::new(window));
    }
    Ok(windows)
}

/// What a request was charged, for its way out.
struct Note(SmallVec<[(u16, Taken); 2]>);

/// The charges of a request so far.
#[derive(Default)]
struct Tab<'a> {
    taken: SmallVec<[(&'a Arc<Window>, Taken); 3]>,
    /// Fields that services of limits add to the answer.
    fields: Option<Box<HeaderMap>>,
}

/// What the windows from one on say.
enum Walked {
    Through,
    Refused(Box<Fault>),
    /// The window at that place waits for somebody.
    Wait(usize, Box<Pending>),
}

impl Quota {
    /// What holds beside the route's own limits.
    fn plan(&self, rq: &RequestCx) -> Option<&Limits> {
        self.plans.get(&rq.consumer.as_ref()?.plan.as_ref()?.name)
    }

    fn windows<'a>(&'a self, plan: Option<&'a Limits>) -> impl Iterator<Item = &'a Arc<Window>> {
        self.own.windows.iter().chain(plan.map_or(&[][..], |p| &p.windows))
    }

    /// Charges the windows from one on. A refusal takes the charges before it back; until then, for an instant, another
    /// request may see them, which can refuse one too early but never admit one too many.
    fn walk<'a>(&'a self, plan: Option<&'a Limits>, rq: &mut RequestCx, tab: &mut Tab<'a>, from: usize) -> Walked {
        let at = now();
        for (i, window) in self.windows(plan).enumerate().skip(from) {
            match window.ask(rq, at) {
                Asked::Decided(taken) => {
                    if let Some(fault) = tab.add(window, taken, rq) {
                        return Walked::Refused(fault);
                    }
                }
                Asked::Nameless if window.shadow => tab.shadow(window, rq),
                Asked::Nameless => {
                    if !rq.dry_run {
                        window.counts.rejected.inc();
                    }
                    tab.undo(rq);
                    let detail = format!("the limit `{}` has nothing to count this request by", window.name);
                    return Walked::Refused(Box::new(Fault::new(Reason::Forbidden).by(NAME).detail(detail)));
                }
                Asked::Wait(pending) => return Walked::Wait(i, Box::new(pending)),
            }
        }
        Walked::Through
    }

    /// The rest of the way, where somebody else must be asked.
    async fn wait<'a>(
        &'a self,
        plan: Option<&'a Limits>,
        rq: &mut RequestCx,
        mut tab: Tab<'a>,
        mut place: usize,
        mut pending: Box<Pending>,
    ) -> Verdict {
        loop {
            let (taken, fields) = pending.resolve().await;
            if let Some(fields) = fields {
                tab.fields.get_or_insert_default().extend(*fields);
            }
            let window = self.windows(plan).nth(place).expect("the place of the window that waits");
            if let Some(fault) = tab.add(window, taken, rq) {
                return Verdict::Fail(fault);
            }
            match self.walk(plan, rq, &mut tab, place + 1) {
                Walked::Through => {
                    self.pass(plan, rq, tab);
                    return Verdict::Next;
                }
                Walked::Refused(fault) => return Verdict::Fail(fault),
                Walked::Wait(next, asked) => (place, pending) = (next, asked),
            }
        }
    }

    /// Every limit let it pass.
    fn pass(&self, plan: Option<&Limits>, rq: &mut RequestCx, tab: Tab<'_>) {
        let Tab { taken, fields } = tab;
        if let Some(fields) = fields {
            let named = fields.iter().map(|(name, value)| (name.clone(), value.clone()));
            rq.reply_headers.extend(named);
        }
        let mut state = String::new();
        for (window, taken) in taken.iter().filter(|(w, t)| !w.shadow && t.charge.remaining != u64::MAX) {
            item(&mut state, window, taken.charge);
        }
        if !state.is_empty() {
            let policy = plan.map_or(&self.own, |p| p).policy.clone();
            // Made of checked names and digits.
            let state = HeaderValue::try_from(state).ok();
            rq.reply_headers.extend(policy.map(|v| (POLICY, v)).into_iter().chain(state.map(|v| (STATE, v))));
        }
        if rq.dry_run || taken.is_empty() {
            return;
        }
        if self.reads_json {
            // Without the field any coding would do (RFC 9110 section 12.5.3).
            rq.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let places = |window: &Arc<Window>| self.windows(plan).position(|w| Arc::ptr_eq(w, window));
        let note = taken.iter().filter_map(|(window, taken)| Some((u16::try_from(places(window)?).ok()?, *taken)));
        rq.scratch.put(Note(note.collect()));
    }
}

impl<'a> Tab<'a> {
    /// Adds a charge; the fault if it refuses.
    fn add(&mut self, window: &'a Arc<Window>, taken: Taken, rq: &mut RequestCx) -> Option<Box<Fault>> {
        if taken.charge.allowed {
            if !rq.dry_run {
                window.counts.allowed.inc();
            }
            self.taken.push((window, taken));
            return None;
        }
        if window.shadow {
            self.shadow(window, rq);
            return None;
        }
        if !rq.dry_run {
            window.counts.rejected.inc();
        }
        self.undo(rq);
        let mut fault = if taken.unknown {
            Fault::new(Reason::QuotaUnavailable)
                .by(NAME)
                .detail(format!("the limit `{}` cannot be checked", window.name))
                .header(RETRY_AFTER, HeaderValue::from_static("1"))
        } else {
            refusal(window, taken.charge)
        };
        if let Some(fields) = self.fields.take() {
            fault.headers.get_or_insert_default().extend(*fields);
        }
        Some(Box::new(fault))
    }

    /// Marks a request that would have been refused.
    fn shadow(&mut self, window: &Window, rq: &mut RequestCx) {
        if !rq.dry_run {
            window.counts.shadowed.inc();
        }
        rq.trail.note(NAME, Outcome::Pass, "shadow", 0, Duration::ZERO);
    }

    fn undo(&mut self, rq: &RequestCx) {
        if !rq.dry_run {
            self.taken.iter().for_each(|(window, taken)| window.refund(taken));
        }
    }
}

impl Filter for Quota {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let plan = self.plan(rq);
        let mut tab = Tab::default();
        match self.walk(plan, rq, &mut tab, 0) {
            Walked::Through => {
                self.pass(plan, rq, tab);
                Step::NEXT
            }
            Walked::Refused(fault) => Step::Done(Verdict::Fail(fault)),
            Walked::Wait(place, pending) => Step::Wait(Box::pin(self.wait(plan, rq, tab, place, pending))),
        }
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        let Some(Note(note)) = rq.scratch.take() else { return Step::NEXT };
        let plan = self.plan(rq);
        let window = |place: &u16| self.windows(plan).nth(usize::from(*place));
        if is_ours(rq, rs) {
            for (window, taken) in note.iter().filter_map(|(place, taken)| Some((window(place)?, taken))) {
                window.refund(taken);
                window.counts.refunded.inc();
            }
            return Step::NEXT;
        }
        // Of a tunnel only the head is seen here: its estimate stays.
        if rs.status == StatusCode::SWITCHING_PROTOCOLS {
            return Step::NEXT;
        }
        let settlements = note.iter().filter_map(|(place, taken)| {
            let window = window(place)?.clone();
            let (expr, taken) = (window.cost.response()?.clone(), *taken);
            Some(Settlement { expr, settle: Box::new(move |cost| window.settle(&taken, cost)) })
        });
        let settlements: Vec<_> = settlements.collect();
        if !settlements.is_empty() {
            cost::watch(rs, settlements);
        }
        Step::NEXT
    }

    fn needs(&self) -> Needs {
        Needs { response: true }
    }
}

/// Whether the request was not served for a reason that is ours: 503, however the caller's protocol says it.
fn is_ours(rq: &RequestCx, rs: &ResponseCx) -> bool {
    let status = rq.scratch.find::<Failure>().map_or(rs.status, |failure| failure.reason.status());
    rs.origin == Origin::Fault && status == StatusCode::SERVICE_UNAVAILABLE
}

/// 429 with the limit that refused. `Retry-After` and `t` are the same number (draft section 4).
fn refusal(window: &Window, charge: Charge) -> Fault {
    let fault = Fault::new(Reason::OverQuota).by(NAME).detail(format!("the limit `{}` is used up", window.name));
    let mut fields = vec![(RETRY_AFTER, seconds(charge.reset).max(1).to_string())];
    if let Some(policy) = policy_item(window) {
        let mut state = String::new();
        item(&mut state, window, charge);
        fields.extend([(POLICY, policy), (STATE, state)]);
    }
    fields.into_iter().fold(fault, |fault, (name, value)| match HeaderValue::try_from(value) {
        Ok(value) => fault.header(name, value),
        Err(_) => fault,
    })
}

/// Appends a window's item of `RateLimit`.
fn item(state: &mut String, window: &Window, charge: Charge) {
    let t = seconds(charge.reset).max(u64::from(!charge.allowed));
    let (mut r_digits, mut t_digits) = (itoa::Buffer::new(), itoa::Buffer::new());
    let comma = if state.is_empty() { "" } else { ", " };
    for part in [comma, &window.quoted, ";r=", r_digits.format(charge.remaining), ";t=", t_digits.format(t)] {
        state.push_str(part);
    }
}

/// Whole seconds, rounded up: never too early.
fn seconds(d: Duration) -> u64 {
    d.as_secs() + u64::from(d.subsec_nanos() > 0)
}
