//! `onehop check`.

use std::process::ExitCode;

use onehop::config::{self, Source};
use onehop_filters::BUILTIN;

use super::{BAD, Format, View, print, serve};

pub fn check(sources: &[Source], view: &View) -> ExitCode {
    let checked = config::load(sources, BUILTIN).and_then(|plan| serve::compile(&plan).map(|remarks| (plan, remarks)));
    let (plan, remarks) = match checked {
        Ok(checked) => checked,
        Err(report) => {
            match view.format {
                Format::Text => {
                    let count = report.errors.len();
                    eprint!("{report}");
                    eprintln!("{count} error{}", if count == 1 { "" } else { "s" });
                }
                Format::Json => drop(print(&pretty(&report.to_json()))),
            }
            return ExitCode::from(BAD);
        }
    };
    match (view.effective, view.format) {
        (true, Format::Text) => {
            eprint!("{}", config::text(&plan.files, "warning", &plan.warnings));
            let remarks: String = remarks.iter().map(|remark| format!("# {remark}\n")).collect();
            print(&(config::effective(&plan, BUILTIN) + &remarks))
        }
        (true, Format::Json) => print(&pretty(&config::effective_json(&plan, BUILTIN))),
        (false, Format::Json) => print(&pretty(&config::json(&plan.files, "warning", &plan.warnings))),
        (false, Format::Text) => {
            eprint!("{}", config::text(&plan.files, "warning", &plan.warnings));
            print(&format!(
                "good (listeners: {}, routes: {}, services: {})\n",
                plan.listeners.len(),
                plan.routes.len(),
                plan.services.len()
            ))
        }
    }
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}
