//! Prints what a request allocates. The limits are held by `tests/allocations.rs`.

mod gate;

fn main() {
    let chain = gate::chain();
    println!("direct response, no filter               {:>6} allocations", chain.bare);
    println!(
        "  twelve filters known, none configured  {:>+6}",
        i128::from(chain.unconfigured) - i128::from(chain.bare)
    );
    println!("  six idle filters on the route          {:>+6}", i128::from(chain.six) - i128::from(chain.bare));
    println!("  twelve idle filters on the route       {:>+6}", i128::from(chain.twelve) - i128::from(chain.bare));
    println!("proxied GET, HTTP/1.1 to HTTP/1.1        {:>6.1} allocations", gate::proxied());
    println!("an endpoint: {} bytes kept", gate::kept_by_an_endpoint());
    let route = gate::routes();
    println!("a route, in bytes: kept {}, at start {}, at reload {}", route.kept, route.start, route.reload);
}
