//! ORCA load reports, in every form that endpoints send them in. Whatever is malformed is no report.
//!
//! Forms: text (`TEXT cpu_utilization=0.3, eps=1`), JSON and base64 of the protobuf message `xds.data.orca.v3.OrcaLoadReport`
//! in `endpoint-load-metrics`; that base64 alone in `endpoint-load-metrics-bin`, as gRPC writes it (gRFC A51).

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName};

/// Field with a word that says its form.
pub static PLAIN: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// Field with the message alone.
pub static BINARY: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// Longest report that is read.
const LONGEST: usize = 4 << 10;

/// gRPC senders leave the padding out, others write it.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What an endpoint says of its load.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Share of the processor that is busy; above 1 where it may use more than it asked for.
    pub cpu: f64,
    /// What the application itself calls its utilisation; 0 = nothing.
    pub application: f64,
    /// Requests a second.
    pub rps: f64,
    /// Failed ones of them.
    pub eps: f64,
    /// The highest of the figures that were asked for by name.
    pub named: f64,
}

impl Report {
    /// The report in these fields or trailers. `names`: figures of the application that count, such as
    /// `named_metrics.kv_cache`.
    pub fn find(fields: &HeaderMap, names: &[Box<str>]) -> Option<Self> {
        if let Some(value) = fields.get(&BINARY) {
            return Self::message(&decode(value.as_bytes())?, names);
        }
        let value = fields.get(&PLAIN)?.as_bytes();
        if value.len() > LONGEST {
            return None;
        }
        let (form, rest) = value.split_at_checked(value.iter().position(|b| *b == b' ')?)?;
        let rest = rest.trim_ascii();
        match form {
            b"TEXT" => Self::text(std::str::from_utf8(rest).ok()?, names),
            b"JSON" => Self::json(rest, names),
            b"BIN" => Self::message(&decode(rest)?, names),
            _ => None,
        }
    }

    /// What the weight goes by: what the application says, else the named figures, else the processor.
    pub fn utilization(&self) -> f64 {
        [self.application, self.named, self.cpu].into_iter().find(|u| *u > 0.0).unwrap_or(0.0)
    }

    fn text(text: &str, names: &[Box<str>]) -> Option<Self> {
        let mut report = Self::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=')?;
            report.take(name.trim(), value.trim().parse().ok()?, names)?;
        }
        Some(report)
    }

    /// Protobuf's JSON: names in either case, maps as objects.
    fn json(text: &[u8], names: &[Box<str>]) -> Option<Self> {
        use serde_json::Value;
        let Value::Object(fields) = serde_json::from_slice(text).ok()? else { return None };
        let mut report = Self::default();
        for (name, value) in fields {
            match &value {
                Value::Object(map) => {
                    for (key, value) in map {
                        report.take(&format!("{}.{key}", snake(&name)), value.as_f64()?, names)?;
                    }
                }
                // The deprecated `rps` is a whole number, which protobuf's JSON may write as text.
                Value::String(text) => report.take(snake(&name), text.parse().ok()?, names)?,
                value => report.take(snake(&name), value.as_f64()?, names)?,
            }
        }
        Some(report)
    }

    fn message(mut bytes: &[u8], names: &[Box<str>]) -> Option<Self> {
        let mut report = Self::default();
        while let Some((number, value)) = field(&mut bytes)? {
            let name = match number {
                1 => "cpu_utilization",
                3 => "rps",
                4 => "request_cost",
                5 => "utilization",
                6 => "rps_fractional",
                7 => "eps",
                8 => "named_metrics",
                9 => "application_utilization",
                _ => continue,
            };
            match (number, value) {
                (4 | 5 | 8, Wire::Bytes(mut entry)) => {
                    let (mut key, mut figure) = ("", 0.0);
                    while let Some(part) = field(&mut entry)? {
                        match part {
                            (1, Wire::Bytes(text)) => key = std::str::from_utf8(text).ok()?,
                            (2, Wire::Double(value)) => figure = value,
                            _ => {}
                        }
                    }
                    report.take(&format!("{name}.{key}"), figure, names)?;
                }
                #[expect(clippy::cast_precision_loss, reason = "a rate of requests")]
                (3, Wire::Varint(value)) => report.take(name, value as f64, names)?,
                (_, Wire::Double(value)) => report.take(name, value, names)?,
                _ => return None,
            }
        }
        Some(report)
    }

    /// Notes a figure; `None` if no load can be so.
    fn take(&mut self, name: &str, value: f64, names: &[Box<str>]) -> Option<()> {
        if !value.is_finite() || value < 0.0 {
            return None;
        }
        match name {
            "cpu_utilization" => self.cpu = value,
            "application_utilization" => self.application = value,
            "rps" | "rps_fractional" => self.rps = self.rps.max(value),
            "eps" => self.eps = value,
            _ => {}
        }
        if names.iter().any(|n| **n == *name) {
            self.named = self.named.max(value);
        }
        Some(())
    }
}

/// The proto name of a JSON name.
fn snake(name: &str) -> &str {
    match name {
        "cpuUtilization" => "cpu_utilization",
        "memUtilization" => "mem_utilization",
        "applicationUtilization" => "application_utilization",
        "rpsFractional" => "rps_fractional",
        "requestCost" => "request_cost",
        "namedMetrics" => "named_metrics",
        other => other,
    }
}

fn decode(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() > LONGEST { None } else { LENIENT.decode(text).ok() }
}

/// A value of the wire format.
enum Wire<'a> {
    Varint(u64),
    Double(f64),
    Bytes(&'a [u8]),
}

/// The next field of a message; `Some(None)` at its end, `None` if it is malformed.
#[expect(clippy::option_option, reason = "a field, the end, or neither")]
fn field<'a>(bytes: &mut &'a [u8]) -> Option<Option<(u64, Wire<'a>)>> {
    if bytes.is_empty() {
        return Some(None);
    }
    let tag = varint(bytes)?;
    let value = match tag & 7 {
        0 => Wire::Varint(varint(bytes)?),
        1 => Wire::Double(f64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => {
            take(bytes, 4)?;
            Wire::Varint(0)
        }
        _ => return None,
    };
    Some(Some((tag >> 3, value)))
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
