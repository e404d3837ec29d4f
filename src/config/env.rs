//! `${env.NAME}` and `${env.NAME:-default}` in string values, resolved at load. Every other `${...}` is a template of
//! its owner's and stays, as does `$${`, which templates read as a literal `${`.

use onehop_filters::contract::section::Value;
use onehop_filters::contract::{ConfigError, Node};

const OPEN: &str = "${env.";

/// Fills in the variables of a tree. What cannot be filled is reported and left as written.
pub fn resolve(node: &mut Node, lookup: &dyn Fn(&str) -> Option<String>, errors: &mut Vec<ConfigError>) {
    match &mut node.value {
        Value::Str(text) if text.contains(OPEN) => match fill(text, lookup) {
            Ok(filled) => *text = filled,
            Err((message, help)) => errors.push(ConfigError::at(node.span, message).help(help)),
        },
        Value::Seq(items) => items.iter_mut().for_each(|n| resolve(n, lookup, errors)),
        Value::Map(map) => map.iter_mut().for_each(|(_, n)| resolve(n, lookup, errors)),
        _ => {}
    }
}

fn fill(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, (String, String)> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let escaped = rest[..at].ends_with('$');
        let (head, tail) = rest.split_at(at);
        out.push_str(head);
        if escaped || !tail.starts_with(OPEN) {
            out.push_str("${");
            rest = &tail[2..];
            continue;
        }
        let inner = &tail[OPEN.len()..];
        let end = inner.find('}').ok_or_else(|| {
            (format!("`{OPEN}` is not closed"), "write `${env.NAME}` or `${env.NAME:-default}`".to_owned())
        })?;
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            let help = "a name has letters, digits and `_`: `${env.NAME}` or `${env.NAME:-default}`";
            return Err((format!("`{name}` is not the name of an environment variable"), help.to_owned()));
        }
        match lookup(name).filter(|v| default.is_none() || !v.is_empty()).or_else(|| default.map(str::to_owned)) {
            // A value is data: it must not become a template of its own.
            Some(value) => out.push_str(&value.replace("${", "$${")),
            None => {
                let help = format!("set it, or give a default: `${{env.{name}:-default}}`");
                return Err((format!("environment variable `{name}` is not set"), help));
            }
        }
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// A string field that takes no template: `$${` is a literal `${`, and a template is a mistake.
///
/// # Errors
/// Names the expression that will never be evaluated here.
pub fn literal(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if !rest[..at].ends_with('$') {
            let expression: String = rest[at..].chars().take(40).collect();
            return Err(format!(
                "`{expression}` is a template, and this text takes none\nfor a literal `${{` write `$${{`"
            ));
        }
        out.push_str(&rest[..at - 1]);
        out.push_str("${");
        rest = &rest[at + 2..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let lookup = |name: &str| match name {
            "A" => Some("x".to_owned()),
            "EMPTY" => Some(String::new()),
            "EVIL" => Some("${user.sub}".to_owned()),
            _ => None,
        };
        fill(text, &lookup).map_err(|e| e.0)
    }

    #[test]
    fn variables_are_filled_and_templates_stay() {
        for (text, want) in [
            ("${env.A}", "x"),
            ("a${env.A}b${env.A}", "axbx"),
            ("${env.B:-d}", "d"),
            ("${env.EMPTY:-d}", "d"),
            ("${env.EMPTY}", ""),
            ("${env.B:-}", ""),
            ("${user.sub}-${env.A}", "${user.sub}-x"),
            ("$${env.A}", "$${env.A}"),
            ("${env.EVIL}", "$${user.sub}"),
            ("price: $5", "price: $5"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(want), "{text}");
        }
        for text in ["${env.B}", "${env.A", "${env.}", "${env.a-b}"] {
            assert!(filled(text).is_err(), "{text}");
        }
    }

    #[test]
    fn literal_text_takes_no_template() {
        assert_eq!(literal("a $${b} c").as_deref(), Ok("a ${b} c"));
        assert!(literal("a ${b}").is_err());
        assert_eq!(literal("$5 {x}").as_deref(), Ok("$5 {x}"));
    }
}
