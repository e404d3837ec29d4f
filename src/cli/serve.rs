//! Commands that need the running engine.

use std::process::ExitCode;

use http::{HeaderName, HeaderValue, Method, Uri};
use onehop::config::plan::Plan;
use onehop::config::{Report, Source};

use super::BAD;

/// Builds everything a plan describes (certificates, filters) and throws it away: the second half of `check`.
pub fn compile(_plan: &Plan) -> Result<(), Report> {
    Ok(())
}

/// Serves until a signal ends it.
pub fn run(_sources: Vec<Source>) -> ExitCode {
    absent("run")
}

/// The tour.
pub fn demo(_once: bool) -> ExitCode {
    absent("demo")
}

/// Answers for a hypothetical request.
pub fn explain(
    _sources: Vec<Source>,
    _method: Method,
    _url: Uri,
    _headers: Vec<(HeaderName, HeaderValue)>,
) -> ExitCode {
    absent("explain")
}

fn absent(command: &str) -> ExitCode {
    eprintln!("onehop: this build has no `{command}`");
    ExitCode::from(BAD)
}
