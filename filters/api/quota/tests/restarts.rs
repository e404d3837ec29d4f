//! Counters that outlive the process.

use std::path::Path;

use super::*;
use crate::contract::state::Settings;

/// A process. What it counts is saved when its control thread ends, which it does before the rest goes.
struct Process {
    _control: tokio::runtime::Runtime,
    filter: Arc<dyn Filter>,
    _estate: Estate,
}

fn process(dir: &Path, limits: serde_json::Value) -> Process {
    let state = Arc::new(Settings { dir: Some(dir.to_path_buf()), ..Settings::default() });
    let directory = Directory { state, ..Directory::default() };
    let mut estate = Estate::default();
    let made = build(Some(&section(limits)), &mut estate.build("routes.orders", &directory));
    let filter = made.unwrap_or_else(|e| panic!("{e}"));
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for task in estate.publish() {
        control.spawn(task);
    }
    control.block_on(tokio::task::yield_now());
    Process { _control: control, filter, _estate: estate }
}

fn passes(filter: &Arc<dyn Filter>) -> usize {
    let mut rq = request("GET", "/");
    (0..100).take_while(|_| run(filter, &mut rq).is_none()).count()
}

#[test]
fn a_restart_refills_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let limits = |n: u64| {
        json!([
            {"by": "ip", "limit": n, "per": "month", "name": "month"},
            {"by": "ip", "limit": 2 * n, "per": "1d", "name": "rolling"},
            {"by": "route.name", "limit": 3 * n, "per": "1d", "name": "all"},
        ])
    };
    let it = process(dir.path(), limits(4));
    assert_eq!(passes(&it.filter), 4);
    drop(it);
    let it = process(dir.path(), limits(4));
    assert_eq!(passes(&it.filter), 0);
    drop(it);
    // A limit that changed meanwhile keeps what was used.
    let it = process(dir.path(), limits(6));
    assert_eq!(passes(&it.filter), 2);
    drop(it);
    // So does one that was away for a while.
    let it = process(dir.path(), json!([{"by": "ip", "limit": 1, "per": "1m"}]));
    assert_eq!(passes(&it.filter), 1);
    drop(it);
    let it = process(dir.path(), limits(6));
    assert_eq!(passes(&it.filter), 0);
}

#[test]
fn a_damaged_file_costs_the_counts_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let limits = || json!([{"by": "ip", "limit": 2, "per": "month"}]);
    let it = process(dir.path(), limits());
    assert_eq!(passes(&it.filter), 2);
    drop(it);
    std::fs::write(dir.path().join("quota.json"), "nonsense").expect("written");
    let it = process(dir.path(), limits());
    assert_eq!(passes(&it.filter), 2);
    let names: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").flatten().map(|f| f.file_name()).collect();
    assert!(names.iter().any(|n| n.to_string_lossy().contains("corrupt")), "{names:?}");
}
