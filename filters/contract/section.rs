//! Configuration as filters see it: a tree whose every node knows its place in a file.
//!
//! The engine turns YAML or JSON text into a [`Node`] tree once; a filter reads its own section into its own serde type
//! with [`Node::read`]. Every error points at the node that caused it.

use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// A place in a config file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Index of the file among those that were read.
    pub file: u16,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// The JSON data model.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, or nothing after a key.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Str(String),
    /// List.
    Seq(Vec<Node>),
    /// Map, in file order, keys unique.
    Map(Vec<(Key, Node)>),
}

/// A map key and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where it stands.
    pub span: Span,
    /// Its text.
    pub name: String,
}

/// What is wrong with a configuration, where, and what would cure it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where; `None` for what no line can be blamed for.
    pub span: Option<Span>,
    /// What is wrong.
    pub message: String,
    /// What would cure it.
    pub help: Option<String>,
}

impl ConfigError {
    /// An error at a place.
    pub fn at(span: Span, message: impl Into<String>) -> Self {
        Self { span: Some(span), message: message.into(), help: None }
    }
    /// Adds the cure.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
    /// "there is no KIND NAME", with the nearest of the names that exist.
    pub fn unknown<'a>(span: Span, kind: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        Self { span: Some(span), message: format!("there is no {kind} `{name}`"), help: Some(suggest(name, &known)) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.help.as_ref().map_or(Ok(()), |h| write!(f, " ({h})"))
    }
}

impl std::error::Error for ConfigError {}

/// "did you mean `x`?" for the nearest name, else the list of what is known.
#[must_use]
pub fn suggest(name: &str, known: &[&str]) -> String {
    let near = known.iter().map(|k| (strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase()), *k)).min();
    match near {
        Some((d, k)) if d <= (name.len() / 3).max(1) => format!("did you mean `{k}`?"),
        _ if known.is_empty() => "none are defined".to_owned(),
        _ => format!("known here: {}", known.join(", ")),
    }
}

impl Node {
    /// Reads the node into a typed value; unknown keys and bad values are errors at their own place.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(Reader(self)).map_err(|e| e.settle(self.span))
    }
    /// The value under a key, if this is a map that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(m) => m.iter().find(|(k, _)| k.name == key).map(|(_, v)| v),
            _ => None,
        }
    }
    /// The entries, empty unless this is a map.
    #[must_use]
    pub fn entries(&self) -> &[(Key, Self)] {
        match &self.value {
            Value::Map(m) => m,
            _ => &[],
        }
    }
    /// As JSON, without places.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as J;
        match &self.value {
            Value::Null => J::Null,
            Value::Bool(b) => J::Bool(*b),
            Value::Int(i) => J::from(*i),
            Value::Float(f) => J::from(*f),
            Value::Str(s) => J::String(s.clone()),
            Value::Seq(s) => J::Array(s.iter().map(Self::to_json).collect()),
            Value::Map(m) => J::Object(m.iter().map(|(k, v)| (k.name.clone(), v.to_json())).collect()),
        }
    }
    const fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Str(_) => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

impl de::Error for ConfigError {
    /// The text's first line is what is wrong, the second (if there is one) what would cure it.
    fn custom<T: fmt::Display>(msg: T) -> Self {
        let text = msg.to_string();
        match text.split_once('\n') {
            Some((message, help)) => Self { span: None, message: message.to_owned(), help: Some(help.to_owned()) },
            None => Self { span: None, message: text, help: None },
        }
    }
    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        let (what, example) = match expected.split_once(", such as ") {
            Some((what, example)) => (what, Some(example)),
            None => (expected.as_str(), None),
        };
        let (what, found_text) = (in_words(what), describe(found));
        let help = match (found, example) {
            (_, Some(example)) => Some(format!("write it such as {example}")),
            (de::Unexpected::Bool(_) | de::Unexpected::Unsigned(_) | de::Unexpected::Signed(_), _)
            | (de::Unexpected::Float(_), _)
                if what == "a string" =>
            {
                Some("put the value in quotes".to_owned())
            }
            (de::Unexpected::Str(_), _) if what == "a boolean" => Some("write `true` or `false`".to_owned()),
            (de::Unexpected::Str(_), _) if what == "a list" => Some("write it as a list: `[a, b]`".to_owned()),
            _ => Some(format!("write {what} here")),
        };
        Self { span: None, message: format!("expected {what}, found {found_text}"), help }
    }
    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let message = format!("{} is out of range", describe(found));
        Self { span: None, message, help: Some(format!("expected {}", in_words(&expected.to_string()))) }
    }
    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self { span: None, message: format!("unknown key `{field}`"), help: Some(suggest(field, expected)) }
    }
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self { span: None, message: format!("unknown value `{variant}`"), help: Some(suggest(variant, expected)) }
    }
    fn missing_field(field: &'static str) -> Self {
        Self { span: None, message: format!("`{field}` is missing"), help: Some(format!("add `{field}`")) }
    }
}

/// serde's name of a type in a config author's words.
fn in_words(expected: &str) -> &str {
    match expected {
        "a sequence" => "a list",
        "a boolean" | "a string" | "a map" => expected,
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not negative",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        _ if expected.starts_with("struct ") => "a map",
        _ => expected,
    }
}

/// What was found instead, without its text if that could be long.
fn describe(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Bool(b) => format!("the boolean `{b}`"),
        de::Unexpected::Unsigned(n) => format!("the number `{n}`"),
        de::Unexpected::Signed(n) => format!("the number `{n}`"),
        de::Unexpected::Float(n) => format!("the number `{n}`"),
        // The text may be a secret that stands in the wrong place.
        de::Unexpected::Str(_) => "a string".to_owned(),
        de::Unexpected::Unit | de::Unexpected::Option => "nothing".to_owned(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

impl ConfigError {
    /// Gives the error a place unless a deeper node already did.
    fn settle(mut self, span: Span) -> Self {
        if self.message.starts_with(PARKED)
            && let Some(parked) = PARKING.take()
        {
            return parked;
        }
        self.span.get_or_insert(span);
        self
    }
}

struct Reader<'a>(&'a Node);

macro_rules! forward_any {
    ($($f:ident)*) => { $(fn $f<V: Visitor<'de>>(self, v: V) -> Result<V::Value, ConfigError> { self.deserialize_any(v) })* };
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, v: V) -> Result<V::Value, ConfigError> {
        let span = self.0.span;
        match &self.0.value {
            Value::Null => v.visit_unit(),
            Value::Bool(b) => v.visit_bool(*b),
            Value::Int(i) => match u64::try_from(*i) {
                Ok(u) => v.visit_u64(u),
                Err(_) => v.visit_i64(*i),
            },
            Value::Float(f) => v.visit_f64(*f),
            Value::Str(s) => v.visit_str(s),
            Value::Seq(s) => v.visit_seq(Items(s.iter())),
            Value::Map(m) => v.visit_map(Entries { rest: m.iter(), value: None }),
        }
        .map_err(|e| e.settle(span))
    }
    fn deserialize_option<V: Visitor<'de>>(self, v: V) -> Result<V::Value, ConfigError> {
        match self.0.value {
            Value::Null => v.visit_none(),
            _ => v.visit_some(self),
        }
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, v: V) -> Result<V::Value, ConfigError> {
        v.visit_newtype_struct(self)
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, ConfigError> {
        let span = self.0.span;
        match &self.0.value {
            Value::Str(s) => v.visit_enum(s.as_str().into_deserializer()),
            Value::Map(m) if m.len() == 1 => {
                v.visit_enum(de::value::MapAccessDeserializer::new(Entries { rest: m.iter(), value: None }))
            }
            Value::Map(m) => {
                let found: Vec<&str> = m.iter().map(|(k, _)| k.name.as_str()).collect();
                let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
                Err(ConfigError::at(span, format!("exactly one key may stand here, found {found}"))
                    .help(format!("keep one of: {}", names.join(", "))))
            }
            _ => {
                let quote = match &self.0.value {
                    Value::Int(_) | Value::Float(_) | Value::Bool(_) => "put it in quotes; ",
                    _ => "",
                };
                let help = format!("{quote}known here: {}", names.join(", "));
                Err(ConfigError::at(span, format!("{} cannot stand here", self.0.kind())).help(help))
            }
        }
        .map_err(|e| e.settle(span))
    }
    forward_any! { deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
    deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string
    deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_seq deserialize_map deserialize_identifier
    deserialize_ignored_any }
    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, v: V) -> Result<V::Value, ConfigError> {
        self.deserialize_any(v)
    }
    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, v: V) -> Result<V::Value, ConfigError> {
        self.deserialize_any(v)
    }
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        v: V,
    ) -> Result<V::Value, ConfigError> {
        self.deserialize_any(v)
    }
    /// A [`Node`] asks for itself by this name and gets the tree untouched.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, ConfigError> {
        if name == NODE {
            HANDOVER.with_borrow_mut(|h| *h = Some(self.0.clone()));
            return v.visit_unit();
        }
        self.deserialize_any(v)
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ConfigError;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ConfigError> {
        self.0.next().map(|n| seed.deserialize(Reader(n)).map_err(|e| e.settle(n.span))).transpose()
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ConfigError;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ConfigError> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        let de: de::value::StrDeserializer<'_, ConfigError> = key.name.as_str().into_deserializer();
        seed.deserialize(de).map(Some).map_err(|mut e| {
            // A variant that is written as a key.
            if let Some(name) = e.message.strip_prefix("unknown value ") {
                e.message = format!("unknown key {name}");
            }
            e.settle(key.span)
        })
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ConfigError> {
        let Some(node) = self.value.take() else { return Err(de::Error::custom("a value was read before its key")) };
        seed.deserialize(Reader(node)).map_err(|e| e.settle(node.span))
    }
}

const NODE: &str = "\u{0}onehop::Node";

thread_local! {
    /// Carries a node through serde's visitor, which has no type for it.
    static HANDOVER: std::cell::RefCell<Option<Node>> = const { std::cell::RefCell::new(None) };
}

/// A field of type `Node` keeps its part of the tree, places included. Only inside [`Node::read`].
impl<'de> de::Deserialize<'de> for Node {
    fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Take;
        impl Visitor<'_> for Take {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a config node")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                HANDOVER.with_borrow_mut(Option::take).ok_or_else(|| E::custom("a Node can only be read from a Node"))
            }
        }
        d.deserialize_struct(NODE, &[], Take)
    }
}

impl schemars::JsonSchema for Node {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Any".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!(true)
    }
}

/// A value that remembers its place, for errors found after reading. As [`Node`], only inside [`Node::read`], and not
/// under `serde(untagged)` or `serde(flatten)`, whose buffering loses places.
#[derive(Clone, Debug)]
pub struct Spot<T> {
    /// Where it stands.
    pub span: Span,
    /// The value.
    pub value: T,
}

impl<'de, T: DeserializeOwned> de::Deserialize<'de> for Spot<T> {
    fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(d)?;
        node.read().map(|value| Self { span: node.span, value }).map_err(parked)
    }
}

impl<T: serde::Serialize> serde::Serialize for Spot<T> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(s)
    }
}

impl serde::Serialize for Node {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(s)
    }
}

impl<T> std::ops::Deref for Spot<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: schemars::JsonSchema> schemars::JsonSchema for Spot<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(g: &mut schemars::SchemaGenerator) -> schemars::Schema {
        g.subschema_for::<T>()
    }
}

/// An error that keeps its place through serde, which carries text only: for a type that reads a [`Node`] by its form.
pub fn parked<E: de::Error>(error: ConfigError) -> E {
    PARKING.set(Some(error));
    E::custom(PARKED)
}

/// Message of an error whose real form waits in [`PARKING`].
const PARKED: &str = "\u{0}onehop::ConfigError";

thread_local! {
    /// Carries an error that knows its own place through `de::Error::custom`, which only takes text.
    static PARKING: std::cell::Cell<Option<ConfigError>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::units::Duration;

    const fn at(line: u32, column: u32) -> Span {
        Span { file: 0, line, column }
    }
    fn text(line: u32, column: u32, text: &str) -> Node {
        Node { span: at(line, column), value: Value::Str(text.to_owned()) }
    }
    fn map(line: u32, entries: Vec<(&str, Node)>) -> Node {
        let key = |n: &Node, name: &str| Key { span: at(n.span.line, 1), name: name.to_owned() };
        Node { span: at(line, 1), value: Value::Map(entries.into_iter().map(|(k, n)| (key(&n, k), n)).collect()) }
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        timeout: Spot<Duration>,
    }
    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        inner: Spot<Inner>,
    }

    #[test]
    fn an_error_inside_nested_spots_keeps_its_own_place_and_cure() {
        let node = map(1, vec![("inner", map(2, vec![("timeout", text(3, 9, "5 parsecs"))]))]);
        let e = node.read::<Outer>().expect_err("no such unit");
        assert_eq!(e.span, Some(at(3, 9)));
        assert!(e.message.contains("not a duration"), "{e}");
        assert!(e.help.is_some_and(|h| h.contains("800ms")));
    }

    #[test]
    fn an_unknown_key_is_blamed_at_the_key() {
        let node = map(1, vec![("inner", map(2, vec![("timeuot", text(3, 9, "5s"))]))]);
        let e = node.read::<Outer>().expect_err("no such key");
        assert_eq!(e.span, Some(at(3, 1)));
        assert_eq!(e.help.as_deref(), Some("did you mean `timeout`?"));
    }

    #[test]
    fn a_missing_key_is_blamed_at_the_map_that_lacks_it() {
        let e = map(1, vec![("inner", map(2, vec![]))]).read::<Outer>().expect_err("timeout is missing");
        assert_eq!((e.span, e.message.as_str()), (Some(at(2, 1)), "`timeout` is missing"));
    }

    #[test]
    fn a_parked_error_never_leaks_into_a_later_read() {
        let bad = map(1, vec![("inner", map(2, vec![("timeout", text(3, 9, "x"))]))]);
        assert!(bad.read::<Outer>().is_err());
        let e = map(7, vec![]).read::<Outer>().expect_err("inner is missing");
        assert_eq!(e.span, Some(at(7, 1)));
    }
}
