//! `onehop explain`: what would become of a request, decided by the running code on a hypothetical one.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use onehop_filters::contract::Conn;
use onehop_filters::contract::metrics::Registry;

use crate::config::plan;
use crate::config::{self, Source};
use crate::observe::metrics::EngineMetrics;
use crate::proxy::headers::forwarded::Stamp;
use crate::proxy::request::{self, Caller, Hypothetical};
use crate::snapshot::cell::Cell;
use crate::snapshot::compile::{Compiler, compile};
use crate::snapshot::estate::Estate;
use crate::snapshot::{Action, Listener, Snapshot};

/// A request nobody sends.
pub struct Question {
    /// Method.
    pub method: Method,
    /// Absolute URL, or a path (then a `host` header says the rest).
    pub url: Uri,
    /// Fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
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
    let mut compiler = Compiler {
        entries: onehop_filters::BUILTIN,
        metrics: &registry,
        engine: &EngineMetrics::new(&registry),
        staging: &mut staging,
        control: &control,
    };
    let snapshot = compile(&mut compiler, &plan, 1).map_err(|errors| plan.files.report(errors).to_string())?;
    staging.publish(&control);
    let cell = Cell::new(snapshot);
    settle(&cell.load()).await;
    let view = cell.view();
    let mut text = String::new();
    for listener in &view.listeners {
        text.push_str(&format!("listener {}\n", listener.plan.name));
        if listener.plan.tcp.is_some() {
            text.push_str("  takes connections, not requests\n");
            continue;
        }
        let caller = caller(&view, listener);
        let found = request::hypothetical(&view, listener, &caller, question.request().into_parts().0).await;
        write(&mut text, &view, &found);
    }
    Ok(text)
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
    fn request(&self) -> Request<()> {
        let mut rq = Request::new(());
        rq.method_mut().clone_from(&self.method);
        rq.uri_mut().clone_from(&self.url);
        for (name, value) in &self.headers {
            rq.headers_mut().append(name.clone(), value.clone());
        }
        if !rq.headers().contains_key(HOST) {
            // HTTP/1.1 wants the field beside an absolute URL too.
            let host = self.url.host().and_then(|host| HeaderValue::try_from(host).ok());
            rq.headers_mut().insert(HOST, host.unwrap_or(HeaderValue::from_static("localhost")));
        }
        rq
    }
}

/// A caller on this machine that is believed, over the listener's own kind of connection.
fn caller(view: &Snapshot, listener: &Listener) -> Caller {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let conn = Arc::new(Conn {
        id: 0,
        listener: listener.plan.name.clone(),
        peer: loopback,
        local: loopback,
        client: loopback,
        trusted: true,
        mesh: listener.plan.mesh,
        tls: None,
    });
    let stamp = Stamp::new(&conn, listener.plan.trusted.clone(), Some(view.telemetry.debug_header.clone()));
    Caller { conn, stamp, tls: None, drain: None }
}

fn write(text: &mut String, view: &Snapshot, found: &Hypothetical) {
    let mut line = |s: String| {
        text.push_str("  ");
        text.push_str(&s);
        text.push('\n');
    };
    if let Some(fault) = &found.refused {
        line(format!("refused: {fault} ({})", fault.status()));
        if found.route.is_none() {
            return;
        }
    }
    for candidate in &found.candidates {
        let name = &view.routes[candidate.value as usize].info.name;
        line(format!("candidate {name} ({} {}): {}", candidate.host, candidate.path, candidate.verdict));
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
        (None, Action::Pass(_)) => line(format!("asks for {}, the host itself", found.target)),
        (None, Action::Nothing) => line("no route: 404".to_owned()),
        (None, Action::Forward(split)) => {
            line(format!("asks for {}", found.target));
            for i in split.positions() {
                let target = &view.targets[i];
                let subset = target.service.subset.as_ref().map_or_else(String::new, |s| format!(" subset {}", s.name));
                line(format!("service {}{subset} {}", target.service.name, target.service.view()));
            }
        }
    }
}
