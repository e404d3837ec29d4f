use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Wake;

use proptest::prelude::*;
use tokio::runtime::Builder;

use super::*;

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn counter() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count(AtomicUsize::new(0)));
    (count.clone(), count.into())
}

async fn poll_once(limit: &mut Deadline) -> Poll<()> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *limit).poll(cx))).await
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Far beyond a tick, for a machine that is busy with something else; never the expected case.
const SLACK: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
enum Act {
    Arm(u64),
    Cancel(usize),
    Advance(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (0u64..20_000).prop_map(Act::Arm),
        2 => any::<usize>().prop_map(Act::Cancel),
        3 => prop_oneof![0u64..40, 0u64..12_000].prop_map(Act::Advance),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    /// Against a plain map: never early, never later than the first look after the end of its tick, cancelled ones not
    /// at all; and the ticker is never told to sleep past something that is due.
    #[test]
    fn wheel_agrees_with_a_map(acts in acts(), start in 0u64..100_000) {
        let mut wheel = Wheel::default();
        let mut now = Moment(start * 1_000_000);
        let mut armed: BTreeMap<u32, (Moment, Arc<Count>)> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Arm(after) => {
                    let (count, waker) = counter();
                    let at = now + ms(after);
                    let before = wheel.next;
                    let (slot, sooner) = wheel.insert(at, now, waker);
                    prop_assert_eq!(sooner, wheel.next < before);
                    prop_assert!(armed.insert(slot, (at, count)).is_none(), "a slot in use was given out");
                }
                Act::Cancel(which) if !armed.is_empty() => {
                    let slot = *armed.keys().nth(which % armed.len()).unwrap();
                    wheel.remove(slot);
                    armed.remove(&slot);
                }
                Act::Cancel(_) => {}
                Act::Advance(by) => {
                    now = now + ms(by);
                    let mut due = Vec::new();
                    let next = wheel.advance(now, &mut due);
                    due.into_iter().for_each(Waker::wake);
                    armed.retain(|slot, (at, count)| {
                        let woken = count.0.load(SeqCst) == 1;
                        assert!(!woken || *at <= now, "fired early");
                        assert!(woken || now.0 / TICK_NANOS <= at.0.div_ceil(TICK_NANOS), "late");
                        if woken {
                            assert!(wheel.remove(*slot).is_none());
                        }
                        !woken
                    });
                    match armed.values().map(|(at, _)| *at).min() {
                        None => prop_assert_eq!(next, None),
                        Some(first) => {
                            let next = next.unwrap();
                            prop_assert!(next > now && next.0 <= first.0.div_ceil(TICK_NANOS).max(now.0 / TICK_NANOS + 1) * TICK_NANOS);
                        }
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn near_and_far_deadlines_fire_and_never_early() {
    let started = now();
    let mut waits = tokio::task::JoinSet::new();
    for after in [0, 1, 5, 29, 31, 45, 80, 120] {
        waits.spawn(async move {
            let at = started + ms(after);
            deadline(at).await;
            (at, now())
        });
    }
    for (at, fired) in waits.join_all().await {
        assert!(fired >= at);
        assert!(fired.since(at) < SLACK);
    }
}

#[tokio::test]
async fn timeout_gives_the_value_or_elapses() {
    assert_eq!(timeout(now() + SLACK, async { 3 }).await, Ok(3));
    assert_eq!(timeout(now() + ms(40), std::future::pending::<()>()).await, Err(Elapsed));
    assert_eq!(timeout(Moment::ZERO, async { 3 }).await, Ok(3), "a future that is ready at once wins");
    assert_eq!(timeout(Moment::MAX, tokio::task::yield_now()).await, Ok(()));
}

#[tokio::test]
async fn reset_moves_a_deadline_both_ways() {
    let started = now();
    let mut limit = deadline(started + Duration::from_secs(600));
    assert!(poll_once(&mut limit).await.is_pending());
    limit.reset(started + ms(50));
    (&mut limit).await;
    assert!(now() >= started + ms(50));
    let later = now() + ms(60);
    limit.reset(later);
    assert!(poll_once(&mut limit).await.is_pending());
    limit.reset(later + ms(40));
    limit.await;
    assert!(now() >= later + ms(40));
}

#[test]
fn runtimes_come_and_go_on_one_thread() {
    let kept = Builder::new_current_thread().enable_time().build().unwrap();
    kept.block_on(async { deadline(now() + ms(35)).await });
    for _ in 0..3 {
        // `kept` still exists but is not driven: its ticker must not be relied on.
        let fresh = Builder::new_current_thread().enable_time().build().unwrap();
        let from = now();
        fresh.block_on(async { deadline(from + ms(35)).await });
        assert!(now().since(from) >= ms(35));
    }
    kept.block_on(async { deadline(now() + ms(35)).await });
}

#[test]
fn a_deadline_may_be_polled_and_dropped_on_another_thread() {
    let first = Builder::new_current_thread().enable_time().build().unwrap();
    let at = now() + ms(60);
    let (mut moved, mut dropped) = (deadline(at), deadline(at));
    first.block_on(async {
        assert!(poll_once(&mut moved).await.is_pending());
        assert!(poll_once(&mut dropped).await.is_pending());
    });
    let other = std::thread::spawn(move || {
        drop(dropped);
        Builder::new_current_thread().enable_time().build().unwrap().block_on(moved);
        now()
    });
    // The wheel that armed it is ticked by the runtime that armed it.
    first.block_on(async { deadline(at + ms(40)).await });
    assert!(other.join().unwrap() >= at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn works_in_a_multi_thread_runtime() {
    let at = now() + ms(50);
    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..50 {
        waits.spawn(async move { timeout(at, std::future::pending::<()>()).await });
    }
    assert!(waits.join_all().await.into_iter().all(|r| r == Err(Elapsed)));
}

#[tokio::test]
async fn an_emptied_wheel_has_nothing_to_wait_for() {
    let mut far: Vec<_> = (0..100).map(|n| deadline(now() + Duration::from_secs(100 + n))).collect();
    for limit in &mut far {
        assert!(poll_once(limit).await.is_pending());
    }
    drop(far);
    let shared = here();
    let mut wheel = shared.wheel.lock();
    assert_eq!(wheel.advance(now(), &mut Vec::new()), None);
    assert_eq!(wheel.slots.len(), 100);
}
