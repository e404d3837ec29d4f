//! The deployment files: their configs are good, and what they promise each other agrees.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn every_config_is_good() {
    for name in ["edge", "sidecar", "orders"] {
        let config = deploy(&format!("config/{name}.yaml"));
        let out = Command::new(common::binary()).args(["check", "-c"]).arg(&config).output().expect("it runs");
        assert!(out.status.success(), "{name}:\n{}", String::from_utf8_lossy(&out.stderr));
    }
}

/// A number of seconds behind `key`, however it is quoted.
fn seconds(text: &str, key: &str) -> u64 {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key}"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{key} has no number"))
}

#[test]
fn nobody_kills_before_the_drain_is_over() {
    let edge = seconds(&text("config/edge.yaml"), "drain:");
    let sidecar = text("config/sidecar.yaml");
    let (drain, unready) = (seconds(&sidecar, " drain:"), seconds(&sidecar, "UNREADY:-"));
    assert!(seconds(&text("compose.yaml"), "stop_grace_period:") > edge);
    let kubernetes = text("kubernetes-edge.yaml");
    let waits = seconds(&kubernetes, "name: UNREADY, value:");
    assert!(seconds(&kubernetes, "terminationGracePeriodSeconds:") > edge + waits);
    assert!(seconds(&text("kubernetes-sidecar.yaml"), "terminationGracePeriodSeconds:") > drain + unready);
    assert!(seconds(&text("onehop.service"), "TimeoutStopSec=") > edge);
}

#[test]
fn every_container_is_locked_down() {
    for name in ["kubernetes-edge.yaml", "kubernetes-sidecar.yaml"] {
        let text = text(name);
        for promise in ["runAsNonRoot: true", "readOnlyRootFilesystem: true", "path: /livez", "path: /readyz"] {
            assert!(text.contains(promise), "{name}: {promise}");
        }
    }
    assert!(text("kubernetes-sidecar.yaml").contains("restartPolicy: Always"), "a native sidecar");
}
