//! No text makes the reader panic; a refusal has errors, and what is accepted survives its own effective view.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onehop::config::{Source, effective, load_with};
use onehop_filters::BUILTIN;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    // Secrets may name files; what this machine has must not decide.
    if text.contains("file") {
        return;
    }
    let load = |text: &str| {
        let source = Source::Text { name: "fuzz".into(), text: text.into(), dir: "/nonexistent".into() };
        load_with(&[source], BUILTIN, &|_| Some("v".into()))
    };
    match load(&text) {
        Ok(plan) => {
            let shown = effective(&plan, BUILTIN);
            if !shown.contains("[redacted]") {
                assert!(load(&shown).is_ok(), "{shown}");
            }
        }
        Err(report) => {
            assert!(!report.errors.is_empty());
            let _ = (report.to_string(), report.to_json());
        }
    }
});
