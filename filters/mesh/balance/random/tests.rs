use crate::contract::Role;
use crate::contract::mesh::Pick;
use crate::contract::now;
use crate::mesh::bed::{self, Bed};

#[test]
fn spreads_evenly_and_refuses_unknown_keys() {
    let Role::Balance(build) = super::ENTRY.role else { panic!("a balancer") };
    let mut bed = Bed::default();
    assert!(bed.build(|b| build(Some(&bed::node(r#"{"policy":"random","hash":"ip"}"#)), b)).is_err());
    let policy = bed.build(|b| build(None, b)).expect("defaults are valid");
    let set = bed::endpoints(&[1; 10]);
    let picker = policy.index(set.clone());
    let mut seen = std::collections::HashMap::<u64, u32>::new();
    for seed in 0..100_000 {
        let e = picker.pick(&Pick { now: now(), seed, hash: None, tried: &[] }).expect("all are available");
        *seen.entry(e.id).or_default() += 1;
    }
    assert!(seen.values().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
}
