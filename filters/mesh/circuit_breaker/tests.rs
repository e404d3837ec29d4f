use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use super::core::{Asked, Places};
use crate::contract::mesh::{Admit, Gate};
use crate::contract::{Moment, Reason, Role};
use crate::mesh::bed::{self, Bed};

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
    let places = Places::new(7, 0);
    let (inside, most, refused) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..5_000 {
                    match places.ask() {
                        Asked::Yes(_) => {
                            most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, SeqCst);
                            places.release();
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
    let places = Arc::new(Places::new(1, 3));
    assert!(matches!(places.ask(), Asked::Yes(1)));
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for n in 0..3 {
        let Asked::Wait(ticket) = places.ask() else { panic!("there is room to wait") };
        waiters.push((n, ticket));
    }
    assert!(matches!(places.ask(), Asked::Full));
    let leaver = waiters.remove(1);
    drop(leaver);
    assert_eq!(places.counts(), (1, 2));
    places.release();
    assert_eq!(places.counts(), (1, 1), "the place went to the first in the queue");
    for (n, ticket) in waiters {
        ticket.called().await;
        order.lock().push(n);
        places.release();
    }
    assert_eq!(*order.lock(), [0, 2]);
    assert_eq!(places.counts(), (0, 0));
}

#[test]
fn one_who_is_called_and_has_left_gives_the_place_back() {
    let places = Places::new(1, 3);
    assert!(matches!(places.ask(), Asked::Yes(1)));
    let Asked::Wait(first) = places.ask() else { panic!("waits") };
    let Asked::Wait(second) = places.ask() else { panic!("waits") };
    places.release();
    drop(first);
    assert_eq!(places.counts(), (1, 0), "the second was called in its stead");
    drop(second);
    assert_eq!(places.counts(), (0, 0));
}

#[test]
fn nothing_is_lost_when_waiters_come_and_go_in_threads() {
    let places = Places::new(2, 4);
    std::thread::scope(|s| {
        for t in 0..8u32 {
            let places = &places;
            s.spawn(move || {
                let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
                for i in 0..2_000u32 {
                    match places.ask() {
                        Asked::Yes(_) => places.release(),
                        Asked::Full => {}
                        Asked::Wait(ticket) if (i + t) % 3 == 0 => drop(ticket),
                        Asked::Wait(ticket) => rt.block_on(async {
                            ticket.called().await;
                            places.release();
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
    assert!(matches!(g.admit(Moment(0)), Admit::Yes));
    let Admit::Wait(waits) = g.admit(Moment(0)) else { panic!("waits: the smaller cap counts") };
    assert_eq!(reason(g.admit(Moment(0))), Some(Reason::PendingOverflow));
    let fault = waits.await.expect_err("nobody leaves");
    assert_eq!(fault.reason, Reason::PendingTimeout);
    assert_eq!(fault.proof, crate::contract::Proof::NeverRan);
    let Admit::Wait(waits) = g.admit(Moment(0)) else { panic!("the one who gave up left the queue") };
    g.release(None);
    waits.await.expect("a place became free");
    g.release(None);
    assert!(matches!(g.admit(Moment(0)), Admit::Yes));
    let at_once = gate(&mut Bed::default(), r#"{"maxRequests":1,"maxPending":0}"#).expect("a cap");
    assert!(matches!(at_once.admit(Moment(0)), Admit::Yes));
    assert_eq!(reason(at_once.admit(Moment(0))), Some(Reason::BreakerOpen));
}

#[tokio::test]
async fn a_reload_changes_the_cap_in_place() {
    let mut bed = Bed::default();
    let old = gate(&mut bed, r#"{"maxRequests":2,"maxPending":4}"#).expect("a cap");
    assert!(matches!(old.admit(Moment(0)), Admit::Yes));
    assert!(matches!(old.admit(Moment(0)), Admit::Yes));
    let Admit::Wait(waits) = old.admit(Moment(0)) else { panic!("full") };
    let new = gate(&mut bed, r#"{"maxRequests":3,"maxPending":4}"#).expect("a cap");
    tokio::time::timeout(Duration::from_secs(5), waits).await.expect("room appeared").expect("admitted");
    assert!(matches!(new.admit(Moment(0)), Admit::Wait(_)), "tries of the old config count");
    (0..3).for_each(|_| old.release(None));
    let _lower = gate(&mut bed, r#"{"maxRequests":1,"maxPending":0}"#).expect("a cap");
    assert!(matches!(new.admit(Moment(0)), Admit::Yes));
    assert!(matches!(new.admit(Moment(0)), Admit::No(_)));
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
    (0..9).for_each(|_| assert!(matches!(g.admit(Moment(0)), Admit::Yes)));
    let near = bed.metrics.counter("onehop_breaker_near_limit_total", "", &[("service", "stock")]);
    assert_eq!(near.value(), 1);
}
