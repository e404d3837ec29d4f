//! Malformed configurations: every mistake is found at its exact place, says what is wrong and names the cure.
//!
//! `config_errors/cases.txt` holds one case after the other: a title after `###`, a config, and one line per expected
//! error, `#! LINE:COLUMN | words of the message | words of the help`. Nothing else may be reported.
//! `config_errors/filters.txt` does the same for what the filters themselves find, through the binary's `check`.

#[path = "config_errors/entries.rs"]
mod entries;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use entries::ENTRIES;
use onehop::config::{Report, Source, load_with};

const ENGINE: &str = include_str!("config_errors/cases.txt");
const FILTERS: &str = include_str!("config_errors/filters.txt");

struct Case {
    title: String,
    text: String,
    expected: Vec<(u32, u32, String, String)>,
}

fn cases(table: &str) -> Vec<Case> {
    let mut all: Vec<Case> = Vec::new();
    for line in table.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            all.push(Case { title: title.to_owned(), text: String::new(), expected: Vec::new() });
            continue;
        }
        let Some(case) = all.last_mut() else { continue };
        match line.strip_prefix("#! ") {
            Some(expected) => {
                let parts: Vec<&str> = expected.split(" | ").collect();
                let [place, message, help] = parts.as_slice() else { panic!("{}: {line}", case.title) };
                let (row, column) = place.split_once(':').expect("LINE:COLUMN");
                let number = |n: &str| n.parse().unwrap_or_else(|_| panic!("{}: {line}", case.title));
                case.expected.push((number(row), number(column), (*message).to_owned(), (*help).to_owned()));
            }
            None => {
                case.text.push_str(line);
                case.text.push('\n');
            }
        }
    }
    all
}

fn load(files: &[(&str, &str)]) -> Result<onehop::config::plan::Plan, Report> {
    let sources: Vec<Source> = files
        .iter()
        .map(|(name, text)| Source::Text { name: (*name).into(), text: (*text).into(), dir: "/etc/onehop".into() })
        .collect();
    load_with(&sources, ENTRIES, &|name| (name == "PORT").then(|| "8080".to_owned()))
}

#[test]
fn every_mistake_is_named_where_it_stands_with_its_cure() {
    let mut wrong = String::new();
    for case in cases(ENGINE) {
        let report = match load(&[("bad.yaml", &case.text)]) {
            Ok(_) => {
                wrong += &format!("--- {}: accepted\n", case.title);
                continue;
            }
            Err(report) => report,
        };
        let fits = case.expected.len() == report.errors.len()
            && case.expected.iter().zip(&report.errors).all(|((line, column, message, help), e)| {
                e.span.is_some_and(|s| (s.line, s.column) == (*line, *column))
                    && e.message.contains(message)
                    && e.help.as_ref().is_some_and(|h| h.contains(help))
            });
        if !fits {
            wrong += &format!("--- {}\n{:#?}\n{report}", case.title, case.expected);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What `check` prints of a config: one list of errors, as JSON.
fn check(text: &str) -> Vec<serde_json::Value> {
    let mut run = Command::new(env!("CARGO_BIN_EXE_onehop"))
        .args(["check", "--format", "json", "-c", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    run.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let done = run.wait_with_output().expect("it ends");
    let shown = [done.stdout, done.stderr].concat();
    let report: Vec<serde_json::Value> =
        serde_json::from_slice(&shown).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&shown)));
    report.into_iter().filter(|e| e["severity"] == "error").collect()
}

#[test]
fn filters_name_their_mistakes_too() {
    let mut wrong = String::new();
    for case in cases(FILTERS) {
        let errors = check(&case.text);
        let fits = case.expected.len() == errors.len()
            && case.expected.iter().zip(&errors).all(|((line, column, message, help), e)| {
                (e["line"].as_u64(), e["column"].as_u64()) == (Some((*line).into()), Some((*column).into()))
                    && e["message"].as_str().is_some_and(|m| m.contains(message))
                    && e["help"].as_str().is_some_and(|h| h.contains(help))
            });
        if !fits {
            wrong += &format!("--- {}\n{:#?}\n{errors:#?}\n", case.title, case.expected);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_table_is_long_and_its_titles_differ() {
    let cases = cases(ENGINE);
    let titles: BTreeSet<&str> = cases.iter().map(|c| c.title.as_str()).collect();
    assert_eq!(titles.len(), cases.len());
    assert!(cases.len() >= 60, "{} cases", cases.len());
    assert!(cases.iter().all(|c| !c.expected.is_empty()));
}

#[test]
fn a_report_reads_well_in_both_forms() {
    let text = "version: 1\nlisteners:\n  web: { bnid: 0.0.0.0:80 }\n";
    let report = load(&[("edge.yaml", text)]).err().expect("`bnid` is no key");
    let shown = report.to_string();
    let expected = "edge.yaml:3:10: error: unknown key `bnid`\n  |\n3 |   web: { bnid: 0.0.0.0:80 }\n  |          ^\n\
                    help: did you mean `bind`?\n";
    assert!(shown.contains(expected), "{shown}");
    let json = report.to_json();
    let first = &json[0];
    assert_eq!((&first["file"], &first["line"], &first["column"]), (&"edge.yaml".into(), &3.into(), &10.into()));
    assert_eq!(first["message"], "unknown key `bnid`");
    assert_eq!(first["help"], "did you mean `bind`?");
}

#[test]
fn files_are_merged_and_clashes_name_both_places() {
    let a = "version: 1\nlisteners: { web: { bind: 0.0.0.0:80 } }\nroutes: [{ name: a, to: s }]\n";
    let b = "services: { s: { discover: { static: [127.0.0.1:1] } } }\nroutes: [{ name: b, to: s }]\n";
    let plan = load(&[("a.yaml", a), ("b.yaml", b)]).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<&str> = plan.routes.iter().map(|r| &*r.name).collect();
    assert_eq!(names, ["a", "b"]);

    let c =
        "version: 1\nadmin: { bind: none }\nlisteners:\n  web: { bind: 0.0.0.0:81 }\nroutes: [{ name: a, to: s }]\n";
    let d = "admin: { bind: none }\n";
    let report = load(&[("a.yaml", a), ("b.yaml", b), ("c.yaml", c), ("d.yaml", d)]).err().expect("clashes");
    let found: Vec<String> = report.lines();
    assert_eq!(
        found,
        [
            "c.yaml:4:3: error: `listeners.web` stands in two files",
            "c.yaml:5:18: error: the route name `a` stands a second time",
            "d.yaml:1:1: error: `admin` stands in two files",
        ],
        "{report}"
    );
    assert!(report.errors[0].help.as_ref().is_some_and(|h| h.contains("2:14 of a.yaml")), "{report}");
}

#[test]
fn a_source_that_cannot_be_read_is_an_error_without_a_place() {
    for sources in [vec![], vec![Source::of("/nonexistent/onehop.yaml")]] {
        let report = load_with(&sources, ENTRIES, &|_| None).err().expect("nothing to read");
        assert_eq!(report.errors.len(), 1);
        assert!(report.errors[0].help.as_ref().is_some_and(|h| h.contains("-c")));
    }
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let text = "version: 1
listeners: { web: { bind: 0.0.0.0:80 } }
routes:
- { name: a, hosts: [h], matches: [{ path: { prefix: /x } }], timeouts: { request: 1s }, to: s }
- { name: b, hosts: [h], matches: [{ path: { prefix: /x/ } }], to: s }
- { name: c, to: [{ service: s, weight: 0 }] }
services:
  s: { discover: { static: [127.0.0.1:1] }, retry: { perTryTimeout: 2s }, tls: { insecureSkipVerify: true } }
  t: { discover: { static: [127.0.0.1:1] } }
";
    let plan = load(&[("a.yaml", text)]).unwrap_or_else(|e| panic!("{e}"));
    let shown = onehop::config::text(&plan.files, "warning", &plan.warnings);
    for words in [
        "a.yaml:5:11: warning: route `b` never gets a request: `a` matches the same",
        "a.yaml:6:18: warning: every weight is 0",
        "a.yaml:8:69: warning: `perTryTimeout` is longer than the 1s that route `a` allows",
        "warning: the endpoints are not verified",
        "a.yaml:9:3: warning: service `t` is used by no route",
    ] {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
    assert_eq!(plan.warnings.len(), 5, "{shown}");
}
