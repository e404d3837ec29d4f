use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;

use crate::contract::mesh::{Admit, Gate};
use crate::contract::principal::Priority::{self, High, Low, Normal};
use crate::contract::{Moment, Reason, Role};
use crate::mesh::bed::{self, Bed};
use crate::mesh::places::{Asked, Called, Places};

fn gate(bed: &mut Bed, json: &str) -> Option<Arc<dyn Gate>> {
    let Role::Gate(build) = super::ENTRY.role else { panic!("a gate") };
    bed.build(|b| build(Some(&bed::node(json)), b)).expect("a valid section")
}

fn reason(admit: Admit<'_>) -> Option<Reason> {
    match admit {
        Admit::No(fault) => Some(fault.reason),
        Admit::Yes | Admit::Wait(_) => None,
    }
}

#[test]
fn caps_are_exact_across_threads() {
    let places = Places::new(7, 0, None);
    let (inside, most, refused) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..5_000 {
                    match places.ask(Normal, Moment(0)) {
                        Asked::Yes(_) => {
                            most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, SeqCst);
                            places.release(Moment(0));
                        }
                        Asked::Full => {
                            refused.fetch_add(1, SeqCst);
                        }
                        Asked::Wait(_) => panic!("nobody may wait here"),
                    }
                }
            });
        }
    });
    assert!(most.load(SeqCst) <= 7);
    assert_eq!(places.counts(), (0, 0));
}

#[tokio::test]
async fn who_waits_is_served_in_order_and_may_leave() {
    let places = Arc::new(Places::new(1, 3, None));
    assert!(matches!(places.ask(Normal, Moment(0)), Asked::Yes(1)));
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for n in 0..3 {
        let Asked::Wait(ticket) = places.ask(Normal, Moment(0)) else { panic!("there is room to wait") };
        waiters.push((n, ticket));
    }
    assert!(matches!(places.ask(Normal, Moment(0)), Asked::Full));
    let leaver = waiters.remove(1);
    drop(leaver);
    assert_eq!(places.counts(), (1, 2));
    places.release(Moment(0));
    assert_eq!(places.counts(), (1, 1), "the place went to the first in the queue");
    for (n, ticket) in waiters {
        assert_eq!(ticket.called().await, Called::Place, "all are equal");
        order.lock().push(n);
        places.release(Moment(0));
    }
    assert_eq!(*order.lock(), [0, 2]);
    assert_eq!(places.counts(), (0, 0));
}

#[test]
fn one_who_is_called_and_has_left_gives_the_place_back() {
    let places = Places::new(1, 3, None);
    assert!(matches!(places.ask(Normal, Moment(0)), Asked::Yes(1)));
    let Asked::Wait(first) = places.ask(Normal, Moment(0)) else { panic!("waits") };
    let Asked::Wait(second) = places.ask(Normal, Moment(0)) else { panic!("waits") };
    places.release(Moment(0));
    drop(first);
    assert_eq!(places.counts(), (1, 0), "the second was called in its stead");
    drop(second);
    assert_eq!(places.counts(), (0, 0));
}

#[test]
fn nothing_is_lost_when_waiters_come_and_go_in_threads() {
    let places = Places::new(2, 4, None);
    std::thread::scope(|s| {
        for t in 0..8u32 {
            let places = &places;
            s.spawn(move || {
                let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
                for i in 0..2_000u32 {
                    match places.ask(Normal, Moment(0)) {
                        Asked::Yes(_) => places.release(Moment(0)),
                        Asked::Full => {}
                        Asked::Wait(ticket) if (i + t) % 3 == 0 => drop(ticket),
                        Asked::Wait(ticket) => rt.block_on(async {
                            assert_eq!(ticket.called().await, Called::Place, "all are equal");
                            places.release(Moment(0));
                        }),
                    }
                }
            });
        }
    });
    assert_eq!(places.counts(), (0, 0));
}

#[tokio::test]
async fn refusals() {
    let mut bed = Bed::default();
    assert!(gate(&mut bed, r#"{"maxPending":5}"#).is_none(), "no cap, no gate");
    let g = gate(&mut bed, r#"{"maxRequests":2,"maxConnections":1,"maxPending":1,"pendingTimeout":"200ms"}"#)
        .expect("a cap");
    assert!(matches!(g.admit(Moment(0), Normal), Admit::Yes));
    let Admit::Wait(waits) = g.admit(Moment(0), Normal) else { panic!("waits: the smaller cap counts") };
    assert_eq!(reason(g.admit(Moment(0), Normal)), Some(Reason::PendingOverflow));
    let fault = waits.await.expect_err("nobody leaves");
    assert_eq!(fault.reason, Reason::PendingTimeout);
    assert_eq!(fault.proof, crate::contract::Proof::NeverRan);
    let Admit::Wait(waits) = g.admit(Moment(0), Normal) else { panic!("the one who gave up left the queue") };
    g.release(None);
    waits.await.expect("a place became free");
    g.release(None);
    assert!(matches!(g.admit(Moment(0), Normal), Admit::Yes));
    let at_once = gate(&mut Bed::default(), r#"{"maxRequests":1,"maxPending":0}"#).expect("a cap");
    assert!(matches!(at_once.admit(Moment(0), Normal), Admit::Yes));
    assert_eq!(reason(at_once.admit(Moment(0), Normal)), Some(Reason::BreakerOpen));
}

#[tokio::test]
async fn a_reload_changes_the_cap_in_place() {
    let mut bed = Bed::default();
    let old = gate(&mut bed, r#"{"maxRequests":2,"maxPending":4}"#).expect("a cap");
    assert!(matches!(old.admit(Moment(0), Normal), Admit::Yes));
    assert!(matches!(old.admit(Moment(0), Normal), Admit::Yes));
    let Admit::Wait(waits) = old.admit(Moment(0), Normal) else { panic!("full") };
    let new = gate(&mut bed, r#"{"maxRequests":3,"maxPending":4}"#).expect("a cap");
    tokio::time::timeout(Duration::from_secs(5), waits).await.expect("room appeared").expect("admitted");
    assert!(matches!(new.admit(Moment(0), Normal), Admit::Wait(_)), "tries of the old config count");
    (0..3).for_each(|_| old.release(None));
    let _lower = gate(&mut bed, r#"{"maxRequests":1,"maxPending":0}"#).expect("a cap");
    assert!(matches!(new.admit(Moment(0), Normal), Admit::Yes));
    assert!(matches!(new.admit(Moment(0), Normal), Admit::No(_)));
    let gauge = |name| bed.metrics.gauge(name, "", &[("service", "stock")]).value();
    assert_eq!(
        (gauge("onehop_breaker_active"), gauge("onehop_breaker_limit"), gauge("onehop_breaker_pending")),
        (1, 1, 0)
    );
}

#[test]
fn use_near_the_cap_is_counted_once_on_the_way_up() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, r#"{"maxRequests":10}"#).expect("a cap");
    (0..9).for_each(|_| assert!(matches!(g.admit(Moment(0), Normal), Admit::Yes)));
    let near = bed.metrics.counter("onehop_breaker_near_limit_total", "", &[("service", "stock")]);
    assert_eq!(near.value(), 1);
}

#[tokio::test]
async fn the_higher_priority_goes_first_and_displaces_the_youngest_of_the_lowest() {
    let mut bed = Bed::default();
    let g = gate(&mut bed, r#"{"maxRequests":1,"maxPending":3}"#).expect("a cap");
    assert!(matches!(g.admit(Moment(0), Low), Admit::Yes));
    let wait = |priority| match g.admit(Moment(0), priority) {
        Admit::Wait(waits) => waits,
        Admit::Yes | Admit::No(_) => panic!("waits"),
    };
    let (old, young, normal) = (wait(Low), wait(Low), wait(Normal));
    assert_eq!(reason(g.admit(Moment(0), Low)), Some(Reason::PendingOverflow), "an equal displaces nobody");
    let high = wait(High);
    let fault = young.await.expect_err("displaced");
    assert_eq!((fault.reason, fault.proof), (Reason::PendingOverflow, crate::contract::Proof::NeverRan));
    for waits in [high, normal, old] {
        g.release(None);
        waits.await.expect("its turn");
    }
    g.release(None);
    let labels = [("service", "stock"), ("reason", "pending-overflow")];
    assert_eq!(bed.metrics.counter("onehop_breaker_refused_total", "", &labels).value(), 2);
    assert_eq!(bed.metrics.gauge("onehop_breaker_active", "", &[("service", "stock")]).value(), 0);
}

#[test]
fn one_who_was_displaced_and_has_left_gives_nothing_back() {
    let places = Places::new(1, 1, None);
    assert!(matches!(places.ask(Low, Moment(0)), Asked::Yes(1)));
    let Asked::Wait(low) = places.ask(Low, Moment(0)) else { panic!("waits") };
    let Asked::Wait(high) = places.ask(High, Moment(0)) else { panic!("displaces") };
    drop(low);
    assert_eq!(places.counts(), (1, 1));
    drop(high);
    assert_eq!(places.counts(), (1, 0));
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Ask(Priority),
    Release,
    Leave(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let priority = prop_oneof![Just(Low), Just(Normal), Just(High)];
    let one = prop_oneof![
        4 => priority.prop_map(Move::Ask),
        2 => Just(Move::Release),
        1 => (0..8usize).prop_map(Move::Leave),
    ];
    proptest::collection::vec(one, 0..80)
}

/// A turn, and what became of it.
struct Turn<'a> {
    priority: Priority,
    waits: Pin<Box<dyn Future<Output = Called> + 'a>>,
}

proptest! {
    /// Against a list that is searched from end to end.
    #[test]
    fn the_queue_is_what_a_plain_list_would_be(cap in 1..4u32, room in 0..5usize, moves in moves()) {
        let places = Places::new(cap, u32::try_from(room).expect("small"), None);
        let mut taken = 0;
        let mut line: Vec<Turn<'_>> = Vec::new();
        for step in moves {
            // Position in the line of the one who hears something now, and what.
            let mut told = None;
            match step {
                Move::Ask(priority) => match places.ask(priority, Moment(0)) {
                    Asked::Yes(n) => {
                        taken += 1;
                        prop_assert!(line.is_empty() && n == taken && taken <= cap);
                    }
                    Asked::Full => {
                        prop_assert!(taken == cap && line.len() == room);
                        prop_assert!(line.iter().all(|t| t.priority >= priority));
                    }
                    Asked::Wait(ticket) => {
                        prop_assert!(taken == cap);
                        if line.len() == room {
                            let lowest = line.iter().map(|t| t.priority).min().expect("somebody was displaced");
                            prop_assert!(lowest < priority);
                            told = line.iter().rposition(|t| t.priority == lowest).map(|at| (at, false));
                        }
                        line.push(Turn { priority, waits: Box::pin(ticket.called()) });
                    }
                },
                Move::Release if taken == 0 => {}
                Move::Release => {
                    places.release(Moment(0));
                    match line.iter().map(|t| t.priority).max() {
                        Some(highest) => told = line.iter().position(|t| t.priority == highest).map(|at| (at, true)),
                        None => taken -= 1,
                    }
                }
                Move::Leave(at) if at < line.len() => drop(line.remove(at)),
                Move::Leave(_) => {}
            }
            let mut heard = Vec::new();
            for (at, turn) in line.iter_mut().enumerate() {
                if let Poll::Ready(called) = turn.waits.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    heard.push((at, called == Called::Place));
                }
            }
            prop_assert_eq!(&heard[..], told.as_slice());
            if let Some((at, _)) = told {
                drop(line.remove(at));
            }
            prop_assert_eq!(places.counts(), (taken, u32::try_from(line.len()).expect("small")));
        }
    }
}

mod tripping;
