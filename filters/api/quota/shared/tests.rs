//! Lease arithmetic against a model of Redis: whatever order things happen in, no more is admitted than the limit and the
//! stated bound.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::slice::{Grant, Said, Slice, Terms as Asked};
use super::*;
use crate::api::quota::core::Tally;

/// What `lease.lua` does, in Rust.
#[derive(Clone)]
struct Model {
    calendar: bool,
    /// Calendar: units. Rolling: tolerance in microseconds.
    limit: f64,
    step: f64,
    state: Option<f64>,
}

impl Model {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a model")]
    fn ask(&mut self, terms: Asked, nodes: u64, now: f64) -> Grant {
        let mut state = self.state.unwrap_or(terms.seen);
        if terms.resync {
            state = state.max(terms.seen);
        }
        let free = if self.calendar {
            state = (state + terms.told as f64).max(0.0);
            self.limit - state
        } else {
            state = now.max(state.max(now) + terms.told as f64 * self.step);
            ((self.limit - (state - now)) / self.step + 0.000_001).floor()
        };
        let free = free.max(0.0) as u64;
        let mut granted = terms.need.max(terms.want.min(free / (2 * nodes)));
        let mut wait = 0.0;
        if granted > free {
            granted = 0;
            if !self.calendar {
                wait = (state - now + terms.need as f64 * self.step - self.limit).max(0.0);
            }
        }
        state += granted as f64 * if self.calendar { 1.0 } else { self.step };
        self.state = Some(state);
        Grant { granted, free: free - granted, state, wait: Duration::from_micros(wait.ceil() as u64) }
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A node gets a request of that cost.
    Request(usize, u64),
    /// The oldest refill under way is answered, or its answer is lost.
    Refill(bool),
    /// A node gives back what it does not use.
    Idle(usize),
    /// Redis goes or comes; coming, it may have forgotten everything.
    Away,
    Back(bool),
    /// Milliseconds pass.
    Time(u64),
    /// A node takes back a charge it made.
    Refund(usize),
}

struct World {
    redis: Model,
    up: bool,
    slices: Vec<Slice>,
    under_way: VecDeque<(usize, Asked, Grant)>,
    now: Moment,
    lease: u64,
    share: u64,
    calendar: bool,
    admitted: u64,
    /// Charges that can be taken back.
    charges: Vec<Vec<u64>>,
}

impl World {
    fn new(nodes: usize, limit: u64, lease: u64, calendar: bool) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let (limit_f, step) = if calendar { (limit as f64, 0.0) } else { (1e6, 1e6 / limit as f64) };
        let slices = (0..nodes).map(|_| Slice::new(Id::default(), calendar.then(|| Period::new(0, 60)), Moment(1)));
        Self {
            redis: Model { calendar, limit: limit_f, step, state: None },
            up: true,
            slices: slices.collect(),
            under_way: VecDeque::new(),
            now: Moment(1),
            lease,
            share: (limit / nodes as u64).max(1),
            calendar,
            admitted: 0,
            charges: vec![Vec::new(); nodes],
        }
    }

    fn share(&self) -> Meter {
        if self.calendar {
            return Meter::Calendar(Tally { limit: self.share, period: Period::new(0, 60), left: Duration::ZERO });
        }
        Meter::Rolling(Rate::new(self.share, Duration::from_secs(1), self.share), self.now)
    }

    fn redis(&mut self, terms: Asked) -> Grant {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let now = self.now.0 as f64 / 1000.0;
        self.redis.ask(terms, self.slices.len() as u64, now)
    }

    fn step(&mut self, step: &Step) {
        let share = self.share();
        match *step {
            Step::Request(node, n) => {
                let node = node % self.slices.len();
                let said = self.slices[node].take(n, self.lease, share, self.now);
                let admitted = match said {
                    Said::Granted(_, refill) => {
                        if refill && self.up {
                            let terms = self.slices[node].ask(0, self.lease, self.now);
                            let grant = self.redis(terms);
                            self.under_way.push_back((node, terms, grant));
                        }
                        true
                    }
                    Said::Empty(_) => false,
                    Said::Ask if self.up => {
                        let terms = self.slices[node].ask(n, self.lease, self.now);
                        let grant = self.redis(terms);
                        self.slices[node].answer(terms, grant, self.now);
                        matches!(self.slices[node].take(n, self.lease, share, self.now), Said::Granted(..))
                    }
                    Said::Ask => self.slices[node].fall_back(n, share, self.now).allowed,
                };
                if admitted {
                    self.admitted += n;
                    self.charges[node].push(n);
                }
            }
            Step::Refill(arrives) => {
                if let Some((node, terms, grant)) = self.under_way.pop_front() {
                    if arrives {
                        self.slices[node].answer(terms, grant, self.now);
                    } else {
                        self.slices[node].unanswered(terms);
                    }
                }
            }
            Step::Idle(node) if self.up => {
                let node = node % self.slices.len();
                if let Some(terms) = self.slices[node].settle(true) {
                    let grant = self.redis(terms);
                    self.slices[node].answer(terms, grant, self.now);
                }
            }
            Step::Idle(_) => {}
            Step::Away => self.up = false,
            Step::Back(forgot) => {
                if self.up {
                    return;
                }
                if forgot {
                    self.redis.state = None;
                }
                for node in 0..self.slices.len() {
                    if let Some(terms) = self.slices[node].remind() {
                        let grant = self.redis(terms);
                        self.slices[node].answer(terms, grant, self.now);
                    }
                }
                self.up = true;
            }
            Step::Time(ms) => self.now = self.now + Duration::from_millis(ms),
            Step::Refund(node) => {
                let node = node % self.slices.len();
                if let Some(n) = self.charges[node].pop() {
                    self.slices[node].give_back(n, share);
                    self.admitted -= n;
                }
            }
        }
    }
}

fn connected() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<usize>(), 1u64..4).prop_map(|(node, n)| Step::Request(node, n)),
        2 => any::<bool>().prop_map(Step::Refill),
        1 => any::<usize>().prop_map(Step::Idle),
        2 => (0u64..400).prop_map(Step::Time),
        1 => any::<usize>().prop_map(Step::Refund),
    ]
}

fn troubled() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => connected(),
        1 => Just(Step::Away),
        1 => any::<bool>().prop_map(Step::Back),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// With Redis, a calendar's period never holds more than the limit, whatever gets lost.
    #[test]
    fn a_connected_calendar_is_exact(
        nodes in 1usize..5, limit in 1u64..300, lease in 1u64..50, steps in prop::collection::vec(connected(), 1..400)
    ) {
        let mut world = World::new(nodes, limit, lease, true);
        for step in &steps {
            world.step(step);
            prop_assert!(world.admitted <= limit, "{} of {limit} after {step:?}", world.admitted);
        }
    }

    /// With Redis, a rolling window admits what the bucket gives and the leases of all nodes.
    #[test]
    fn a_connected_window_stays_within_the_bound(
        nodes in 1usize..5, limit in 1u64..300, lease in 1u64..50, steps in prop::collection::vec(connected(), 1..400)
    ) {
        let mut world = World::new(nodes, limit, lease, false);
        for step in &steps {
            world.step(step);
            let refilled = world.now.0 * limit / 1_000_000_000 + 1;
            let bound = limit + refilled + nodes as u64 * lease;
            prop_assert!(world.admitted <= bound, "{} of {bound} after {step:?}", world.admitted);
        }
    }

    /// Redis may go and come, and forget: never more than the limit, the leases, and what others admit alone.
    #[test]
    fn without_redis_the_stated_bound_holds(
        nodes in 1usize..5, limit in 1u64..300, lease in 1u64..50, steps in prop::collection::vec(troubled(), 1..400)
    ) {
        let mut world = World::new(nodes, limit, lease, true);
        let bound = limit + nodes as u64 * lease + (nodes as u64 - 1) * world.share;
        for step in &steps {
            world.step(step);
            prop_assert!(world.admitted <= bound, "{} of {bound} after {step:?}", world.admitted);
        }
    }
}

#[test]
fn a_busy_caller_is_decided_here_and_a_rare_one_strands_nothing() {
    let mut world = World::new(2, 10_000, 100, true);
    let mut asked = 0;
    for _ in 0..2000 {
        let before = world.redis.state;
        world.step(&Step::Request(0, 1));
        world.step(&Step::Refill(true));
        asked += usize::from(world.redis.state != before);
    }
    assert_eq!(world.admitted, 2000);
    assert!(asked < 100, "{asked} questions for 2000 requests");
    let mut world = World::new(2, 100, 50, true);
    for _ in 0..50 {
        world.step(&Step::Request(0, 1));
        world.step(&Step::Time(10_000));
    }
    assert_eq!(world.redis.state, Some(50.0), "nothing is leased that is not used");
}

#[test]
fn an_exhausted_count_is_not_asked_again_at_once() {
    let mut world = World::new(1, 2, 1, true);
    for _ in 0..2 {
        world.step(&Step::Request(0, 1));
    }
    world.step(&Step::Request(0, 1));
    let share = world.share();
    assert!(matches!(world.slices[0].take(1, 1, share, world.now), Said::Empty(_)));
    world.step(&Step::Time(2000));
    assert!(matches!(world.slices[0].take(1, 1, share, world.now), Said::Ask), "others may have given back");
}
