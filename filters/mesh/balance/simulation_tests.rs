//! Policies under simulated traffic: seeded arrivals, endpoints with queues, time that costs nothing. What is asserted
//! are the promises of the READMEs, and it holds for each seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::contract::mesh::{Balance, Endpoint, Pick, TryOutcome};
use crate::contract::{Entry, Moment, Role};
use crate::mesh::bed::{self, Bed};
use crate::mesh::chance::{Dice, mix};

const SEEDS: [u64; 3] = [1, 20_261_122, 0xFEED];
const MS: f64 = 1e6;

/// A service whose endpoints each work on a few requests at once, the others in line.
struct Fleet {
    endpoints: Arc<[Arc<Endpoint>]>,
    /// Mean time of each endpoint for one request, in nanoseconds.
    means: Vec<f64>,
    /// When each place of each endpoint is free.
    places: Vec<Vec<f64>>,
    /// What each answer says of its endpoint's load.
    reports: Vec<Option<HeaderMap>>,
    /// When the last request came, in nanoseconds.
    clock: f64,
}

/// What came of a run.
struct Run {
    /// Tries of each endpoint.
    tries: Vec<u64>,
    /// Times from arrival to answer, ascending.
    latencies: Vec<f64>,
}

impl Fleet {
    fn new(means: &[f64], places: usize) -> Self {
        Self {
            endpoints: bed::endpoints(&vec![1; means.len()]),
            means: means.to_vec(),
            places: vec![vec![0.0; places]; means.len()],
            reports: vec![None; means.len()],
            clock: 1e9,
        }
    }

    /// Takes a request at `now` and says when it is done. Work varies by half either way.
    fn serve(&mut self, i: usize, now: f64, dice: &mut Dice) -> f64 {
        let work = self.means[i] * (0.5 + dice.fraction());
        let place = self.places[i].iter_mut().min_by(|a, b| a.total_cmp(b)).expect("an endpoint has places");
        *place = place.max(now) + work;
        *place
    }

    /// When a request that came now would be done, on average: what only an oracle knows.
    fn expected(&self, i: usize, now: f64) -> f64 {
        self.places[i].iter().copied().fold(f64::INFINITY, f64::min).max(now) + self.means[i]
    }

    /// `requests` arrivals at random, `rate` a second; `choose` says where each goes, `observe` hears of answers.
    fn run(
        &mut self,
        (requests, rate, seed): (usize, f64, u64),
        mut choose: impl FnMut(&Self, f64, u64) -> usize,
        observe: impl Fn(&Endpoint, &TryOutcome<'_>, Moment),
    ) -> Run {
        let mut dice = Dice::new(seed);
        let mut run = Run { tries: vec![0; self.means.len()], latencies: Vec::with_capacity(requests) };
        let mut under_way: BinaryHeap<Reverse<(u64, usize, u64)>> = BinaryHeap::new();
        let none = HeaderMap::new();
        let mut now = self.clock;
        for _ in 0..requests {
            now += -(1.0 - dice.fraction()).ln() / rate * 1e9;
            while let Some(Reverse((end, i, began))) = under_way.peek().copied().filter(|r| r.0.0 as f64 <= now) {
                under_way.pop();
                let e = &self.endpoints[i];
                e.state.inflight.fetch_sub(1, Relaxed);
                let result = Ok((StatusCode::OK, self.reports[i].as_ref().unwrap_or(&none)));
                let latency = Duration::from_nanos(end - began);
                observe(e, &TryOutcome { result, grpc: None, latency }, Moment(end));
            }
            let i = choose(self, now, dice.roll());
            let end = self.serve(i, now, &mut dice);
            self.endpoints[i].state.inflight.fetch_add(1, Relaxed);
            under_way.push(Reverse((end as u64, i, now as u64)));
            run.tries[i] += 1;
            run.latencies.push(end - now);
        }
        self.clock = now;
        run.latencies.sort_by(f64::total_cmp);
        run
    }

    /// The same under a policy.
    fn under(&mut self, policy: &Arc<dyn Balance>, plan: (usize, f64, u64)) -> Run {
        let picker = policy.index(self.endpoints.clone());
        let ids: Vec<u64> = self.endpoints.iter().map(|e| e.id).collect();
        let choose = |_: &Self, now: f64, seed: u64| {
            let cx = Pick { now: Moment(now as u64), seed, hash: Some(mix(seed)), tried: &[] };
            let picked = picker.pick(&cx).expect("all are available").id;
            ids.iter().position(|id| *id == picked).expect("one of the set")
        };
        self.run(plan, choose, |e, outcome, now| policy.observe(e, outcome, now))
    }
}

impl Run {
    fn quantile(&self, q: f64) -> f64 {
        self.latencies[((self.latencies.len() - 1) as f64 * q) as usize] / MS
    }

    /// How far the share of any endpoint is from `due`, as a part of that.
    fn off(&self, due: &[f64]) -> f64 {
        let (tries, all) = (self.tries.iter().sum::<u64>() as f64, due.iter().sum::<f64>());
        self.tries.iter().zip(due).map(|(n, d)| (*n as f64 / tries / (d / all) - 1.0).abs()).fold(0.0, f64::max)
    }
}

fn policy(entry: &Entry, json: &str) -> Arc<dyn Balance> {
    let Role::Balance(build) = entry.role else { panic!("a balancer") };
    Bed::default().build(|b| build(Some(&bed::node(json)), b)).expect("valid")
}

use super::{least_request, maglev, peak_ewma, random, round_robin, utilization};

/// Ten equal endpoints, at seven tenths of what they can do.
#[test]
fn load_is_spread_within_five_percent_of_ideal() {
    let by = |entry: &'static Entry, json: &'static str| (entry, json);
    for (entry, json) in [
        by(&round_robin::ENTRY, "{}"),
        by(&random::ENTRY, "{}"),
        by(&least_request::ENTRY, "{}"),
        by(&peak_ewma::ENTRY, "{}"),
        by(&utilization::ENTRY, "{}"),
        by(&maglev::ENTRY, r#"{"hash":"ip"}"#),
    ] {
        for seed in SEEDS {
            let mut fleet = Fleet::new(&[10.0 * MS; 10], 4);
            let run = fleet.under(&policy(entry, json), (100_000, 2_800.0, seed));
            let off = run.off(&[1.0; 10]);
            assert!(off <= 0.05, "{} with seed {seed}: {:.1} % off, {:?}", entry.name, off * 100.0, run.tries);
        }
    }
}

/// Ten endpoints of which one takes ten times as long: the oracle sends each request to whoever will be done first.
#[test]
fn peak_ewma_comes_close_to_the_oracle_s_tail() {
    let mut means = [10.0 * MS; 10];
    means[3] = 100.0 * MS;
    for seed in SEEDS {
        let plan = (100_000, 2_000.0, seed);
        let mut fleet = Fleet::new(&means, 8);
        let oracle = fleet.run(
            plan,
            |fleet, now, _| {
                let done = |i: &usize| fleet.expected(*i, now);
                (0..10).min_by(|a, b| done(a).total_cmp(&done(b))).expect("ten")
            },
            |_, _, _| {},
        );
        let run = Fleet::new(&means, 8).under(&policy(&peak_ewma::ENTRY, "{}"), plan);
        for q in [0.5, 0.9, 0.99] {
            let (ours, best) = (run.quantile(q), oracle.quantile(q));
            assert!(ours <= 1.2 * best, "seed {seed}, quantile {q}: {ours:.1} ms, the oracle {best:.1} ms");
        }
        let blind = Fleet::new(&means, 8).under(&policy(&random::ENTRY, "{}"), plan);
        assert!(blind.quantile(0.99) > 3.0 * oracle.quantile(0.99), "the simulation would notice a slow endpoint");
    }
}

/// Endpoints of three sizes that report their use: each is loaded alike.
#[test]
fn utilization_finds_out_what_each_can_do() {
    let sizes = [1.0, 1.0, 2.0, 4.0];
    for seed in SEEDS {
        let mut fleet = Fleet::new(&sizes.map(|size| 8.0 * MS / size), 1);
        for (report, size) in fleet.reports.iter_mut().zip(sizes) {
            // 100 requests a second use up 0.8 of the smallest.
            let text = format!("TEXT cpu_utilization={},rps_fractional=100", 0.8 / size);
            let value = HeaderValue::try_from(text).expect("text");
            *report = Some(HeaderMap::from_iter([(HeaderName::from_static("endpoint-load-metrics"), value)]));
        }
        let policy = policy(&utilization::ENTRY, r#"{"blackoutPeriod":"1s","weightUpdatePeriod":"100ms"}"#);
        fleet.under(&policy, (2_000, 500.0, seed));
        let run = fleet.under(&policy, (50_000, 500.0, seed));
        let off = run.off(&sizes);
        assert!(off <= 0.05, "seed {seed}: {:.1} % off, {:?}", off * 100.0, run.tries);
    }
}

/// With one endpoint down the others share its load alike, whoever comes next in turn.
#[test]
fn who_is_left_shares_alike() {
    for entry in [&round_robin::ENTRY, &random::ENTRY, &least_request::ENTRY, &utilization::ENTRY] {
        let mut fleet = Fleet::new(&[10.0 * MS; 10], 4);
        fleet.endpoints[4].state.ejected_until.store(u64::MAX, Relaxed);
        let run = fleet.under(&policy(entry, "{}"), (100_000, 2_000.0, 7));
        let mut due = [1.0; 10];
        due[4] = 0.0;
        let others: Vec<f64> = due.iter().copied().filter(|d| *d > 0.0).collect();
        assert_eq!(run.tries[4], 0);
        let tries = run.tries.iter().copied().filter(|n| *n > 0).collect();
        let off = Run { tries, latencies: Vec::new() }.off(&others);
        assert!(off <= 0.05, "{}: {:.1} % off, {:?}", entry.name, off * 100.0, run.tries);
    }
}
