//! Text with expressions in it: `Bearer ${user.sub}`. `$${` stands for a literal `${`.

use std::borrow::Cow;

use http::HeaderValue;
use percent_encoding::{AsciiSet, utf8_percent_encode};

use super::expr::Expr;
use super::request::RequestCx;
use super::section::{ConfigError, Span};

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    parts: Vec<Part>,
    /// The whole value, where it depends on no request.
    fixed: Option<HeaderValue>,
}

#[derive(Debug)]
enum Part {
    Text(Box<str>),
    Expr(Expr),
}

impl Template {
    /// Compiles and checks.
    ///
    /// # Errors
    /// An unclosed `${`, a bad expression, fixed text that no header field can carry.
    pub fn compile(text: &str, span: Span) -> Result<Self, ConfigError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if let Some(before) = rest[..at].strip_suffix('$') {
                plain.push_str(before);
                plain.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            plain.push_str(&rest[..at]);
            let inner = &rest[at + 2..];
            let end = closing(inner)
                .ok_or_else(|| ConfigError::at(span, format!("`${{` without `}}` in `{text}`")).help("close it"))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(Part::Expr(Expr::compile(inner[..end].trim(), span)?));
            rest = &inner[end + 1..];
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        for part in &parts {
            if let Part::Text(t) = part {
                header_value(t).ok_or_else(|| ConfigError::at(span, "control characters cannot stand in a field"))?;
            }
        }
        let fixed = match parts.as_slice() {
            [] => Some(HeaderValue::from_static("")),
            [Part::Text(t)] => header_value(t),
            _ => None,
        };
        Ok(Self { parts, fixed })
    }

    /// The value as a header field. `None` if the request lacks an attribute, or if the result could not stand in a
    /// field: CR, LF and NUL never get through (RFC 9110 section 5.5).
    #[must_use]
    pub fn render(&self, rq: &RequestCx) -> Option<HeaderValue> {
        match &self.fixed {
            Some(value) => Some(value.clone()),
            None => header_value(&self.text(rq)?),
        }
    }

    /// The value as text; `None` if the request lacks an attribute.
    #[must_use]
    pub fn text<'a>(&'a self, rq: &'a RequestCx) -> Option<Cow<'a, str>> {
        match self.parts.as_slice() {
            [] => Some(Cow::Borrowed("")),
            [Part::Text(t)] => Some(Cow::Borrowed(t)),
            [Part::Expr(e)] => e.text(rq),
            parts => {
                let mut out = String::with_capacity(64);
                for part in parts {
                    match part {
                        Part::Text(t) => out.push_str(t),
                        Part::Expr(e) => out.push_str(&e.text(rq)?),
                    }
                }
                Some(Cow::Owned(out))
            }
        }
    }

    /// The value as JSON: that of the expression, with its type, where the whole template is one; else text. `None` if the
    /// request lacks an attribute.
    #[must_use]
    pub fn json(&self, rq: &RequestCx) -> Option<serde_json::Value> {
        match self.parts.as_slice() {
            [Part::Expr(e)] => e.json(rq),
            _ => self.text(rq).map(|text| serde_json::Value::String(text.into_owned())),
        }
    }

    /// The value as text whose expressions are percent-encoded and whose own text is as written; `None` if the request
    /// lacks an attribute.
    #[must_use]
    pub fn encoded(&self, rq: &RequestCx, set: &'static AsciiSet) -> Option<String> {
        let mut out = String::with_capacity(64);
        for part in &self.parts {
            match part {
                Part::Text(t) => out.push_str(t),
                Part::Expr(e) => out.extend(utf8_percent_encode(&e.text(rq)?, set)),
            }
        }
        Some(out)
    }

    /// Whether it is the same for every request.
    #[must_use]
    pub const fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }
}

fn header_value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_bytes(text.as_bytes()).ok()
}

/// Where the brace that was opened before `text` closes; braces in quotes and pairs of braces do not count.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), _) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(at),
            (None, '}') => depth -= 1,
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::fixture::{request, user};

    fn template(text: &str) -> Template {
        Template::compile(text, Span::default()).expect("compiles")
    }

    #[test]
    fn mixes_text_and_expressions() {
        let mut rq = request("GET", "/a");
        rq.user = Some(user(serde_json::json!({"sub": "ann", "n": 3})));
        let render = |t: &str| template(t).render(&rq).map(|v| v.to_str().expect("ascii").to_owned());
        assert_eq!(render("Bearer ${user.sub}").as_deref(), Some("Bearer ann"));
        assert_eq!(render("${user.n}-${request.method}").as_deref(), Some("3-GET"));
        assert_eq!(render("plain").as_deref(), Some("plain"));
        assert_eq!(render("").as_deref(), Some(""));
        assert_eq!(render("$${user.sub}").as_deref(), Some("${user.sub}"));
        assert_eq!(render("${'}' + user.sub}").as_deref(), Some("}ann"));
        assert_eq!(render("x ${user.missing}"), None, "a missing attribute removes the whole value");
    }

    #[test]
    fn one_expression_keeps_its_type() {
        let mut rq = request("GET", "/a");
        rq.user = Some(user(serde_json::json!({"sub": "ann", "n": 3, "list": [1, {"a": null}]})));
        let json = |t: &str| template(t).json(&rq).map(|v| v.to_string());
        assert_eq!(json("${user.claims.n}").as_deref(), Some("3"));
        assert_eq!(json("${user.claims.list}").as_deref(), Some(r#"[1,{"a":null}]"#));
        assert_eq!(json("${user.sub == 'ann'}").as_deref(), Some("true"));
        assert_eq!(json("n${user.n}").as_deref(), Some(r#""n3""#));
        assert_eq!(json("${user.missing}"), None);
    }

    #[test]
    fn errors_stand_at_their_place() {
        let span = Span { file: 0, line: 7, column: 3 };
        for bad in ["${user.sub", "${}", "${usr.sub}", "a\nb", "a\0b"] {
            let e = Template::compile(bad, span).expect_err(bad);
            assert_eq!(e.span, Some(span), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_value_injects_a_line(sub in "\\PC{0,4}[\r\n\0]?\\PC{0,4}") {
            let mut rq = request("GET", "/");
            rq.user = Some(user(serde_json::json!({"sub": sub})));
            if let Some(value) = template("a ${user.sub} b").render(&rq) {
                prop_assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
            }
        }
    }
}
