//! The onehop engine with every built-in filter and one more.
//!
//!   cargo run -p onehop-custom-filter -- examples/custom-filter/onehop.yaml
//!   curl -i http://127.0.0.1:8080/items -H 'x-api-version: 2025-06'

#![forbid(unsafe_code)]

use std::process::ExitCode;

use onehop::config::Source;
use onehop::hop::Hop;
use onehop::observe::log::Log;
use onehop_filters::BUILTIN;

fn main() -> ExitCode {
    let Some(config) = std::env::args().nth(1) else {
        eprintln!("usage: onehop-custom-filter FILE");
        return ExitCode::from(2);
    };
    // The list lives as long as the process, as a constant one would.
    let entries = Box::leak([BUILTIN, &[onehop_custom_filter::ENTRY]].concat().into_boxed_slice());
    match Hop::start_with(vec![Source::of(&config)], entries, Log::install("info").ok()) {
        Ok(hop) => {
            hop.serve_until_signal();
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprint!("{e}");
            ExitCode::FAILURE
        }
    }
}
