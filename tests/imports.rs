//! Imports run one way. Each room of `src/` lists the rooms it may name; what is not listed may not be named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ROOMS: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("runtime", &[]),
    ("observe", &["config"]),
    ("route", &["config"]),
    ("upstream", &["config"]),
    ("fault", &["observe"]),
    ("edge", &["config", "runtime"]),
    ("snapshot", &["config", "observe", "route", "upstream"]),
    ("proxy", &["config", "edge", "fault", "observe", "route", "runtime", "snapshot", "upstream"]),
    ("admin", &["config", "fault", "observe"]),
    ("explain", &["config", "observe", "proxy", "snapshot"]),
    ("hop", &["admin", "config", "edge", "observe", "proxy", "runtime", "snapshot"]),
    ("demo", &["config", "hop"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Every `crate::ROOM` of a file, comments left out.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1)).map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn rooms_import_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let inner = file.strip_prefix(&root).expect("it lies below");
        let room = inner.components().next().expect("a name").as_os_str().to_string_lossy();
        let room = room.strip_suffix(".rs").unwrap_or(&room);
        // The command line and the front page name anything.
        if matches!(room, "main" | "lib" | "cli") {
            continue;
        }
        let Some(allowed) = rooms.get(room) else {
            wrong.push(format!("{}: the room `{room}` has no line in this test", inner.display()));
            continue;
        };
        let text = std::fs::read_to_string(file).expect("a source file");
        for other in named(&text) {
            if rooms.contains_key(other) && other != room && !allowed.contains(&other) {
                wrong.push(format!("{}: `{room}` may not import `{other}`", inner.display()));
            }
        }
    }
    assert!(files.len() > 50, "{} files were read", files.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn filters_know_the_contract_and_their_own_family() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filters");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let inner = file.strip_prefix(&root).expect("it lies below");
        let family = inner.components().next().expect("a name").as_os_str().to_string_lossy();
        // A request made for tests is shared by all of them.
        let text = std::fs::read_to_string(file).expect("a source file").replace("crate::api::fixture", "");
        for other in named(&text).filter(|o| matches!(*o, "api" | "mesh")) {
            if family != other && family != "lib.rs" {
                wrong.push(format!("{}: `{family}` may not import `{other}`", inner.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
