use std::sync::Arc;
use std::time::Duration;

use super::core::parse;
use super::{File, follow};
use crate::contract::mesh::{Discover, Found};
use crate::mesh::discover::dns::server::report;

#[test]
fn json_and_lines() {
    let json = parse(r#"["10.0.0.1:80", {"address": "10.0.0.2:80", "weight": 3, "zone": "a"}]"#).expect("valid");
    let lines = parse("# stock\n- 10.0.0.1:80\n10.0.0.2:80 weight=3 zone=a # new\n\n").expect("valid");
    assert_eq!(json, lines);
    assert!(parse("").expect("an empty list").is_empty());
    for bad in ["[", "10.0.0.1", "a.b:80", "10.0.0.1:80 wait=3", r#"[{"address":"10.0.0.1:80","x":1}]"#] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_renamed_file_is_seen_and_a_bad_one_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("endpoints");
    let put = |text: &str| {
        let next = dir.path().join("next");
        std::fs::write(&next, text).expect("written");
        std::fs::rename(&next, &path).expect("renamed");
    };
    let file = File { path: path.clone(), look: Duration::from_millis(5) };
    assert!(file.initial().is_empty());
    let (report, mut told) = report();
    let task = tokio::spawn(follow(file.clone(), report));
    let mut next = async || -> Result<Vec<Found>, String> {
        tokio::time::timeout(Duration::from_secs(20), told.recv()).await.expect("in time").expect("the watch lives")
    };
    assert!(next().await.is_err(), "not there yet");
    put("10.0.0.1:80");
    assert_eq!(next().await.expect("a list").len(), 1);
    put("10.0.0.1");
    assert!(next().await.is_err());
    put("10.0.0.1:80\n10.0.0.2:80");
    assert_eq!(next().await.expect("a list").len(), 2);
    assert_eq!(Arc::new(file).initial().len(), 2);
    task.abort();
}
