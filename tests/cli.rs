//! The command line of the built binary: exit codes, and what stands on which stream.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{Endpoint, Onehop, binary, simple};

const GOOD: &str = "version: 1\nlisteners: { edge: { bind: \"127.0.0.1:0\" } }\nroutes:\n- { name: all, to: up }\n\
                    services:\n  up: { discover: { static: [\"127.0.0.1:1\"] } }\n";
const BAD: &str = "version: 1\nlistners: {}\n";

/// Runs to its end; never longer than half a minute.
fn onehop(args: &[&str]) -> Output {
    with_input(args, "")
}

fn with_input(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(binary())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that does not read its input may have closed it.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("the child ends")
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn example(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

struct File(tempfile::NamedTempFile);

impl File {
    fn of(text: &str) -> Self {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
        file.write_all(text.as_bytes()).expect("can be written");
        Self(file)
    }
    fn path(&self) -> &str {
        self.0.path().to_str().expect("UTF-8")
    }
}

#[test]
fn check_tells_good_from_bad() {
    let (good, bad) = (File::of(GOOD), File::of(BAD));
    for args in [vec!["check", "-c", good.path()], vec!["-t", "-c", good.path()]] {
        let output = onehop(&args);
        assert_eq!(code(&output), 0, "{output:?}");
        assert!(out(&output).starts_with("good (listeners: 1, routes: 1, services: 1)"), "{output:?}");
    }
    for args in [vec!["check", "-c", bad.path()], vec!["-t", "-c", bad.path()], vec!["run", "-c", bad.path()]] {
        let output = onehop(&args);
        assert_eq!(code(&output), 1, "{output:?}");
        let text = err(&output);
        assert!(text.contains(":2:1") && text.contains("did you mean `listeners`"), "{text}");
        assert!(out(&output).is_empty(), "{output:?}");
    }
    let output = onehop(&["check", "-c", bad.path(), "--format", "json"]);
    assert_eq!(code(&output), 1);
    let report: serde_json::Value = serde_json::from_str(&out(&output)).expect("JSON");
    let first =
        report.as_array().or_else(|| report["errors"].as_array()).expect("a list").first().expect("one").clone();
    assert_eq!((&first["line"], &first["column"]), (&2.into(), &1.into()), "{report:#}");
    let output = onehop(&["check", "-c", "/nowhere/at/all.yaml"]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("/nowhere/at/all.yaml"), "{output:?}");
    assert_eq!(code(&with_input(&["check", "-c", "-"], GOOD)), 0);
    assert_eq!(code(&with_input(&["check", "-c", "-"], BAD)), 1);
}

#[test]
fn the_effective_configuration_is_a_configuration() {
    let read = |name: &str| std::fs::read_to_string(example(name)).expect("there");
    for text in [GOOD.to_owned(), read("sidecar.yaml"), read("tcp.yaml")] {
        let first = with_input(&["check", "-c", "-", "--effective"], &text);
        assert_eq!(code(&first), 0, "{}", err(&first));
        assert!(out(&first).contains("default"), "defaults are marked: {}", out(&first));
        let again = with_input(&["check", "-c", "-", "--effective"], &out(&first));
        assert_eq!(code(&again), 0, "{}\n{}", err(&again), out(&first));
        // Comments aside: what was a default is now written down.
        let bare = |text: &str| {
            text.lines().map(|l| l.split(" #").next().unwrap_or_default().trim_end().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(bare(&out(&again)), bare(&out(&first)));
        let json = with_input(&["check", "-c", "-", "--effective", "--format", "json"], &text);
        let value: serde_json::Value = serde_json::from_str(&out(&json)).expect("JSON");
        assert!(value.is_object());
        let json = with_input(&["check", "-c", "-", "--format", "json"], &text);
        serde_json::from_str::<serde_json::Value>(&out(&json)).expect("JSON");
    }
}

#[test]
fn secrets_are_not_shown() {
    let text = format!(
        "{GOOD}identities: {{ keys: {{ apiKey: {{ header: x-api-key }} }} }}\nconsumers: {{ me: {{ apiKeys: [hunter-two-hunter-two] }} }}\n"
    );
    let output = with_input(&["check", "-c", "-", "--effective"], &text);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(!out(&output).contains("hunter-two"), "{}", out(&output));
    let output = with_input(&["check", "-c", "-", "--effective", "--format", "json"], &text);
    assert!(!out(&output).contains("hunter-two"), "{}", out(&output));
}

#[test]
fn wrong_usage_is_two() {
    for args in [
        &["--no-such-flag"][..],
        &["run"],
        &["check"],
        &["completion", "tcsh"],
        &["explain", "-c", "x"],
        &["health", "--admin", "nonsense"],
        &["-c", "x", "--effective"],
    ] {
        let output = onehop(args);
        assert_eq!(code(&output), 2, "{args:?}: {output:?}");
        assert!(!err(&output).is_empty() && out(&output).is_empty(), "{args:?}: {output:?}");
    }
}

#[test]
fn run_serves_until_it_is_told_to_stop() {
    let up = Endpoint::ok();
    let mut hop = Onehop::start(&simple(&up));
    assert_eq!(common::get(hop.at("edge"), "a", "/").status(), 200);
    hop.signal("TERM");
    assert_eq!(hop.wait(Duration::from_secs(10)), Some(0), "{}", hop.log());
}

#[test]
fn run_says_what_it_cannot_bind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let text = GOOD.replace("127.0.0.1:0", &address) + "admin: { bind: none }\n";
    let output = with_input(&["run", "-c", "-"], &text);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(err(&output).contains(&address), "{output:?}");
}

#[test]
fn the_demo_ends_well() {
    let output = onehop(&["demo", "--once"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let text = out(&output);
    for word in ["200", "401", "429", "auth", "quota", "retry", "ejected"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn explain_runs_the_chain_and_calls_nobody() {
    let output = onehop(&["explain", "-c", &example("edge.yaml"), "GET", "http://api.example.com/v1/orders/7"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let text = out(&output);
    assert!(text.contains("orders") && text.contains("401"), "{text}");
    let url = "http://api.example.com/v1/orders/7";
    let output = onehop(&["explain", "-c", &example("edge.yaml"), "GET", url, "-H", "x-api-key: acme-demo-key"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let text = out(&output);
    assert!(text.contains("asks for http://api.example.com/orders/7") && text.contains("127.0.0.1:9001"), "{text}");
    assert!(!text.contains("acme-demo-key"), "{text}");
    let output = onehop(&["explain", "-c", &example("edge.yaml"), "GET", "http://api.example.com/ping"]);
    assert!(out(&output).contains("ping"), "{output:?}");
    let output = onehop(&["explain", "-c", &example("sidecar.yaml"), "GET", "http://nobody.example/"]);
    assert!(out(&output).contains("inbound") && out(&output).contains("outbound"), "{output:?}");
    assert_eq!(code(&with_input(&["explain", "-c", "-", "GET", "http://a/"], BAD)), 1);
}

#[test]
fn filters_describe_themselves() {
    let output = onehop(&["filters"]);
    assert_eq!(code(&output), 0);
    for entry in onehop_filters::BUILTIN {
        assert!(out(&output).lines().any(|l| l.starts_with(entry.name)), "{}", entry.name);
        let one = onehop(&["filters", entry.name]);
        assert_eq!(code(&one), 0, "{}", entry.name);
        assert!(out(&one).starts_with(&format!("{}: {}", entry.name, entry.summary)), "{}", out(&one));
    }
    let output = onehop(&["filters", "quotta"]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("quota"), "{output:?}");
}

#[test]
fn the_schema_is_json_and_knows_every_filter() {
    let output = onehop(&["schema"]);
    assert_eq!(code(&output), 0);
    let schema: serde_json::Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert!(schema["$schema"].as_str().expect("a dialect").contains("2020-12"));
    for section in [
        "listeners",
        "routes",
        "services",
        "identities",
        "plans",
        "consumers",
        "admin",
        "telemetry",
        "state",
        "lifecycle",
        "runtime",
    ] {
        assert!(schema["properties"].get(section).is_some() || section == "state", "{section}");
    }
    for entry in onehop_filters::BUILTIN {
        assert!(out(&output).contains(&format!("\"{}\"", entry.name)), "{}", entry.name);
    }
}

#[test]
fn help_is_derived() {
    for (shell, sign) in [("bash", "complete -F"), ("zsh", "#compdef onehop"), ("fish", "complete -c onehop")] {
        let output = onehop(&["completion", shell]);
        assert_eq!(code(&output), 0);
        assert!(out(&output).contains(sign) && out(&output).contains("explain"), "{shell}");
    }
    let man = onehop(&["man"]);
    assert_eq!(code(&man), 0);
    assert!(out(&man).contains(".TH onehop 1") && out(&man).contains("explain"), "{}", out(&man));
    let version = format!("onehop {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(out(&onehop(&["version"])), version);
    assert_eq!(out(&onehop(&["--version"])), version);
    let help = onehop(&["--help"]);
    assert_eq!(code(&help), 0);
    for command in ["run", "check", "demo", "explain", "filters", "schema", "completion", "man", "version", "health"] {
        assert!(out(&help).contains(command), "{command}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child =
        Command::new(binary()).arg("schema").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!((code(&output), err(&output).as_str()), (0, ""));
}

#[test]
fn health_asks_a_running_process() {
    let up = Endpoint::ok();
    let hop = Onehop::start(&simple(&up));
    let admin = hop.admin().to_string();
    assert_eq!(code(&onehop(&["health", "--admin", &admin])), 0);
    let socket = hop.dir().join("admin.sock");
    let text = simple(&up)
        .replace("bind: \"127.0.0.1:0\" }\nlisteners", &format!("bind: \"unix://{}\" }}\nlisteners", socket.display()));
    let other = Onehop::start(&text);
    let file = File::of(&text);
    assert_eq!(code(&onehop(&["health", "-c", file.path()])), 0, "{}", other.log());
    drop(other);
    assert_eq!(code(&onehop(&["health", "-c", file.path()])), 1);
    drop(hop);
    let output = onehop(&["health", "--admin", &admin]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("/readyz"), "{output:?}");
}
