//! A service of limited capacity behind the limit, in virtual time: seeded, so that each run is the same.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::super::config::{Meaning, Section};
use super::super::core::Limiter;
use super::super::pace;
use crate::contract::Moment;
use crate::contract::principal::Priority::Normal;
use crate::mesh::bed;
use crate::mesh::chance::Dice;
use crate::mesh::places::{Asked, Called, Places};

const SECOND: f64 = 1e9;

/// How long one request keeps one server of the service busy.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Always as long.
    Even(f64),
    /// Mostly short, at times long: exponential.
    Random(f64),
}

impl Work {
    const fn mean(self) -> f64 {
        match self {
            Self::Even(ms) | Self::Random(ms) => ms * 1e6,
        }
    }
    fn draw(self, dice: &mut Dice) -> f64 {
        match self {
            Self::Even(_) => self.mean(),
            Self::Random(_) => -self.mean() * (1.0 - dice.fraction()).ln(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    /// A server is done with this request.
    Done(usize),
    /// The request's wait in the queue is over.
    Impatient(usize),
}

/// What came of a run, after its warm-up.
struct Run {
    /// Answers a second.
    goodput: f64,
    /// Sent away, after the warm-up.
    refused: usize,
    /// From arrival to answer, in nanoseconds, sorted.
    times: Vec<f64>,
    /// Limit at the end of each second.
    limits: Vec<u32>,
}

impl Run {
    fn p99(&self) -> f64 {
        self.times[self.times.len() * 99 / 100]
    }
}

/// One service: so many servers, with a queue of its own before them.
struct World {
    servers: usize,
    work: Work,
    /// Requests a second.
    rate: f64,
    seconds: u64,
    seed: u64,
    /// How much slower the service is from this second on.
    slower: Option<(u64, f64)>,
}

impl World {
    fn capacity(&self) -> f64 {
        self.servers as f64 / self.work.mean() * SECOND
    }

    fn run(&self, meaning: &Meaning) -> Run {
        let limiter = Limiter::new(&meaning.limits, self.seed);
        let cap = limiter.adopt(&meaning.limits);
        let places = Places::new(cap, meaning.max_pending, Some(pace(meaning, Duration::ZERO)));
        let mut dice = Dice::new(self.seed);
        let mut events = BinaryHeap::from([Reverse((0u64, Event::Arrives))]);
        let mut queue: Vec<(usize, Pin<Box<dyn Future<Output = Called> + '_>>)> = Vec::new();
        let (mut arrived, mut admitted): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let (mut busy, mut backlog) = (0, VecDeque::new());
        let mut run = Run { goodput: 0.0, refused: 0, times: Vec::new(), limits: Vec::new() };
        let warm = (self.seconds / 3) as f64 * SECOND;
        let end = self.seconds as f64 * SECOND;
        while let Some(Reverse((at, event))) = events.pop() {
            if at as f64 > end {
                break;
            }
            let now = Moment(at);
            while (run.limits.len() as u64) < at / SECOND as u64 {
                run.limits.push(places.cap());
            }
            let mut enter = Vec::new();
            match event {
                Event::Arrives => {
                    let id = arrived.len();
                    arrived.push(at);
                    admitted.push(0);
                    match places.ask(Normal, now) {
                        Asked::Yes(taken) => {
                            limiter.taken(taken);
                            enter.push(id);
                        }
                        Asked::Full => {
                            limiter.full();
                            run.refused += usize::from(at as f64 > warm);
                        }
                        Asked::Wait(ticket) => {
                            limiter.full();
                            let patience = ticket.patience.unwrap_or(meaning.timeout);
                            events.push(Reverse(((now + patience).0, Event::Impatient(id))));
                            queue.push((id, Box::pin(ticket.called())));
                        }
                    }
                    let pause = -(1.0 - dice.fraction()).ln() / self.rate * SECOND;
                    events.push(Reverse((at + pause as u64, Event::Arrives)));
                }
                Event::Done(id) => {
                    busy -= 1;
                    let latency = Duration::from_nanos(at - admitted[id]);
                    if let Some(change) = limiter.sample(&meaning.limits, latency, now) {
                        places.set_pace(change.pace(meaning));
                        places.resize(change.limit, meaning.max_pending, now);
                    }
                    places.release(now);
                    if at as f64 > warm {
                        run.times.push((at - arrived[id]) as f64);
                    }
                }
                Event::Impatient(id) => {
                    if let Some(i) = queue.iter().position(|(of, _)| *of == id) {
                        drop(queue.remove(i));
                        places.gave_up(now);
                        run.refused += usize::from(at as f64 > warm);
                    }
                }
            }
            queue.retain_mut(|(id, turn)| match turn.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => true,
                Poll::Ready(called) => {
                    if called == Called::Place {
                        enter.push(*id);
                    } else {
                        run.refused += usize::from(at as f64 > warm);
                    }
                    false
                }
            });
            for id in enter {
                admitted[id] = at;
                backlog.push_back(id);
            }
            while busy < self.servers
                && let Some(id) = backlog.pop_front()
            {
                busy += 1;
                let slower = self.slower.filter(|(from, _)| at >= from * SECOND as u64).map_or(1.0, |(_, by)| by);
                let took = self.work.draw(&mut dice) * slower;
                events.push(Reverse((at + took as u64, Event::Done(id))));
            }
        }
        run.times.sort_by(f64::total_cmp);
        run.goodput = run.times.len() as f64 / (end - warm) * SECOND;
        run
    }
}

fn meaning(json: &str) -> Meaning {
    bed::node(json).read::<Section>().and_then(|s| s.meaning()).expect("valid")
}

fn service(servers: usize, work: Work, load: f64, seed: u64) -> World {
    let mut world = World { servers, work, rate: 0.0, seconds: 20, seed, slower: None };
    world.rate = world.capacity() * load;
    world
}

#[test]
fn at_three_times_capacity_goodput_stays_and_admitted_requests_stay_fast() {
    let ours = meaning("{}");
    for (servers, work) in [
        (4, Work::Even(20.0)),
        (10, Work::Even(20.0)),
        (10, Work::Random(20.0)),
        (10, Work::Random(80.0)),
        (64, Work::Random(20.0)),
    ] {
        for seed in 1..3 {
            let calm = service(servers, work, 0.5, seed).run(&ours);
            let world = service(servers, work, 3.0, seed);
            let run = world.run(&ours);
            let what = format!(
                "{servers} x {work:?}, seed {seed}: goodput {:.0} of {:.0} a second, p99 {:.1} ms (calm {:.1} ms), limits {:?}",
                run.goodput,
                world.capacity(),
                run.p99() / 1e6,
                calm.p99() / 1e6,
                run.limits,
            );
            assert!(run.goodput > 0.9 * world.capacity(), "{what}");
            assert!(run.p99() < 2.0 * calm.p99(), "{what}");
        }
    }
}

#[test]
fn a_fixed_limit_far_above_capacity_makes_everybody_wait() {
    // What the test above would show without the adaptive part: it can fail.
    let fixed = meaning(r#"{"minConcurrency":400,"maxConcurrency":400}"#);
    let calm = service(10, Work::Even(20.0), 0.5, 1).run(&fixed);
    let run = service(10, Work::Even(20.0), 3.0, 1).run(&fixed);
    assert!(run.p99() > 10.0 * calm.p99());
}

#[test]
fn nobody_is_refused_below_capacity() {
    for seed in 1..4 {
        let world = service(16, Work::Random(20.0), 0.6, seed);
        let run = world.run(&meaning("{}"));
        let arrived = world.rate * world.seconds as f64;
        assert!((run.refused as f64) < 0.001 * arrived, "{} of {arrived}: {:?}", run.refused, run.limits);
    }
}

#[test]
fn capacity_that_shrinks_and_latency_that_grows_are_followed() {
    for seed in 1..4 {
        // The service becomes three times slower, and so its capacity a third: overload from then on.
        let mut world = service(16, Work::Random(20.0), 0.6, seed);
        world.slower = Some((10, 3.0));
        let run = world.run(&meaning("{}"));
        let left = world.capacity() / 3.0;
        assert!(run.goodput > 0.9 * left, "{} of {left}: {:?}", run.goodput, run.limits);
        assert!(run.limits.iter().all(|n| *n >= 4), "never shut: {:?}", run.limits);
    }
}
