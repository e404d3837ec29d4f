//! Imports run one way. What a room may know of the others stands here, and is read from the code itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of `src/`, lowest first: each with those below that it knows. A room that is not listed, or knows another,
/// fails the test.
const ROOMS: &[(&str, &[&str])] = &[
    ("runtime", &[]),
    ("config", &[]),
    ("observe", &["config"]),
    ("fault", &["observe"]),
    ("route", &["config"]),
    ("upstream", &["config", "runtime"]),
    ("edge", &["config", "runtime"]),
    ("snapshot", &["config", "observe", "route", "upstream"]),
    ("proxy", &["config", "edge", "fault", "observe", "route", "runtime", "snapshot", "upstream"]),
    ("admin", &["config", "fault", "observe"]),
    ("hop", &["admin", "config", "edge", "observe", "proxy", "runtime", "snapshot"]),
    ("explain", &["config", "observe", "proxy", "snapshot"]),
    ("demo", &["config", "hop"]),
    ("trim", &[]),
];

/// Rooms that choose what is built in; every other is handed its entries.
const CHOOSERS: &[&str] = &["main", "cli", "hop", "demo", "explain"];

/// Every Rust file below, but those that are tests.
fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("the folder is there").map(|e| e.expect("it can be read").path()) {
            let name = entry.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            let test = name.ends_with("tests") || name.ends_with("testing");
            if entry.is_dir() && !test {
                open.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") && !test {
                found.push(entry);
            }
        }
    }
    found.sort();
    found
}

/// Code without comments, and without the unit tests at its end.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("the file can be read");
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    // A module for tests in a file of its own is declared here and lives elsewhere.
    lines.collect::<Vec<_>>().join("\n")
}

/// The first segment after each occurrence of `path`; of a group in braces, all of them.
fn heads(code: &str, path: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in code.match_indices(path) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            None => drop(found.insert(word(rest))),
            Some(group) => {
                // Only the top level of the braces names rooms.
                let (mut depth, mut start) = (0, true);
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && depth == 0 && !c.is_whitespace() => {
                            found.insert(word(&group[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// First segment below `src`, without `.rs`.
fn room(file: &Path, src: &Path) -> String {
    let below = file.strip_prefix(src).expect("it was found there");
    let first = below.components().next().expect("a file has a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn rooms_know_only_those_below() {
    let src = root().join("src");
    let allowed: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in sources(&src) {
        let own = room(&file, &src);
        if ["main", "lib", "cli"].contains(&own.as_str()) {
            continue;
        }
        let Some(known) = allowed.get(own.as_str()) else {
            wrong.push(format!("{own} is no room of the plan"));
            continue;
        };
        for other in heads(&code(&file), "crate::") {
            if other != own && !known.contains(&other.as_str()) {
                wrong.push(format!("{}: {own} -> {other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_plan_has_no_cycle() {
    let place: BTreeMap<_, _> = ROOMS.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
    for (name, known) in ROOMS {
        for other in *known {
            let below = place.get(other).unwrap_or_else(|| panic!("{other} is no room"));
            assert!(*below < place[name], "{name} stands below {other}");
        }
    }
}

#[test]
fn few_choose_what_is_built_in() {
    let src = root().join("src");
    for file in sources(&src) {
        let own = room(&file, &src);
        let named = code(&file).contains("BUILTIN");
        assert!(!named || CHOOSERS.contains(&own.as_str()), "{} names BUILTIN", file.display());
    }
}

/// Folders of filters: those with an example. Each as the path that Rust would say.
fn filters() -> BTreeMap<PathBuf, String> {
    let root = root().join("filters");
    let mut found = BTreeMap::new();
    for file in sources(&root) {
        let folder = file.parent().expect("a file has a folder");
        if folder.join("example.yaml").exists() {
            let below = folder.strip_prefix(&root).expect("it was found there");
            let path: Vec<_> = below.components().map(|c| c.as_os_str().to_string_lossy()).collect();
            found.insert(folder.to_owned(), path.join("::"));
        }
    }
    found
}

#[test]
fn no_filter_knows_another() {
    let filters = filters();
    assert!(filters.len() >= 15, "{filters:?}");
    let mut wrong = Vec::new();
    for (folder, own) in &filters {
        for file in sources(folder) {
            let code = code(&file);
            for other in filters.values().filter(|f| *f != own) {
                let sibling = other.rsplit("::").next().expect("a path has an end");
                if code.contains(&format!("crate::{other}::")) || code.contains(&format!("super::super::{sibling}::")) {
                    wrong.push(format!("{}: {own} -> {other}", file.display()));
                }
            }
            let family = own.split("::").next().expect("a path has a start");
            for other in heads(&code, "crate::").iter().filter(|o| *o != "contract" && *o != family) {
                wrong.push(format!("{}: {own} -> {other}", file.display()));
            }
            assert!(!code.contains("onehop::"), "{}: a filter knows the contract only", file.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_contract_knows_no_filter() {
    let contract = root().join("filters/contract");
    for file in sources(&contract) {
        let others = heads(&code(&file), "crate::");
        assert!(others.iter().all(|o| o == "contract"), "{}: {others:?}", file.display());
    }
}

#[test]
fn the_reader_of_imports_reads() {
    let text = "use crate::{edge::tls, proxy::{self, session}};\nfn f() { crate::route::Table::new(); mycrate::no() }";
    assert_eq!(heads(text, "crate::"), ["edge", "proxy", "route"].map(str::to_owned).into());
}
