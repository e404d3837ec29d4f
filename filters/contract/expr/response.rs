//! Expressions over a response that has ended: what it cost.
//!
//! One variable, `response`: `status`, `bytes` (of the body), `headers.NAME`, `json` (the body; of an event stream the
//! latest event that gives the expression a number).

use cel::Value;
use http::HeaderMap;
use serde_json::Value as Json;

use super::fallback::{Fallback, map, of_json, text};
use super::{Check, on_own_stack, parse};
use crate::contract::section::{ConfigError, Span};

/// Variables and their fields.
const ROOTS: &[(&str, &[&str])] = &[("response", &["status", "bytes", "headers", "json"])];

/// A compiled expression over a response.
#[derive(Debug)]
pub struct ResponseExpr {
    tree: Fallback,
    /// Fields of `response.json` that it names; `None` if it names the whole.
    json: Option<Vec<String>>,
    reads_json: bool,
    /// Exactly `response.bytes`.
    bytes: bool,
}

/// What there is to know of a response.
#[derive(Clone, Copy)]
pub struct Ended<'a> {
    /// Status.
    pub status: u16,
    /// Fields.
    pub headers: &'a HeaderMap,
    /// Bytes of the body that went through.
    pub bytes: u64,
    /// The body, if it is JSON.
    pub json: Option<&'a Json>,
}

impl ResponseExpr {
    /// Compiles and checks.
    ///
    /// # Errors
    /// Bad syntax, an unknown variable, field or function, too costly.
    pub fn compile(source: &str, span: Span) -> Result<Self, ConfigError> {
        on_own_stack(source, span, || {
            let tree = parse(source).map_err(|e| {
                ConfigError::at(span, format!("`{source}` is not an expression: {e}"))
                    .help("expressions are CEL, such as `response.json.usage.total_tokens`")
            })?;
            let mut check = Check::new(span, ROOTS);
            check.tree(&tree)?;
            let named: Vec<_> = check.paths.iter().filter(|p| p.get(1).is_some_and(|f| f == "json")).collect();
            let whole = check.paths.iter().any(|p| p.len() == 1) || named.iter().any(|p| p.len() == 2);
            let json = named.iter().filter_map(|p| p.get(2).cloned()).collect();
            Ok(Self {
                reads_json: whole || !named.is_empty(),
                json: if whole { None } else { Some(json) },
                bytes: source.trim() == "response.bytes",
                tree: Fallback::new(&tree, vec!["response"]),
            })
        })
    }

    /// Whether it needs the body as JSON.
    #[must_use]
    pub const fn reads_json(&self) -> bool {
        self.reads_json
    }

    /// Whether a JSON text may give it a number: it has a field that the expression names.
    #[must_use]
    pub fn may_read(&self, text: &[u8]) -> bool {
        let Some(fields) = &self.json else { return true };
        fields.iter().any(|f| {
            text.windows(f.len() + 2).any(|w| w[0] == b'"' && w.ends_with(b"\"") && &w[1..=f.len()] == f.as_bytes())
        })
    }

    /// Its value, if it has one that is a number.
    #[must_use]
    pub fn number(&self, response: Ended<'_>) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "bytes of one response")]
        if self.bytes {
            return Some(response.bytes as f64);
        }
        let headers =
            response.headers.iter().filter_map(|(n, v)| Some((n.as_str().to_owned(), text(v.to_str().ok()?))));
        let mut fields = vec![
            ("status".to_owned(), Value::Int(response.status.into())),
            ("bytes".to_owned(), Value::Int(i64::try_from(response.bytes).unwrap_or(i64::MAX))),
            ("headers".to_owned(), map(headers)),
        ];
        fields.extend(response.json.map(|json| ("json".to_owned(), of_json(json))));
        self.tree.number_with("response", map(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn number(source: &str, json: Option<&Json>) -> Option<f64> {
        let expr = ResponseExpr::compile(source, Span::default()).unwrap_or_else(|e| panic!("{e}"));
        let mut headers = HeaderMap::new();
        headers.insert("x-cost", http::HeaderValue::from_static("12"));
        expr.number(Ended { status: 200, headers: &headers, bytes: 300, json })
    }

    #[test]
    fn a_response_gives_numbers_or_none() {
        let usage = json!({"usage": {"total_tokens": 42, "prompt_tokens": 40}});
        assert_eq!(number("response.bytes", None), Some(300.0));
        assert_eq!(number("response.bytes / 100", None), Some(3.0));
        assert_eq!(number("response.json.usage.total_tokens", Some(&usage)), Some(42.0));
        assert_eq!(number("response.json.usage.prompt_tokens + 1", Some(&usage)), Some(41.0));
        assert_eq!(number("response.status == 200 ? 1 : 0", None), Some(1.0));
        assert_eq!(number("int(response.headers['x-cost'])", None), Some(12.0));
        assert_eq!(number("response.json.usage.total_tokens", None), None, "no JSON, no number");
        assert_eq!(number("response.json.usage.other", Some(&usage)), None);
        assert!(ResponseExpr::compile("request.path", Span::default()).is_err());
        assert!(ResponseExpr::compile("response.size", Span::default()).is_err());
    }

    #[test]
    fn only_texts_with_the_field_are_looked_at() {
        let expr = ResponseExpr::compile("response.json.usage.total_tokens", Span::default()).expect("good");
        assert!(expr.reads_json() && expr.may_read(br#"{"a":1,"usage":{}}"#));
        assert!(!expr.may_read(br#"{"choices":[]}"#) && !expr.may_read(b""));
    }
}
