//! Load reports of endpoints, in every form: nothing panics, and no load is negative or endless.
#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use onehop_filters::mesh::balance::utilization::Report;

fuzz_target!(|input: (bool, &[u8])| {
    let (alone, bytes) = input;
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let name = if alone { "endpoint-load-metrics-bin" } else { "endpoint-load-metrics" };
    let mut fields = HeaderMap::new();
    fields.insert(name, value);
    let Some(report) = Report::find(&fields, &["named_metrics.a".into(), "utilization.b".into()]) else { return };
    assert!(report.utilization().is_finite() && report.utilization() >= 0.0);
    assert!(report.rps >= 0.0 && report.eps >= 0.0);
});
