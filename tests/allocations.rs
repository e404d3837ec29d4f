//! The allocation gate. Counts do not depend on the machine, so they are asserted; times never are.

#[path = "../benches/gate/mod.rs"]
mod gate;

/// What one GET over kept HTTP/1.1 connections may allocate, in the whole process. Lower it when it falls.
const PROXIED: f64 = 20.0;

/// One test: the allocator counts the whole process, and tests of one binary run side by side.
#[test]
fn an_idle_filter_allocates_nothing_and_a_proxied_request_a_stated_number() {
    let chain = gate::chain();
    assert_eq!(chain.unconfigured, chain.bare, "a filter that is not configured costs nothing");
    assert_eq!(chain.six, chain.bare, "a filter that decides at once allocates nothing");
    assert!(chain.twelve <= chain.bare + 1, "a long trail of decisions moves once");
    let proxied = gate::proxied();
    println!("direct response: {} allocations; proxied: {proxied:.1}", chain.bare);
    assert!(proxied <= PROXIED, "{proxied} allocations for a proxied request, {PROXIED} are stated");
}
