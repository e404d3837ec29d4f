//! Commands that need the running engine.

use std::process::ExitCode;

use http::{HeaderName, HeaderValue, Method, Uri};
use onehop::config::plan::Plan;
use onehop::config::{Report, Source};
use onehop::explain::Question;
use onehop::{demo as tour, explain as answer, hop};

/// Builds everything a plan describes (certificates, filters) and throws it away: the second half of `check`.
pub fn compile(plan: &Plan) -> Result<Vec<String>, Report> {
    hop::check(plan, onehop_filters::BUILTIN)
}

/// Serves until a signal ends it.
pub fn run(sources: Vec<Source>) -> ExitCode {
    onehop::runtime::purge::with(crate::trim::purge);
    hop::run(sources, crate::trim::trim)
}

/// The tour.
pub fn demo(once: bool) -> ExitCode {
    tour::run(once)
}

/// Answers for a hypothetical request.
pub fn explain(sources: &[Source], method: Method, url: Uri, headers: Vec<(HeaderName, HeaderValue)>) -> ExitCode {
    answer::run(sources, &Question { method, url, headers })
}
