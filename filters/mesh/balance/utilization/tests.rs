use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use proptest::prelude::*;

use super::config::Settings;
use super::core::{Utilization, learn, weight};
use super::report::Report;
use crate::contract::mesh::{Balance, Endpoint, Pick, Picker};
use crate::contract::{Body, Moment, Role};
use crate::mesh::balance::pool::{Pool, Rules};
use crate::mesh::bed::{self, Bed};

const SECOND: u64 = 1_000_000_000;

fn fields(name: &'static str, value: &str) -> HeaderMap {
    let value = HeaderValue::try_from(value).expect("a test writes valid values");
    HeaderMap::from_iter([(HeaderName::from_static(name), value)])
}

fn plain(value: &str) -> Option<Report> {
    Report::find(&fields("endpoint-load-metrics", value), &["named_metrics.kv".into(), "utilization.disk".into()])
}

/// A message as protobuf writes it: cpu 0.5, rps_fractional 100, eps 2, named_metrics {kv: 0.75}, memory 0.25.
fn message() -> Vec<u8> {
    let double = |number: u8, value: f64| [&[number << 3 | 1][..], &value.to_le_bytes()].concat();
    let entry = [&[0x0A, 2][..], b"kv", &double(2, 0.75)].concat();
    let map = [&[8 << 3 | 2, u8::try_from(entry.len()).expect("short")][..], &entry].concat();
    [double(1, 0.5), double(2, 0.25), double(6, 100.0), double(7, 2.0), map].concat()
}

#[test]
fn reports_in_every_form() {
    let due = Report { cpu: 0.5, application: 0.0, rps: 100.0, eps: 2.0, named: 0.75 };
    let text = "TEXT cpu_utilization=0.5, mem_utilization=0.25,rps_fractional=100.0 , eps=2,named_metrics.kv=0.75";
    assert_eq!(plain(text).as_ref(), Some(&due));
    for json in [
        r#"JSON {"cpu_utilization":0.5,"rps_fractional":100,"eps":2,"named_metrics":{"kv":0.75,"other":9}}"#,
        r#"JSON {"cpuUtilization":0.5,"rpsFractional":100.0,"eps":2,"namedMetrics":{"kv":0.75},"memUtilization":0.25}"#,
        r#"JSON {"cpu_utilization":0.5,"rps":"100","eps":2,"utilization":{"disk":0.75}}"#,
    ] {
        assert_eq!(plain(json).as_ref(), Some(&due), "{json}");
    }
    assert_eq!(plain(&format!("BIN {}", STANDARD.encode(message()))).as_ref(), Some(&due));
    for value in [STANDARD.encode(message()), STANDARD_NO_PAD.encode(message())] {
        let found = Report::find(&fields("endpoint-load-metrics-bin", &value), &["named_metrics.kv".into()]);
        assert_eq!(found.as_ref(), Some(&due));
    }
    assert!((due.utilization() - 0.75).abs() < 1e-9, "the named figure before the processor");
    let own = plain("TEXT application_utilization=0.4,cpu_utilization=0.9,named_metrics.kv=0.8").expect("a report");
    assert!((own.utilization() - 0.4).abs() < 1e-9, "what the application says comes first");
}

#[test]
fn what_is_malformed_is_no_report() {
    for value in [
        "cpu_utilization=0.5",
        "TEXT cpu_utilization",
        "TEXT cpu_utilization=much",
        "TEXT cpu_utilization=-1",
        "TEXT cpu_utilization=NaN",
        "TEXT cpu_utilization=inf",
        "JSON [1]",
        "JSON {",
        r#"JSON {"cpu_utilization":true}"#,
        "BIN !!",
        "BIN CQ==",
        "XML <a/>",
    ] {
        assert_eq!(plain(value), None, "{value}");
    }
    let long = format!("TEXT cpu_utilization=0.5,{}", "named_metrics.a=1,".repeat(1000));
    assert_eq!(plain(&long), None);
}

fn report(rps: f64, cpu: f64, eps: f64) -> Report {
    Report { cpu, rps, eps, ..Report::default() }
}

#[test]
fn a_report_counts_after_the_blackout_until_it_is_old() {
    let settings = Settings::default();
    let e = &bed::endpoints(&[1])[0];
    let at = |s: u64| weight(&settings, &e.state, Moment(s * SECOND));
    assert_eq!(at(100), None);
    learn(&settings, &e.state, &report(100.0, 0.5, 0.0), Moment(100 * SECOND));
    assert_eq!((at(101), at(109), at(110)), (None, None, Some(200.0)));
    learn(&settings, &e.state, &report(100.0, 0.25, 25.0), Moment(120 * SECOND));
    assert_eq!(at(120), Some(200.0), "a quarter of the requests fail: 0.25 and 0.25");
    learn(&settings, &e.state, &report(0.0, 0.5, 0.0), Moment(200 * SECOND));
    learn(&settings, &e.state, &report(10.0, 0.0, 0.0), Moment(200 * SECOND));
    assert_eq!((at(299), at(300)), (Some(200.0), None), "reports that say nothing keep nothing alive");
    learn(&settings, &e.state, &report(50.0, 0.5, 0.0), Moment(400 * SECOND));
    assert_eq!((at(405), at(410)), (None, Some(100.0)), "a new blackout");
}

/// Picks of each endpoint among `n`, in percent.
fn shares(pool: &Pool<Utilization>, set: &Arc<[Arc<Endpoint>]>, at: u64, n: u64) -> Vec<f64> {
    let mut seen = vec![0u32; set.len()];
    for seed in 0..n {
        let e = pool.pick(&Pick { now: Moment(at * SECOND), seed, hash: None, tried: &[] }).expect("available");
        seen[set.iter().position(|x| x.id == e.id).expect("one of the set")] += 1;
    }
    seen.iter().map(|s| f64::from(*s) * 100.0 / n as f64).collect()
}

fn close(seen: &[f64], due: &[f64]) {
    assert!(seen.iter().zip(due).all(|(s, d)| (s - d).abs() <= 0.05 * d.max(1.0)), "{seen:?}, due {due:?}");
}

#[test]
fn shares_follow_reports_within_five_percent() {
    let settings = Settings::default();
    let set = bed::endpoints(&[1; 4]);
    let pool = Pool::new(Utilization(settings.clone()), &set, Rules::default());
    close(&shares(&pool, &set, 1, 40_000), &[25.0; 4]);
    learn(&settings, &set[0].state, &report(100.0, 0.25, 0.0), Moment(10 * SECOND));
    close(&shares(&pool, &set, 30, 40_000), &[25.0; 4]);
    for (e, cpu) in set.iter().zip([0.25, 0.5, 1.0]) {
        learn(&settings, &e.state, &report(100.0, cpu, 0.0), Moment(40 * SECOND));
    }
    // 400, 200 and 100; who says nothing counts as their mean.
    let all = 700.0 + 700.0 / 3.0;
    let due = [400.0, 200.0, 100.0, 700.0 / 3.0].map(|w| w * 100.0 / all);
    close(&shares(&pool, &set, 60, 40_000), &due);
    set[0].state.ejected_until.store(u64::MAX, Relaxed);
    let rest = 300.0 + 700.0 / 3.0;
    close(&shares(&pool, &set, 61, 40_000), &[0.0, 200.0 * 100.0 / rest, 100.0 * 100.0 / rest, 70_000.0 / 3.0 / rest]);
}

#[test]
fn one_outlier_does_not_take_everything() {
    let settings = Settings::default();
    let set = bed::endpoints(&[1; 20]);
    for (i, e) in set.iter().enumerate() {
        let cpu = match i {
            0 => 0.000_1,
            1 => 1000.0,
            _ => 0.5,
        };
        learn(&settings, &e.state, &report(100.0, cpu, 0.0), Moment(SECOND));
    }
    let pool = Pool::new(Utilization(settings), &set, Rules::default());
    let seen = shares(&pool, &set, 30, 100_000);
    assert!(seen[0] > 30.0 && seen[1] > 0.0 && seen[1] < 1.0, "{seen:?}");
}

#[test]
fn turns_are_spread_not_bunched() {
    let settings = Settings::default();
    let set = bed::endpoints(&[1; 2]);
    learn(&settings, &set[0].state, &report(100.0, 0.25, 0.0), Moment(SECOND));
    learn(&settings, &set[1].state, &report(100.0, 0.75, 0.0), Moment(SECOND));
    let pool = Pool::new(Utilization(settings), &set, Rules::default());
    let turns: Vec<bool> = (0..400)
        .map(|seed| {
            let cx = Pick { now: Moment(30 * SECOND), seed, hash: None, tried: &[] };
            pool.pick(&cx).expect("available").id == set[0].id
        })
        .collect();
    assert!(turns.windows(6).all(|w| w.iter().any(|heavy| !heavy)), "the light one is never left out for long");
}

#[tokio::test]
async fn callers_do_not_see_reports() {
    let Role::Balance(build) = super::ENTRY.role else { panic!("a balancer") };
    let policy: Arc<dyn Balance> = Bed::default().build(|b| build(None, b)).expect("valid");
    assert!(policy.takes_answers());
    let set = bed::endpoints(&[1]);
    let mut headers = fields("endpoint-load-metrics", "TEXT cpu_utilization=0.5,rps_fractional=10");
    policy.observe(&set[0], &bed::answer(200, &headers), Moment(SECOND));
    assert_eq!(f64::from_bits(set[0].state.capacity.load(Relaxed)), 20.0);
    let trailers = HeaderMap::from_iter([
        (
            HeaderName::from_static("endpoint-load-metrics-bin"),
            HeaderValue::try_from(STANDARD.encode(message())).expect("text"),
        ),
        (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0")),
    ]);
    let chunks =
        [Ok(http_body::Frame::data(bytes::Bytes::from_static(b"a"))), Ok(http_body::Frame::trailers(trailers))];
    let mut body = Body::stream(http_body_util::StreamBody::new(futures_util::stream::iter(chunks)));
    policy.answered(&set[0], &mut headers, &mut body);
    assert!(headers.is_empty());
    let collected = body.collect().await.expect("no error");
    let left = collected.trailers().expect("the others stay");
    assert!(left.len() == 1 && left.contains_key("grpc-status"));
    assert_eq!(f64::from_bits(set[0].state.capacity.load(Relaxed)), 100.0 / 0.52);
}

#[test]
fn sections() {
    let Role::Balance(build) = super::ENTRY.role else { panic!("a balancer") };
    let ok = |json: &str| Bed::default().build(|b| build(Some(&bed::node(json)), b)).is_ok();
    assert!(ok(
        r#"{"policy":"utilization","blackoutPeriod":"0s","weightUpdatePeriod":"100ms","metricNames":["mem_utilization","named_metrics.kv"]}"#
    ));
    for bad in [
        r#"{"weightUpdatePeriod":"10ms"}"#,
        r#"{"weightExpirationPeriod":"5s"}"#,
        r#"{"errorUtilizationPenalty":-1}"#,
        r#"{"metricNames":["kv"]}"#,
        r#"{"metricNames":["named_metrics."]}"#,
        r#"{"hash":"ip"}"#,
    ] {
        assert!(!ok(bad), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_value_upsets_the_reader(bytes in proptest::collection::vec(32u8..127, 0..200), form in 0usize..3) {
        let text = String::from_utf8(bytes).expect("visible letters");
        if let Some(report) = plain(&format!("{} {text}", ["TEXT", "JSON", "BIN"][form])) {
            prop_assert!(report.utilization() >= 0.0 && report.utilization().is_finite());
        }
    }
    #[test]
    fn no_message_upsets_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = plain(&format!("BIN {}", STANDARD.encode(bytes)));
    }
    #[test]
    fn weights_stay_within_reason(figures in proptest::collection::vec((0.001..1e6f64, 0.001..10.0f64), 2..20)) {
        let settings = Settings { blackout: Duration::ZERO, ..Settings::default() };
        let set = bed::endpoints(&vec![1; figures.len()]);
        for (e, (rps, cpu)) in set.iter().zip(&figures) {
            learn(&settings, &e.state, &report(*rps, *cpu, 0.0), Moment(SECOND));
        }
        let pool = Pool::new(Utilization(settings), &set, Rules::default());
        let seen = shares(&pool, &set, 2, 200);
        prop_assert!((seen.iter().sum::<f64>() - 100.0).abs() < 1e-6);
    }
}
