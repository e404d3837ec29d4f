//! The allocation gate. Counts do not depend on the machine, so they are asserted; times never are.

#[path = "../benches/gate/mod.rs"]
mod gate;

/// What one GET over kept HTTP/1.1 connections may allocate, in the whole process. Lower it when it falls.
const PROXIED: f64 = 10.0;

/// What a route of a large configuration may keep, and what it may take for the moment of a start or a reload, in bytes.
/// Lower them when they fall.
const ROUTE: usize = 600;
const ROUTE_AT_START: usize = 1_750;
const ROUTE_AT_RELOAD: usize = 1_750;

/// What an endpoint keeps, its line in the configuration included, in bytes. Lower it when it falls.
const ENDPOINT: usize = 900;

/// One test: the allocator counts the whole process, and tests of one binary run side by side.
#[test]
fn idle_filters_allocate_nothing_and_requests_and_routes_a_stated_amount() {
    let chain = gate::chain();
    assert_eq!(chain.unconfigured, chain.bare, "a filter that is not configured costs nothing");
    assert_eq!(chain.six, chain.bare, "a filter that decides at once allocates nothing");
    assert!(chain.twelve <= chain.bare + 1, "a long trail of decisions moves once");
    let proxied = gate::proxied();
    println!("direct response: {} allocations; proxied: {proxied:.1}", chain.bare);
    assert!(proxied <= PROXIED, "{proxied} allocations for a proxied request, {PROXIED} are stated");
    let endpoint = gate::kept_by_an_endpoint();
    println!("an endpoint: {endpoint} bytes kept");
    assert!(endpoint <= ENDPOINT, "an endpoint keeps {endpoint} bytes, {ENDPOINT} are stated");
    let route = gate::routes();
    println!("a route: {} bytes kept, {} at start, {} at reload", route.kept, route.start, route.reload);
    assert!(route.kept <= ROUTE, "a route keeps {} bytes, {ROUTE} are stated", route.kept);
    assert!(route.start <= ROUTE_AT_START, "a route takes {} bytes to start", route.start);
    assert!(route.reload <= ROUTE_AT_RELOAD, "a route takes {} bytes to reload", route.reload);
}
