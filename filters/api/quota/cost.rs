//! What a request costs: known when it comes, or settled when its answer has ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use serde_json::Value as Json;

use super::config::Settled;
use super::core::MAX_LIMIT;
use crate::contract::expr::{Ended, ResponseExpr};
use crate::contract::section::Value;
use crate::contract::{Body, BodyError, ConfigError, Expr, Node, RequestCx, ResponseCx};

/// Bytes of a JSON body, or of one event, that are kept to be read. A longer one gives no number.
const KEPT: usize = 1 << 20;

/// See the module.
pub enum Cost {
    /// So many units.
    Fixed(u64),
    /// What the expression gives; one where it gives no number.
    Request(Box<Expr>),
    /// First an estimate, then what the answer cost.
    Response(Box<Self>, Arc<ResponseExpr>),
}

impl Cost {
    /// Reads `cost`.
    ///
    /// # Errors
    /// Neither a number, nor an expression, nor a map of both.
    pub fn read(node: Option<&Node>) -> Result<Self, ConfigError> {
        let Some(node) = node else { return Ok(Self::Fixed(1)) };
        match &node.value {
            Value::Int(n) => match u64::try_from(*n) {
                Ok(n) if n <= MAX_LIMIT => Ok(Self::Fixed(n)),
                _ => Err(ConfigError::at(node.span, format!("a cost is 0 to {MAX_LIMIT}"))),
            },
            Value::Str(text) => Ok(Self::Request(Box::new(Expr::compile(text, node.span)?))),
            Value::Map(_) => {
                let settled: Settled = node.read()?;
                if let Some(inner) = settled.estimate.as_ref().filter(|n| matches!(n.value, Value::Map(_))) {
                    return Err(ConfigError::at(inner.span, "an estimate is a number or an expression"));
                }
                let estimate = Self::read(settled.estimate.as_ref())?;
                let expr = ResponseExpr::compile(&settled.response.value, settled.response.span)?;
                Ok(Self::Response(Box::new(estimate), Arc::new(expr)))
            }
            _ => Err(ConfigError::at(node.span, "a cost is a number, an expression, or a map")
                .help("write `5`, `\"size(request.path)\"` or `{ response: \"response.bytes\" }`")),
        }
    }

    /// What is charged when the request comes.
    pub fn of(&self, rq: &RequestCx) -> u64 {
        match self {
            Self::Fixed(n) => *n,
            Self::Request(expr) => expr.number(rq).map_or(1, units),
            Self::Response(estimate, _) => estimate.of(rq),
        }
    }

    /// What the answer costs, if that is asked for.
    pub const fn response(&self) -> Option<&Arc<ResponseExpr>> {
        match self {
            Self::Response(_, expr) => Some(expr),
            Self::Fixed(_) | Self::Request(_) => None,
        }
    }
}

/// A number as units: not below zero, rounded up.
fn units(n: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
    let n = n.ceil() as u64;
    n.min(MAX_LIMIT)
}

/// What is charged when the answer ends, however it ends.
pub struct Settlement {
    /// What gives the cost.
    pub expr: Arc<ResponseExpr>,
    /// Charges it.
    pub settle: Box<dyn FnOnce(u64) + Send>,
}

/// Watches an answer go by and settles at its end. Nothing is held back.
pub fn watch(rs: &mut ResponseCx, settlements: Vec<Settlement>) {
    let reads_json = settlements.iter().any(|s| s.expr.reads_json());
    let watched = Watched {
        body: std::mem::take(&mut rs.body),
        bytes: 0,
        status: rs.status.as_u16(),
        headers: rs.headers.clone(),
        reader: if reads_json { Reader::of(&rs.headers) } else { Reader::Nothing },
        latest: settlements.iter().map(|_| None).collect(),
        settlements,
    };
    // An answer without a body settles here.
    if !watched.body.is_end_stream() {
        rs.body = Body::stream(watched);
    }
}

struct Watched {
    body: Body,
    bytes: u64,
    status: u16,
    headers: HeaderMap,
    reader: Reader,
    /// What the latest event gave, for each settlement.
    latest: Vec<Option<f64>>,
    settlements: Vec<Settlement>,
}

/// What of the body is read.
enum Reader {
    Nothing,
    /// One JSON text.
    Whole(Vec<u8>),
    /// Events: the line under way, and the data of the event under way.
    Events {
        line: Vec<u8>,
        data: Vec<u8>,
        after_cr: bool,
    },
}

impl Reader {
    fn of(headers: &HeaderMap) -> Self {
        let coded = headers.get(header::CONTENT_ENCODING).is_some_and(|v| v != "identity");
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            _ if coded => Self::Nothing,
            "text/event-stream" => Self::Events { line: Vec::new(), data: Vec::new(), after_cr: false },
            "application/json" => Self::Whole(Vec::new()),
            other if other.ends_with("+json") => Self::Whole(Vec::new()),
            _ => Self::Nothing,
        }
    }
}

impl Watched {
    fn see(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        match &mut self.reader {
            Reader::Nothing => {}
            Reader::Whole(kept) if kept.len() + chunk.len() <= KEPT => kept.extend_from_slice(chunk),
            Reader::Whole(_) => self.reader = Reader::Nothing,
            Reader::Events { .. } => self.events(chunk),
        }
    }

    /// Lines end with CR, LF or both (HTML, "Server-sent events"); an empty one ends the event.
    fn events(&mut self, chunk: &[u8]) {
        for byte in chunk {
            let Reader::Events { line, data, after_cr } = &mut self.reader else { return };
            let second = std::mem::replace(after_cr, *byte == b'\r') && *byte == b'\n';
            if second {
                continue;
            }
            if !matches!(byte, b'\n' | b'\r') {
                if line.len() < KEPT {
                    line.push(*byte);
                }
                continue;
            }
            if line.is_empty() {
                if !data.is_empty() {
                    let data = std::mem::take(data);
                    self.event(&data);
                }
                continue;
            }
            if let Some(text) = line.strip_prefix(b"data:") {
                let text = text.strip_prefix(b" ").unwrap_or(text);
                if data.len() + text.len() < KEPT {
                    if !data.is_empty() {
                        data.push(b'\n');
                    }
                    data.extend_from_slice(text);
                }
            }
            line.clear();
        }
    }

    fn event(&mut self, data: &[u8]) {
        let wanted = self.settlements.iter().any(|s| s.expr.may_read(data));
        let Some(json) = wanted.then(|| serde_json::from_slice::<Json>(data).ok()).flatten() else { return };
        let ended = Ended { status: self.status, headers: &self.headers, bytes: self.bytes, json: Some(&json) };
        for (settlement, latest) in self.settlements.iter().zip(&mut self.latest) {
            if settlement.expr.reads_json() {
                *latest = settlement.expr.number(ended).or(*latest);
            }
        }
    }
}

impl Drop for Watched {
    /// The end of the answer: its last byte, a cut, or a client that left.
    fn drop(&mut self) {
        // The last event may lack the empty line behind it.
        if matches!(self.reader, Reader::Events { .. }) {
            self.events(b"\n\n");
        }
        let json = match &self.reader {
            Reader::Whole(kept) => serde_json::from_slice::<Json>(kept).ok(),
            Reader::Nothing | Reader::Events { .. } => None,
        };
        let ended = Ended { status: self.status, headers: &self.headers, bytes: self.bytes, json: json.as_ref() };
        for (settlement, latest) in self.settlements.drain(..).zip(&self.latest) {
            if let Some(cost) = latest.or_else(|| settlement.expr.number(ended)) {
                (settlement.settle)(units(cost));
            }
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.see(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
