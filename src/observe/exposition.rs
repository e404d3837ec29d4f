//! The registry as text: Prometheus 0.0.4, or OpenMetrics 1.0 for those who ask for it.
//!
//! Written here and not with a client library: the cells are sharded per worker and live in the filter contract, and
//! what a library would add to them is the four functions below.

use std::fmt::Write as _;

use onehop_filters::contract::metrics::{Family, Registry, Series};

use super::process;

/// Which text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0: the names of counter families lack `_total`, and the text has an end.
    OpenMetrics,
}

impl Format {
    /// What an `accept` field asks for; the classic format if it does not say.
    #[must_use]
    pub fn of(accept: &str) -> Self {
        let wants = accept.split(',').map(str::trim).any(|range| {
            let mut parts = range.split(';').map(str::trim);
            parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/openmetrics-text"))
                && !parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        });
        if wants { Self::OpenMetrics } else { Self::Text }
    }

    /// `content-type` of the answer.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Everything in the registry, and what the kernel says of the process.
#[must_use]
pub fn expose(registry: &Registry, format: Format) -> String {
    let mut out = String::with_capacity(64 * 1024);
    registry.visit(|name, family| write_family(&mut out, format, name, family));
    for metric in process::read() {
        let kind = if metric.name.ends_with("_total") { "counter" } else { "gauge" };
        header(&mut out, format, metric.name, kind, metric.help);
        let _ = writeln!(out, "{} {}", metric.name, metric.value);
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn header(out: &mut String, format: Format, name: &str, kind: &str, help: &str) {
    let name = match format {
        Format::OpenMetrics if kind == "counter" => name.strip_suffix("_total").unwrap_or(name),
        _ => name,
    };
    let _ = write!(out, "# HELP {name} ");
    // OpenMetrics escapes quotes in help texts; the classic format leaves them.
    escape(out, help, format == Format::OpenMetrics);
    let _ = write!(out, "\n# TYPE {name} {kind}\n");
}

fn write_family(out: &mut String, format: Format, name: &str, family: &Family) {
    let kind = match family.series.values().next() {
        Some(Series::Counter(_)) => "counter",
        Some(Series::Gauge(_)) => "gauge",
        Some(Series::Histogram(_)) => "histogram",
        None => return,
    };
    header(out, format, name, kind, family.help);
    for (labels, series) in &family.series {
        match series {
            Series::Counter(counter) => sample(out, name, "", labels, None, counter.value()),
            Series::Gauge(gauge) => sample(out, name, "", labels, None, gauge.value()),
            Series::Histogram(histogram) => {
                let (counts, sum) = histogram.value();
                let mut total = 0;
                for (n, count) in counts.iter().enumerate() {
                    total += count;
                    let le = histogram.bounds().get(n).copied().unwrap_or(f64::INFINITY);
                    sample(out, name, "_bucket", labels, Some(le), total);
                }
                sample(out, name, "_sum", labels, None, sum);
                sample(out, name, "_count", labels, None, total);
            }
        }
    }
}

fn sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &[(&'static str, String)],
    le: Option<f64>,
    value: impl std::fmt::Display,
) {
    out.push_str(name);
    out.push_str(suffix);
    if !labels.is_empty() || le.is_some() {
        let mut separator = '{';
        for (key, value) in labels {
            out.push(separator);
            separator = ',';
            out.push_str(key);
            out.push_str("=\"");
            escape(out, value, true);
            out.push('"');
        }
        if let Some(le) = le {
            out.push(separator);
            // Both formats write infinity so; OpenMetrics wants a point in every bound.
            let _ = if le.is_infinite() { write!(out, "le=\"+Inf\"") } else { write!(out, "le=\"{le:?}\"") };
        }
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

fn escape(out: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn registry() -> Registry {
        let registry = Registry::default();
        registry.counter("a_total", "Help \"me\"\n\\now.", &[("route", "x\"y\\z\n")]).add(3);
        registry.gauge("b", "B.", &[]).add(-2);
        let histogram = registry.histogram("c_seconds", "C.", &[("k", "v")]);
        for ms in [1, 5, 6, 20_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        registry
    }

    #[test]
    fn classic() {
        let text = expose(&registry(), Format::Text);
        assert!(text.starts_with(concat!(
            "# HELP a_total Help \"me\"\\n\\\\now.\n# TYPE a_total counter\n",
            "a_total{route=\"x\\\"y\\\\z\\n\"} 3\n",
            "# HELP b B.\n# TYPE b gauge\nb -2\n",
            "# HELP c_seconds C.\n# TYPE c_seconds histogram\n",
            "c_seconds_bucket{k=\"v\",le=\"0.005\"} 2\n",
            "c_seconds_bucket{k=\"v\",le=\"0.01\"} 3\n",
        )));
        assert!(text.contains("c_seconds_bucket{k=\"v\",le=\"1.0\"} 3\n"));
        assert!(text.contains(concat!(
            "c_seconds_bucket{k=\"v\",le=\"10.0\"} 3\n",
            "c_seconds_bucket{k=\"v\",le=\"+Inf\"} 4\n",
            "c_seconds_sum{k=\"v\"} 20.012\n",
            "c_seconds_count{k=\"v\"} 4\n",
        )));
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn open_metrics() {
        let text = expose(&registry(), Format::OpenMetrics);
        assert!(text.starts_with("# HELP a Help \\\"me\\\"\\n\\\\now.\n# TYPE a counter\na_total{"));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_process_is_there() {
        let text = expose(&Registry::default(), Format::Text);
        for name in
            ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total", "process_threads"]
        {
            let line = text.lines().find(|l| l.starts_with(&format!("{name} "))).expect(name);
            let value: f64 = line[name.len() + 1..].parse().expect("a number");
            assert!(value >= 0.0 && (name.contains("cpu") || value > 0.0), "{line}");
        }
        let start: f64 = text
            .lines()
            .find_map(|l| l.strip_prefix("process_start_time_seconds "))
            .expect("there")
            .parse()
            .expect("a number");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!((0.0..86_400.0 * 30.0).contains(&(now - start + 2.0)), "started {start}, now {now}");
    }

    #[test]
    fn a_format_is_chosen_by_accept() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(Format::of(prometheus), Format::OpenMetrics);
        assert_eq!(Format::of("application/openmetrics-text;q=0, text/plain"), Format::Text);
        assert_eq!(Format::of("*/*"), Format::Text);
        assert_eq!(Format::of(""), Format::Text);
    }
}
