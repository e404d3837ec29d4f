//! Bytes to a [`Node`] tree whose every node knows its place. YAML 1.2 core schema; JSON is read by the same door.
//!
//! The tree is built from parser events rather than through serde, so that keys have places too, a repeated key can
//! name both, and quoting decides between text and number.

use std::collections::HashMap;

use onehop_filters::contract::section::{Key, Value};
use onehop_filters::contract::{ConfigError, Node, Span};
use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle};

/// Largest file that is read.
const MAX_BYTES: usize = 32 << 20;
/// Deepest nesting; a sane config needs about ten.
const MAX_DEPTH: usize = 64;
/// Nodes that aliases may add to a file: room for honest reuse, none for a "billion laughs".
const MAX_ALIASED: usize = 100_000;

/// Reads one file. `file` is its index among the sources.
///
/// # Errors
/// Every repeated key, or the first thing that is no YAML.
pub fn parse(file: u16, bytes: &[u8]) -> Result<Node, Vec<ConfigError>> {
    let start = Span { file, line: 1, column: 1 };
    if bytes.len() > MAX_BYTES {
        return Err(vec![ConfigError::at(start, "the file is larger than 32 MiB").help("split the configuration")]);
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => return Err(vec![not_utf8(file, bytes, e.valid_up_to())]),
    };
    let options = granit_parser::options! {
        flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH, emit_comments: false, emit_anchor_events: false,
    };
    let mut tree = Tree {
        events: Parser::new_from_str_with_options(text, options),
        file,
        anchors: HashMap::new(),
        aliased: 0,
        errors: Vec::new(),
    };
    match tree.document() {
        Ok(node) if tree.errors.is_empty() => Ok(node),
        Ok(_) => Err(tree.errors),
        Err(e) => {
            tree.errors.push(e);
            Err(tree.errors)
        }
    }
}

fn not_utf8(file: u16, bytes: &[u8], at: usize) -> ConfigError {
    let head = &bytes[..at];
    let line_start = head.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let line = head.iter().filter(|b| **b == b'\n').count() + 1;
    let column = String::from_utf8_lossy(&head[line_start..]).chars().count() + 1;
    ConfigError::at(place(file, line, column), "this is not UTF-8 text").help("save the file as UTF-8")
}

fn place(file: u16, line: usize, column: usize) -> Span {
    let short = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Span { file, line: short(line), column: short(column) }
}

struct Tree<'a> {
    events: Parser<'a, granit_parser::StrInput<'a>>,
    file: u16,
    /// Anchored nodes and how many nodes each holds.
    anchors: HashMap<usize, (Node, usize)>,
    aliased: usize,
    errors: Vec<ConfigError>,
}

impl<'a> Tree<'a> {
    /// The next event that matters and its place.
    fn next(&mut self) -> Result<(Event<'a>, Span), ConfigError> {
        match self.events.next_event() {
            Some(Ok((event, span))) => Ok((event, place(self.file, span.start.line().max(1), span.start.col() + 1))),
            Some(Err(e)) => {
                let at = place(self.file, e.marker().line().max(1), e.marker().col() + 1);
                Err(ConfigError::at(at, format!("this is not YAML: {}", e.info().lines().next().unwrap_or_default()))
                    .help("check indentation, brackets and quotes here and on the line above"))
            }
            None => Ok((Event::StreamEnd, place(self.file, 1, 1))),
        }
    }

    fn document(&mut self) -> Result<Node, ConfigError> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(ConfigError::at(span, "a second document begins here")
                        .help("put it into a file of its own and pass `-c` twice"));
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                other => root = Some(self.node(other, span, 0)?.0),
            }
        }
        Ok(root.unwrap_or(Node { span: place(self.file, 1, 1), value: Value::Null }))
    }

    /// A node and the number of nodes it holds.
    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<(Node, usize), ConfigError> {
        if depth > MAX_DEPTH {
            return Err(ConfigError::at(span, "nested too deeply").help("64 levels are allowed"));
        }
        let tag = match &event {
            Event::Scalar(.., tag) | Event::SequenceStart(.., tag) | Event::MappingStart(.., tag) => tag.is_some(),
            _ => false,
        };
        if tag {
            return Err(ConfigError::at(span, "YAML tags (`!x`) are not used here")
                .help("remove the tag; put a value in quotes to make it text"));
        }
        let (value, anchor, size) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = matches!(style, ScalarStyle::Plain);
                (if plain { resolve(&text) } else { Value::Str(text.into_owned()) }, anchor, 1)
            }
            Event::SequenceStart(_, anchor, _) => {
                let (items, size) = self.sequence(depth)?;
                (Value::Seq(items), anchor, size)
            }
            Event::MappingStart(_, anchor, _) => {
                let (entries, size) = self.mapping(depth)?;
                (Value::Map(entries), anchor, size)
            }
            Event::Alias(id) => return self.alias(id, span),
            _ => return Err(ConfigError::at(span, "a value is missing here").help("write a value")),
        };
        let node = Node { span, value };
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok((node, size))
    }

    fn sequence(&mut self, depth: usize) -> Result<(Vec<Node>, usize), ConfigError> {
        let (mut items, mut total) = (Vec::new(), 1);
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                items.shrink_to_fit();
                return Ok((items, total));
            }
            let (node, size) = self.node(event, span, depth + 1)?;
            total += size;
            items.push(node);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<(Vec<(Key, Node)>, usize), ConfigError> {
        let (mut entries, mut total) = (Vec::<(Key, Node)>::new(), 1);
        let mut seen = HashMap::<String, Span>::new();
        loop {
            let (event, span) = self.next()?;
            let name = match event {
                Event::MappingEnd => {
                    // Maps are small and many: what a vector keeps in hand would double the tree.
                    entries.shrink_to_fit();
                    return Ok((entries, total));
                }
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(ConfigError::at(span, "a key must be plain text").help("write `key: value`")),
            };
            if name == "<<" {
                return Err(ConfigError::at(span, "merge keys (`<<`) are not part of YAML 1.2")
                    .help("write the keys out, or use an alias (`*name`) for a whole value"));
            }
            let (event, value_span) = self.next()?;
            let (mut node, size) = self.node(event, value_span, depth + 1)?;
            // A value that is not there stands, for the reader, at its key.
            if node.value == Value::Null && node.span.line != span.line {
                node.span = span;
            }
            total += size;
            if let Some(first) = seen.get(&name) {
                self.errors.push(
                    ConfigError::at(span, format!("the key `{name}` stands here a second time"))
                        .help(format!("keep one; the first is at {}:{}", first.line, first.column)),
                );
                continue;
            }
            seen.insert(name.clone(), span);
            entries.push((Key { span, name }, node));
        }
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<(Node, usize), ConfigError> {
        let Some((node, size)) = self.anchors.get(&id) else {
            return Err(ConfigError::at(span, "an alias cannot stand inside the value it names").help("write it out"));
        };
        self.aliased += size;
        if self.aliased > MAX_ALIASED {
            return Err(ConfigError::at(span, "aliases expand to too much").help("write less with aliases"));
        }
        // Places stay those of the definition: that is where an author mends a wrong value.
        Ok((node.clone(), *size))
    }
}

/// A plain scalar by the core schema of YAML 1.2 section 10.3.2. `yes`, `on`, `1_000` and `12:30` are text.
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let radix = |t: &str, radix| i64::from_str_radix(t, radix).ok().filter(|_| !t.starts_with(['-', '+']));
    let whole = match text.get(..2) {
        Some("0x") => radix(&text[2..], 16),
        Some("0o") => radix(&text[2..], 8),
        _ if digits.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    if let Some(n) = whole {
        return Value::Int(n);
    }
    let numeric = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+');
    if digits.bytes().next().is_some_and(|b| b.is_ascii_digit() || b == b'.')
        && digits.bytes().all(numeric)
        && let Ok(n) = text.parse::<f64>()
        && n.is_finite()
    {
        return Value::Float(n);
    }
    Value::Str(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn errors(text: &str) -> Vec<(u32, u32, String)> {
        let errors = parse(0, text.as_bytes()).expect_err("malformed");
        errors.into_iter().map(|e| (e.span.map_or(0, |s| s.line), e.span.map_or(0, |s| s.column), e.message)).collect()
    }

    #[test]
    fn scalars_follow_yaml_1_2() {
        for (text, value) in [
            ("on", Value::Str("on".into())),
            ("yes", Value::Str("yes".into())),
            ("true", Value::Bool(true)),
            ("\"true\"", Value::Str("true".into())),
            ("0x1F", Value::Int(31)),
            ("-7", Value::Int(-7)),
            ("1.2", Value::Float(1.2)),
            ("12:30", Value::Str("12:30".into())),
            ("1_000", Value::Str("1_000".into())),
            ("10.0.0.0/8", Value::Str("10.0.0.0/8".into())),
            ("127.0.0.1:80", Value::Str("127.0.0.1:80".into())),
            ("1.2.3", Value::Str("1.2.3".into())),
            (".nan", Value::Str(".nan".into())),
            ("", Value::Null),
        ] {
            assert_eq!(parse(0, text.as_bytes()).map(|n| n.value), Ok(value), "{text}");
        }
    }

    #[test]
    fn json_is_read_by_the_same_door_with_places() {
        let node = parse(3, b"{\n  \"a\": [1, \"x\\u0041\"],\n\t\"b\": {}\n}").expect("JSON");
        let list = node.get("a").expect("a");
        assert_eq!(list.span, Span { file: 3, line: 2, column: 8 });
        assert_eq!(list.to_json(), serde_json::json!([1, "xA"]));
        // JSON writes what lies beyond the basic plane as a surrogate pair (RFC 8259 section 7).
        let node = parse(0, br#"{"a": "\ud83d\ude00\/"}"#).expect("JSON");
        assert_eq!(node.to_json(), serde_json::json!({ "a": "\u{1f600}/" }));
    }

    #[test]
    fn a_repeated_key_names_both_places() {
        let found = parse(0, b"a: 1\nb: 2\na: 3\nb: 4\n").expect_err("twice");
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].span, Some(Span { file: 0, line: 3, column: 1 }));
        assert!(found[0].help.as_ref().is_some_and(|h| h.contains("1:1")));
    }

    #[test]
    fn an_alias_bomb_is_defused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..9 {
            let prior = format!("*a{},", i - 1).repeat(10);
            bomb += &format!("a{i}: &a{i} [{prior}]\n");
        }
        assert!(errors(&bomb)[0].2.contains("aliases"));
        let plain = parse(0, b"a: &a {k: 1}\nb: *a").expect("an honest alias");
        assert_eq!(plain.to_json(), serde_json::json!({"a": {"k": 1}, "b": {"k": 1}}));
    }

    #[test]
    fn what_is_no_config_is_refused_where_it_stands() {
        assert_eq!(errors("a: [1, 2\nb: 3\n")[0].0, 2);
        assert_eq!(errors("a: 1\n---\nb: 2\n")[0].0, 2);
        assert!(errors("a: !secret x\n")[0].2.contains("tags"));
        assert!(errors("<<: {a: 1}\n")[0].2.contains("merge"));
        assert!(errors(&"[".repeat(300))[0].2.contains("not YAML"));
        let bad = parse(0, b"ab: 1\nc\xffd: 2\n").expect_err("not UTF-8");
        assert_eq!(bad[0].span, Some(Span { file: 0, line: 2, column: 2 }));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(0, &bytes);
        }
        #[test]
        fn no_yaml_like_text_panics(text in "[a-c:\\-\\[\\]{},&*!|> \n\"'#%]{0,60}") {
            let _ = parse(0, text.as_bytes());
        }
    }
}
