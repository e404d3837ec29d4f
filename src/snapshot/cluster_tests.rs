use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use onehop_filters::contract::mesh::{Labels, Picker};

use super::super::group::Subset;
use super::*;

/// The first available endpoint.
struct First;
struct Picked(Arc<[Arc<Endpoint>]>);

impl Balance for First {
    fn index(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Box<dyn Picker> {
        Box::new(Picked(endpoints))
    }
}

impl Picker for Picked {
    fn pick(&self, cx: &Pick<'_>) -> Option<Arc<Endpoint>> {
        self.0.iter().find(|e| e.available(cx.now)).cloned()
    }
}

/// The last one.
struct Last;

impl Balance for Last {
    fn index(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Box<dyn Picker> {
        Box::new(Picked(endpoints.iter().rev().cloned().collect()))
    }
}

const SECOND: u64 = 1_000_000_000;

fn cluster() -> Arc<Cluster> {
    Arc::new(Cluster::new("stock".into(), Arc::new(First), &Registry::default()))
}

fn found(hosts: &[u8]) -> Vec<Found> {
    let at = |n: &u8| Address::Tcp(([10, 0, 0, *n], 80).into());
    hosts.iter().map(|n| Found::at(at(n))).collect()
}

fn pick(c: &Cluster, at: u64) -> Option<Arc<Endpoint>> {
    c.pick(None, &Pick { now: Moment(at), seed: 1, hash: None, tried: &[] }, None)
}

fn set(c: &Cluster) -> Vec<Arc<Endpoint>> {
    c.members().endpoints.to_vec()
}

#[test]
fn survivors_keep_what_was_learned() {
    let c = cluster();
    assert!(pick(&c, 1).is_none());
    let told = Arc::new(AtomicUsize::new(0));
    let removed = told.clone();
    c.on_removed(move |_| {
        removed.fetch_add(1, Relaxed);
    });
    c.update(&found(&[1, 2]), Moment(SECOND));
    let before = set(&c);
    before[0].state.tries.store(7, Relaxed);
    assert!(before.iter().all(|e| e.state.joined.load(Relaxed) == 0), "a first set does not start slowly");
    let mut next = found(&[3, 1]);
    next[1].weight = 5;
    c.update(&next, Moment(2 * SECOND));
    let after = set(&c);
    assert!(Arc::ptr_eq(&before[0], &after[1]) && after[1].weight.load(Relaxed) == 5);
    assert_eq!(after[0].state.joined.load(Relaxed), 2 * SECOND);
    assert!(before[1].state.draining.load(Relaxed) && told.load(Relaxed) == 1);
    let generation = c.members().generation;
    c.update(&next, Moment(3 * SECOND));
    assert_eq!(c.members().generation, generation, "the same answer changes nothing");
}

#[test]
fn an_empty_answer_is_held_and_then_believed() {
    let c = cluster();
    c.update(&found(&[1, 2]), Moment(SECOND));
    c.update(&[], Moment(10 * SECOND));
    assert_eq!(set(&c).len(), 2);
    assert!(c.view(Moment(10 * SECOND)).stale.is_some());
    c.expire(Moment(39 * SECOND));
    assert_eq!(set(&c).len(), 2);
    c.update(&found(&[1, 2]), Moment(39 * SECOND));
    assert!(c.view(Moment(39 * SECOND)).stale.is_none());
    c.update(&[], Moment(50 * SECOND));
    c.expire(Moment(79 * SECOND));
    assert_eq!(set(&c).len(), 2, "the grace begins anew");
    c.expire(Moment(80 * SECOND));
    assert!(set(&c).is_empty() && pick(&c, 80 * SECOND).is_none());
}

#[test]
fn a_failure_keeps_the_set_and_says_so() {
    let c = cluster();
    c.update(&found(&[1]), Moment(SECOND));
    c.failed("SERVFAIL".into(), Moment(2 * SECOND));
    let view = serde_json::to_value(c.view(Moment(3 * SECOND))).expect("a view is JSON");
    assert_eq!((&view["stale"], &view["age_ms"]), (&"SERVFAIL".into(), &2000.into()));
    assert_eq!(view["endpoints"][0]["address"], "10.0.0.1:80");
    assert!(pick(&c, 3 * SECOND).is_some());
    c.update(&found(&[1]), Moment(4 * SECOND));
    let view = serde_json::to_value(c.view(Moment(4 * SECOND))).expect("a view is JSON");
    assert!(view["stale"].is_null(), "it answered since");
    assert_eq!((&view["errors"], &view["last_error"]["why"]), (&1.into(), &"SERVFAIL".into()));
    assert_eq!(view["last_error"]["age_ms"], 2000);
}

#[test]
fn an_empty_answer_of_a_source_that_then_fails_is_not_believed() {
    let c = cluster();
    c.update(&found(&[1]), Moment(SECOND));
    c.update(&[], Moment(10 * SECOND));
    c.failed("gone".into(), Moment(20 * SECOND));
    c.expire(Moment(99 * SECOND));
    assert_eq!(set(&c).len(), 1, "its last word before it failed proves nothing");
    c.update(&[], Moment(100 * SECOND));
    c.expire(Moment(129 * SECOND));
    assert_eq!(set(&c).len(), 1);
    c.expire(Moment(130 * SECOND));
    assert!(set(&c).is_empty());
}

#[test]
fn another_with_the_same_address_is_another() {
    let c = cluster();
    let pod = |uid: &str| vec![Found { identity: Some(uid.into()), ..found(&[1]).remove(0) }];
    c.update(&pod("a"), Moment(SECOND));
    let first = set(&c).remove(0);
    first.state.tries.store(7, Relaxed);
    c.update(&pod("a"), Moment(2 * SECOND));
    assert!(Arc::ptr_eq(&first, &set(&c)[0]));
    c.update(&pod("b"), Moment(3 * SECOND));
    let second = set(&c).remove(0);
    assert_eq!((second.address.clone(), second.state.tries.load(Relaxed)), (first.address.clone(), 0));
    assert!(first.state.draining.load(Relaxed) && !second.state.draining.load(Relaxed));
}

#[test]
fn a_new_policy_keeps_the_endpoints() {
    let c = cluster();
    c.update(&found(&[1, 2]), Moment(SECOND));
    let before = set(&c);
    assert_eq!(pick(&c, SECOND).map(|e| e.id), Some(before[0].id));
    c.rebalance(Arc::new(Last), Shape::default());
    assert!(Arc::ptr_eq(&before[0], &set(&c)[0]));
    assert_eq!(pick(&c, SECOND).map(|e| e.id), Some(before[1].id));
}

#[test]
fn gates_learn_the_set_now_and_later() {
    struct Counts(AtomicUsize);
    impl Gate for Counts {
        fn members(&self, endpoints: &[Arc<Endpoint>]) {
            self.0.store(endpoints.len(), Relaxed);
        }
    }
    let c = cluster();
    c.update(&found(&[1]), Moment(SECOND));
    let gate = Arc::new(Counts(AtomicUsize::new(0)));
    let gates: [Arc<dyn Gate>; 1] = [gate.clone()];
    c.attach(&gates);
    assert_eq!(gate.0.load(Relaxed), 1);
    c.update(&found(&[1, 2, 3]), Moment(SECOND));
    assert_eq!(gate.0.load(Relaxed), 3);
}

struct Source(watch::Receiver<u8>);

impl Discover for Source {
    fn watch(&self, report: Report) -> Option<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> {
        let mut hosts = self.0.clone();
        Some(Box::pin(async move {
            loop {
                let list = found(&[*hosts.borrow_and_update()]);
                report.found(list);
                if hosts.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }))
    }
    fn describe(&self) -> String {
        "test".into()
    }
}

#[tokio::test]
async fn the_same_source_is_followed_on_and_another_replaces_it() {
    let c = cluster();
    let (hosts, watched) = watch::channel(1);
    let source: Arc<dyn Discover> = Arc::new(Source(watched));
    let first = tokio::spawn(c.follow(&source, "a").expect("the first source"));
    let reaches = async |n: u8| {
        let there = async {
            while set(&c).first().map(|e| e.address.clone()) != Some(found(&[n])[0].address.clone()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), there).await.expect("in time");
    };
    reaches(1).await;
    assert!(c.follow(&source, "a").is_none(), "it goes on");
    hosts.send(2).expect("watched");
    reaches(2).await;
    let second = tokio::spawn(c.follow(&source, "b").expect("another one"));
    tokio::time::timeout(Duration::from_secs(10), first).await.expect("the first one ends").expect("in peace");
    drop(c);
    tokio::time::timeout(Duration::from_secs(10), second).await.expect("ends with its cluster").expect("in peace");
}

#[test]
fn subsets_follow_labels() {
    let c = cluster();
    let labelled = |versions: &[&str]| {
        let mut all = found(&[1, 2, 3]);
        for (f, version) in all.iter_mut().zip(versions) {
            f.labels = [("version", *version), ("team", "a")].into_iter().collect();
        }
        all
    };
    let subset = |version: &str| Subset::new(version.into(), [("version", version)].into_iter().collect::<Labels>());
    let (v1, v2) = (subset("v1"), subset("v2"));
    assert_ne!(v1.key, v2.key);
    c.rebalance(Arc::new(First), Shape { subsets: [v1.clone(), v2.clone()].into(), findable: true });
    c.update(&labelled(&["v1", "v2", "v2"]), Moment(SECOND));
    let all = set(&c);
    let cx = Pick { now: Moment(SECOND), seed: 1, hash: None, tried: &[] };
    let picked = |subset: &Subset, wanted| c.pick(Some(subset.key), &cx, wanted).map(|e| e.id);
    assert_eq!((picked(&v1, None), picked(&v2, None)), (Some(all[0].id), Some(all[1].id)));
    assert_eq!(picked(&v2, Some(all[2].id)), Some(all[2].id), "the one that is wanted");
    assert_eq!(picked(&v2, Some(all[0].id)), Some(all[1].id), "but not one of another subset");
    all[2].state.ejected_until.store(u64::MAX, Relaxed);
    assert_eq!(picked(&v2, Some(all[2].id)), Some(all[1].id), "nor one that is down");
    c.update(&labelled(&["v2", "v2", "v2"]), Moment(2 * SECOND));
    assert_eq!((c.size(Some(v1.key)), c.size(Some(v2.key)), c.size(None)), (0, 3, 3));
    assert_eq!(picked(&v1, None), None, "nobody of another subset stands in");
    c.rebalance(Arc::new(First), Shape::default());
    assert_eq!(picked(&v2, None), None, "a request under an older config asks for what is gone");
}

#[test]
fn newcomers_may_have_to_pass_first() {
    struct Wary;
    impl Check for Wary {
        fn run(
            &self,
            _: onehop_filters::contract::entry::Members,
            _: Option<CheckTls>,
        ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(std::future::pending())
        }
        fn starts_unhealthy(&self) -> bool {
            true
        }
    }
    let c = cluster();
    c.update(&found(&[1]), Moment(SECOND));
    assert!(c.check(Some((Arc::new(Wary), None)), "wary").is_some());
    c.update(&found(&[1, 2]), Moment(2 * SECOND));
    let all = set(&c);
    assert!(all[0].available(Moment(2 * SECOND)), "who was there before is not taken away");
    assert!(!all[1].available(Moment(2 * SECOND)));
    assert!(c.check(None, "").is_none());
    assert!(all[1].available(Moment(2 * SECOND)), "nobody looks any more");
}
