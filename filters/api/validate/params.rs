//! Parameters as JSON values: text is taken apart by its style (OpenAPI 3.1, "Style Values") and read as the type that the
//! schema asks for. Pure.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

/// How a parameter with several values is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `a,b`; in a query with `explode`, the name again and again.
    List { separator: char, explode: bool },
    /// `name[key]=value`.
    Deep,
}

/// The types that a schema allows, as far as they say how to read a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Types {
    pub number: bool,
    pub boolean: bool,
    pub null: bool,
    pub text: bool,
    pub array: Option<Box<Self>>,
    pub object: Option<Vec<(String, Self)>>,
}

/// References followed, and levels gone down, while types are looked for.
const MAX_DEPTH: usize = 12;

impl Types {
    /// Looks into a schema; local references are looked up in `root`.
    pub fn of(schema: &Value, root: &Value) -> Self {
        let mut found = Self::default();
        found.gather(schema, root, MAX_DEPTH);
        found
    }

    fn gather(&mut self, schema: &Value, root: &Value, depth: usize) {
        if depth == 0 {
            return;
        }
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        if let Some(target) = target.and_then(|target| root.pointer(target)) {
            self.gather(target, root, depth - 1);
        }
        let names: Vec<&str> = match schema.get("type") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        for name in names {
            match name {
                "integer" | "number" => self.number = true,
                "boolean" => self.boolean = true,
                "null" => self.null = true,
                "string" => self.text = true,
                "array" => {
                    let mut items = Self::default();
                    if let Some(schema) = schema.get("items") {
                        items.gather(schema, root, depth - 1);
                    }
                    self.array = Some(Box::new(items));
                }
                "object" => {
                    let members = schema.get("properties").and_then(Value::as_object);
                    let members = members.into_iter().flatten().map(|(name, schema)| {
                        let mut types = Self::default();
                        types.gather(schema, root, depth - 1);
                        (name.clone(), types)
                    });
                    self.object.get_or_insert_default().extend(members);
                }
                _ => {}
            }
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for schema in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                self.gather(schema, root, depth - 1);
            }
        }
    }

    /// A single text as the value it most likely means; the schema judges afterwards.
    fn scalar(&self, text: &str) -> Value {
        if self.boolean && matches!(text, "true" | "false") {
            return Value::Bool(text == "true");
        }
        if self.number
            && let Ok(number @ Value::Number(_)) = serde_json::from_str(text)
        {
            return number;
        }
        if self.null && !self.text && (text.is_empty() || text == "null") {
            return Value::Null;
        }
        text.into()
    }

    fn member(&self, name: &str, text: &str) -> Value {
        let types = self.object.iter().flatten().find(|(own, _)| own == name);
        types.map_or_else(|| text.into(), |(_, types)| types.scalar(text))
    }

    /// A text of one place: a path segment, a header field, a query parameter that is not repeated.
    pub fn value(&self, text: &str, style: Style) -> Value {
        let (separator, explode) = match style {
            Style::List { separator, explode } => (separator, explode),
            Style::Deep => (',', false),
        };
        if let Some(items) = &self.array {
            let parts = text.split(separator).filter(|_| !text.is_empty());
            return parts.map(|part| items.scalar(part.trim())).collect();
        }
        if self.object.is_none() {
            return self.scalar(text);
        }
        let mut members = Map::new();
        let mut parts = text.split(separator).map(str::trim);
        while let Some(part) = parts.next().filter(|part| !part.is_empty()) {
            let (name, value) = if explode {
                part.split_once('=').unwrap_or((part, ""))
            } else {
                (part, parts.next().unwrap_or_default())
            };
            members.insert(name.to_owned(), self.member(name, value));
        }
        Value::Object(members)
    }

    /// A parameter of a query, among all of them; `None` if it is not there.
    pub fn in_query(&self, name: &str, pairs: &[(String, String)], style: Style) -> Option<Value> {
        let deep = |key: &str| Some(key.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?.to_owned());
        if style == Style::Deep {
            let members: Map<String, Value> =
                pairs.iter().filter_map(|(key, text)| deep(key).map(|m| (m.clone(), self.member(&m, text)))).collect();
            return (!members.is_empty()).then_some(Value::Object(members));
        }
        let explode = matches!(style, Style::List { explode: true, .. });
        if explode && let Some(known) = &self.object {
            let own = |key: &str| known.iter().any(|(name, _)| name == key);
            let members: Map<String, Value> = pairs
                .iter()
                .filter(|(key, _)| own(key))
                .map(|(key, text)| (key.clone(), self.member(key, text)))
                .collect();
            return (!members.is_empty()).then_some(Value::Object(members));
        }
        let mut values = pairs.iter().filter(|(key, _)| key == name).map(|(_, text)| text.as_str());
        match &self.array {
            Some(items) if explode => {
                let items: Vec<Value> = values.map(|text| items.scalar(text)).collect();
                (!items.is_empty()).then_some(Value::Array(items))
            }
            _ => {
                let first = values.next()?;
                // A single value that is there twice is a list, which its schema refuses.
                match values.next() {
                    None => Some(self.value(first, style)),
                    Some(second) => Some([first, second].into_iter().chain(values).collect()),
                }
            }
        }
    }
}

/// Names and values of a query or a form, decoded; `None` if one is not UTF-8.
pub fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
    };
    let pair = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        Some((decoded(name)?, decoded(value)?))
    };
    text.split('&').filter(|pair| !pair.is_empty()).map(pair).collect()
}

/// All pairs as one object: a name that is there several times, or whose schema is a list, is a list.
pub fn object(pairs: &[(String, String)], types: &Types) -> Value {
    let any = Types::default();
    let exploded = Style::List { separator: ',', explode: true };
    let mut members = Map::new();
    for (name, _) in pairs {
        if members.contains_key(name) {
            continue;
        }
        let types = types.object.iter().flatten().find(|(own, _)| own == name).map_or(&any, |(_, types)| types);
        if let Some(value) = types.in_query(name, pairs, exploded) {
            members.insert(name.clone(), value);
        }
    }
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const COMMAS: Style = Style::List { separator: ',', explode: false };
    const EXPLODED: Style = Style::List { separator: ',', explode: true };

    fn types(schema: Value) -> Types {
        Types::of(&schema, &json!({"components": {"schemas": {"N": {"type": "integer"}}}}))
    }

    #[test]
    fn texts_become_what_the_schema_asks_for() {
        for (schema, text, style, value) in [
            (json!({"type": "integer"}), "7", COMMAS, json!(7)),
            (json!({"type": "integer"}), "seven", COMMAS, json!("seven")),
            (json!({"type": "string"}), "7", COMMAS, json!("7")),
            (json!({}), "7", COMMAS, json!("7")),
            (json!({"$ref": "#/components/schemas/N"}), "7", COMMAS, json!(7)),
            (json!({"type": ["boolean", "null"]}), "true", COMMAS, json!(true)),
            (json!({"type": ["boolean", "null"]}), "", COMMAS, json!(null)),
            (json!({"anyOf": [{"type": "number"}, {"type": "string"}]}), "1.5", COMMAS, json!(1.5)),
            (json!({"type": "array", "items": {"type": "integer"}}), "1,2", COMMAS, json!([1, 2])),
            (json!({"type": "array"}), "", COMMAS, json!([])),
            (
                json!({"type": "object", "properties": {"a": {"type": "integer"}}}),
                "a,1,b,2",
                COMMAS,
                json!({"a": 1, "b": "2"}),
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "integer"}}}),
                "a=1,b=2",
                EXPLODED,
                json!({"a": 1, "b": "2"}),
            ),
        ] {
            assert_eq!(types(schema.clone()).value(text, style), value, "{schema} {text}");
        }
    }

    #[test]
    fn queries_by_their_style() {
        let list = json!({"type": "array", "items": {"type": "integer"}});
        let object = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}});
        for (schema, style, query, value) in [
            (list.clone(), EXPLODED, "p=1&q=x&p=2", Some(json!([1, 2]))),
            (list.clone(), EXPLODED, "q=1", None),
            (list.clone(), COMMAS, "p=1,2", Some(json!([1, 2]))),
            (list, Style::List { separator: '|', explode: false }, "p=1%7C2", Some(json!([1, 2]))),
            (object.clone(), EXPLODED, "a=1&b=x&c=y", Some(json!({"a": 1, "b": "x"}))),
            (object.clone(), Style::Deep, "p[a]=1&p%5Bb%5D=x&p=y", Some(json!({"a": 1, "b": "x"}))),
            (object, Style::Deep, "p=y", None),
            (json!({"type": "string"}), EXPLODED, "p=a+b%20c", Some(json!("a b c"))),
            (json!({"type": "string"}), EXPLODED, "p=a&p=b", Some(json!(["a", "b"]))),
        ] {
            let pairs = pairs(query).expect("UTF-8");
            assert_eq!(types(schema.clone()).in_query("p", &pairs, style), value, "{schema} {query}");
        }
        assert_eq!(pairs("a=%ff"), None);
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "[ap=&,\\[\\]%0-9.+]{0,20}") {
            if let Some(pairs) = pairs(&query) {
                let schema = types(json!({"type": ["object", "array", "integer"], "properties": {"a": {}}}));
                for style in [COMMAS, EXPLODED, Style::Deep] {
                    let _ = schema.in_query("p", &pairs, style);
                }
                prop_assert!(object(&pairs, &schema).is_object());
            }
        }
    }
}
