//! `onehop explain`: what would become of a request, decided by the running code on a hypothetical one.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, Uri};
use onehop_filters::contract::Conn;
use onehop_filters::contract::metrics::Registry;

use crate::config::{self, Source};
use crate::config::plan;
use crate::proxy::request::{self, Hypothetical};
use crate::snapshot::cell::Cell;
use crate::snapshot::compile::{Compiler, compile};
use crate::snapshot::estate::Estate;
use crate::snapshot::{Action, Listener, Snapshot};

/// A request nobody sends.
pub struct Question {
    /// Method.
    pub method: String,
    /// Absolute URL, or a path (then a `host` header says the rest).
    pub url: String,
    /// `name: value`.
    pub headers: Vec<String>,
    /// Listener; default: every one.
    pub listener: Option<String>,
}

/// Answers on standard output.
#[must_use]
pub fn run(sources: &[Source], question: &Question) -> ExitCode {
    let plan = match config::load(sources, onehop_filters::BUILTIN) {
        Ok(plan) => plan,
        Err(report) => {
            eprint!("{report}");
            return ExitCode::from(1);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("explain: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(answer(plan, question)) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("explain: {e}");
            ExitCode::from(1)
        }
    }
}

async fn answer(mut plan: plan::Plan, question: &Question) -> Result<String, String> {
    // A hypothetical request is written nowhere.
    plan.telemetry.access_log = None;
    plan.telemetry.tracing = None;
    let estate = Estate::default();
    let registry = Arc::new(Registry::default());
    let control = tokio::runtime::Handle::current();
    let mut staging = estate.stage();
    let mut compiler =
        Compiler { entries: onehop_filters::BUILTIN, metrics: &registry, staging: &mut staging, control: &control };
    let snapshot = compile(&mut compiler, &plan, 1).map_err(|errors| plan.files.report(errors).to_string())?;
    staging.publish(&control);
    let cell = Cell::new(snapshot);
    settle(&cell.load()).await;
    let rq = question.request()?;
    let view = cell.view();
    let mut text = String::new();
    let mut any = false;
    for listener in &view.listeners {
        if question.listener.as_ref().is_some_and(|name| **name != *listener.plan.name) {
            continue;
        }
        any = true;
        text.push_str(&format!("listener {}\n", listener.plan.name));
        let rq = clone(&rq);
        let found = request::hypothetical(&view, listener, rq, conn(listener)).await;
        write(&mut text, &view, &found);
    }
    if any { Ok(text) } else { Err("there is no such listener".to_owned()) }
}

/// Gives discovery and keys a moment: a request a second after start would find them too.
async fn settle(snapshot: &Arc<Snapshot>) {
    for _ in 0..20 {
        if snapshot.targets.iter().all(|t| !t.service.is_empty()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Question {
    fn request(&self) -> Result<Request<()>, String> {
        let method: Method = self.method.to_ascii_uppercase().parse().map_err(|_| format!("`{}` is not a method", self.method))?;
        let uri: Uri = self.url.parse().map_err(|e| format!("`{}` is not a URL: {e}", self.url))?;
        let mut rq = Request::new(());
        *rq.method_mut() = method;
        *rq.uri_mut() = uri;
        for line in &self.headers {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("`{line}` is not `name: value`"))?;
            let name: HeaderName = name.trim().parse().map_err(|_| format!("`{name}` is not a header name"))?;
            let value: HeaderValue = value.trim().parse().map_err(|_| format!("`{line}` has no valid value"))?;
            rq.headers_mut().append(name, value);
        }
        if rq.uri().authority().is_none() && !rq.headers().contains_key(http::header::HOST) {
            rq.headers_mut().insert(http::header::HOST, HeaderValue::from_static("localhost"));
        }
        Ok(rq)
    }
}

fn clone(rq: &Request<()>) -> Request<()> {
    let mut copy = Request::new(());
    copy.method_mut().clone_from(rq.method());
    copy.uri_mut().clone_from(rq.uri());
    copy.headers_mut().clone_from(rq.headers());
    copy
}

/// A caller on this machine, over the listener's own kind of connection.
fn conn(listener: &Listener) -> Arc<Conn> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    Arc::new(Conn {
        id: 0,
        listener: listener.plan.name.clone(),
        peer: loopback,
        local: loopback,
        client: loopback,
        trusted: true,
        mesh: listener.plan.mesh,
        tls: None,
    })
}

fn write(text: &mut String, view: &Snapshot, found: &Hypothetical) {
    let mut line = |s: String| {
        text.push_str("  ");
        text.push_str(&s);
        text.push('\n');
    };
    if let Some(fault) = &found.refused {
        line(format!("refused: {fault} ({})", fault.reason.status()));
    }
    for candidate in &found.candidates {
        line(format!("candidate {}: {}", candidate.route, candidate.why));
    }
    let Some(route) = found.route.map(|i| &view.routes[i as usize]) else {
        line("no route: 404".to_owned());
        return;
    };
    line(format!("route {}", route.info.name));
    for row in crate::observe::server_timing::table(&found.trail).lines() {
        line(format!("  {row}"));
    }
    match (&found.verdict, &route.action) {
        (Some(verdict), _) => line(format!("answer {verdict}")),
        (None, Action::Redirect(r)) => line(format!("redirect {}", r.status)),
        (None, Action::Respond(c)) => line(format!("respond {}", c.status)),
        (None, Action::Nothing) => line("no route: 404".to_owned()),
        (None, Action::Forward(split)) => {
            for i in split.positions() {
                let target = &view.targets[i];
                line(format!("service {} {}", target.service.name, target.service.view()));
            }
        }
    }
}
