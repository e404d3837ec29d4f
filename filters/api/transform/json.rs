//! The pure part of body rules: edits of a JSON text that leave the bytes of what they do not name as they were. Numbers
//! keep their digits, members their order, and a body is never turned into a tree as a whole.

use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// A JSON pointer (RFC 6901), split and unescaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// Reads one; the error says what is wrong.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let rest = text.strip_prefix('/').ok_or("a JSON pointer begins with `/`")?;
        rest.split('/').map(unescape).collect::<Option<_>>().map(Self).ok_or("`~` stands only in `~0` and `~1`")
    }

    /// Points at the whole text.
    pub const fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

fn unescape(token: &str) -> Option<String> {
    let mut out = String::with_capacity(token.len());
    let mut chars = token.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '~' => match chars.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

/// The rule does not fit the body: an index beyond the end, a member of what is no object.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfit;

/// A JSON text, taken apart only as far as an edit reaches into it.
#[derive(Clone, Debug)]
pub enum Tree<'a> {
    /// As it stands in the body.
    Raw(&'a RawValue),
    /// From the configuration or the request.
    Made(Value),
    Object(Vec<(String, Self)>),
    List(Vec<Self>),
}

impl<'a> Tree<'a> {
    /// Reads a text; it is checked as a whole, and kept as it is.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().map(Self::Raw)
    }

    /// Writes it.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Raw(raw) => out.extend_from_slice(raw.get().as_bytes()),
            Self::Made(value) => serde_json::to_writer(out, value).expect("memory takes any JSON"),
            Self::Object(members) => {
                out.push(b'{');
                for (i, (name, value)) in members.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    serde_json::to_writer(&mut *out, name).expect("memory takes any JSON");
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
            Self::List(items) => {
                out.push(b'[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
        }
    }

    /// What stands there; `None` if nothing does.
    pub fn find(&self, pointer: &Pointer) -> Option<Self> {
        let mut at = self.clone();
        for token in &pointer.0 {
            at.open();
            at = match at {
                // Of members with the same name the last one counts, as most readers have it.
                Self::Object(members) => members.into_iter().rfind(|(name, _)| name == token)?.1,
                Self::List(mut items) => {
                    let i = index(token).filter(|i| *i < items.len())?;
                    items.swap_remove(i)
                }
                _ => return None,
            };
        }
        Some(at)
    }

    /// Puts a value there, or with `None` takes away what stands there. Objects on the way are made; `-` is the place
    /// behind the end of a list. Afterwards there is one member of the name, however many there were.
    pub fn set(&mut self, pointer: &Pointer, value: Option<Self>) -> Result<(), Unfit> {
        self.put(&pointer.0, value)
    }

    fn put(&mut self, tokens: &[String], value: Option<Self>) -> Result<(), Unfit> {
        let Some((token, rest)) = tokens.split_first() else {
            *self = value.ok_or(Unfit)?;
            return Ok(());
        };
        self.open();
        match self {
            Self::Object(members) => {
                let at = members.iter().rposition(|(name, _)| name == token);
                match (at, rest.is_empty(), value) {
                    (None, _, None) => {}
                    (_, true, None) => members.retain(|(name, _)| name != token),
                    (Some(at), _, value) => {
                        members[at].1.put(rest, value)?;
                        let mut here = 0..;
                        members.retain(|(name, _)| here.next() == Some(at) || name != token);
                    }
                    (None, _, value) => {
                        let mut new = if rest.is_empty() { Self::Made(Value::Null) } else { Self::Object(Vec::new()) };
                        new.put(rest, value)?;
                        members.push((token.clone(), new));
                    }
                }
                Ok(())
            }
            Self::List(items) => match (index(token), value) {
                (Some(i), None) if i < items.len() && rest.is_empty() => {
                    items.remove(i);
                    Ok(())
                }
                (Some(i), value) if i < items.len() => items[i].put(rest, value),
                (_, None) => Ok(()),
                (i, Some(value)) if rest.is_empty() && (token == "-" || i == Some(items.len())) => {
                    items.push(value);
                    Ok(())
                }
                _ => Err(Unfit),
            },
            // There is nothing to take away below a text or a number.
            Self::Raw(_) | Self::Made(_) => value.map_or(Ok(()), |_| Err(Unfit)),
        }
    }

    /// RFC 7396. Recurses as deep as the patch was written, never as deep as a body.
    pub fn merge(&mut self, patch: Self) {
        let patch = match patch {
            Self::Object(members) => members,
            other => {
                *self = other;
                return;
            }
        };
        self.open();
        if !matches!(self, Self::Object(_)) {
            *self = Self::Object(Vec::new());
        }
        let Self::Object(members) = self else { return };
        for (name, value) in patch {
            if value.is_null() {
                members.retain(|(own, _)| *own != name);
                continue;
            }
            let mut old = members.iter().rposition(|(own, _)| *own == name);
            if let Some(at) = old {
                let mut here = 0..;
                members.retain(|(own, _)| here.next() == Some(at) || *own != name);
                old = members.iter().position(|(own, _)| *own == name);
            }
            match old {
                Some(at) => members[at].1.merge(value),
                None => {
                    let mut new = Self::Made(Value::Null);
                    new.merge(value);
                    members.push((name, new));
                }
            }
        }
    }

    fn is_null(&self) -> bool {
        match self {
            Self::Made(value) => value.is_null(),
            Self::Raw(raw) => raw.get() == "null",
            Self::Object(_) | Self::List(_) => false,
        }
    }

    /// Takes the outermost layer apart, if it is an object or a list.
    fn open(&mut self) {
        match self {
            Self::Raw(raw) if raw.get().starts_with('{') => {
                if let Ok(Members(members)) = serde_json::from_str(raw.get()) {
                    *self = Self::Object(members.into_iter().map(|(name, raw)| (name, Self::Raw(raw))).collect());
                }
            }
            Self::Raw(raw) if raw.get().starts_with('[') => {
                if let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
                    *self = Self::List(items.into_iter().map(Self::Raw).collect());
                }
            }
            Self::Made(value @ Value::Object(_)) => {
                if let Value::Object(members) = value.take() {
                    *self = Self::Object(members.into_iter().map(|(name, v)| (name, Self::Made(v))).collect());
                }
            }
            Self::Made(value @ Value::Array(_)) => {
                if let Value::Array(items) = value.take() {
                    *self = Self::List(items.into_iter().map(Self::Made).collect());
                }
            }
            _ => {}
        }
    }
}

/// RFC 6901 section 4: digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let plain = token.bytes().all(|b| b.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
    if plain { token.parse().ok() } else { None }
}

/// Members in their order, those of the same name too.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        d.deserialize_map(Each)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pointer(text: &str) -> Pointer {
        Pointer::read(text).expect("a pointer")
    }

    fn text(tree: &Tree<'_>) -> String {
        let mut out = Vec::new();
        tree.write(&mut out);
        String::from_utf8(out).expect("text")
    }

    fn set(body: &str, at: &str, value: Option<Value>) -> Result<String, Unfit> {
        let mut tree = Tree::read(body.as_bytes()).expect("JSON");
        tree.set(&pointer(at), value.map(Tree::Made))?;
        Ok(text(&tree))
    }

    /// The examples of RFC 6901 section 5.
    #[test]
    fn pointers_of_the_rfc() {
        let body = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        let tree = Tree::read(body.as_bytes()).expect("JSON");
        for (at, found) in [
            ("", Some(body)),
            ("/foo", Some(r#"["bar","baz"]"#)),
            ("/foo/0", Some(r#""bar""#)),
            ("/", Some("0")),
            ("/a~1b", Some("1")),
            ("/c%d", Some("2")),
            ("/e^f", Some("3")),
            ("/g|h", Some("4")),
            ("/i\\j", Some("5")),
            ("/k\"l", Some("6")),
            ("/ ", Some("7")),
            ("/m~0n", Some("8")),
            ("/foo/2", None),
            ("/foo/-", None),
            ("/foo/00", None),
            ("/foo/0/x", None),
        ] {
            assert_eq!(tree.find(&pointer(at)).map(|t| text(&t)).as_deref(), found, "{at}");
        }
        for bad in ["a", "/~", "/~2", "/a~"] {
            assert!(Pointer::read(bad).is_err(), "{bad}");
        }
    }

    /// The test cases of RFC 7396, appendix A.
    #[test]
    fn patches_of_the_rfc() {
        for (body, patch, expected) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, "\"bar\"", "\"bar\""),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":3}"#, r#"{"a":3}"#),
        ] {
            let mut tree = Tree::read(body.as_bytes()).expect("JSON");
            tree.merge(made(serde_json::from_str(patch).expect("JSON")));
            assert_eq!(text(&tree), expected, "{body} with {patch}");
        }
    }

    /// As a patch from the configuration is built: objects open.
    fn made(value: Value) -> Tree<'static> {
        match value {
            Value::Object(members) => Tree::Object(members.into_iter().map(|(k, v)| (k, made(v))).collect()),
            other => Tree::Made(other),
        }
    }

    #[test]
    fn edits_touch_what_they_name() {
        let one = Some(json!(1));
        for (body, at, value, expected) in [
            ("{}", "/a", one.clone(), Ok(r#"{"a":1}"#)),
            ("{}", "/a/b", one.clone(), Ok(r#"{"a":{"b":1}}"#)),
            (r#"{"a":2,"a":3}"#, "/a", one.clone(), Ok(r#"{"a":1}"#)),
            (r#"{"a":{},"b":0,"a":{"c":0}}"#, "/a/d", one.clone(), Ok(r#"{"b":0,"a":{"c":0,"d":1}}"#)),
            (r#"{"a":2,"\u0061":3}"#, "/a", None, Ok("{}")),
            (r#"{"a":[1,2]}"#, "/a/-", one.clone(), Ok(r#"{"a":[1,2,1]}"#)),
            (r#"{"a":[1,2]}"#, "/a/2", one.clone(), Ok(r#"{"a":[1,2,1]}"#)),
            (r#"{"a":[1,2]}"#, "/a/0", None, Ok(r#"{"a":[2]}"#)),
            (r#"{"a":[1,2]}"#, "/a/9", None, Ok(r#"{"a":[1,2]}"#)),
            (r#"{"a":[1,2]}"#, "/a/9", one.clone(), Err(Unfit)),
            (r#"{"a":[1,2]}"#, "/a/b", one.clone(), Err(Unfit)),
            (r#"{"a":"b"}"#, "/a/b", one.clone(), Err(Unfit)),
            (r#"{"a":"b"}"#, "/a/b", None, Ok(r#"{"a":"b"}"#)),
            (r#"{"a":"b"}"#, "/c/d", None, Ok(r#"{"a":"b"}"#)),
            ("7", "", one.clone(), Ok("1")),
            (
                r#"{ "n" : 12345678901234567890123.000 , "s":"\u00e9", "x":{ "y": 1e400 } }"#,
                "/x/z",
                one,
                Ok(r#"{"n":12345678901234567890123.000,"s":"\u00e9","x":{"y":1e400,"z":1}}"#),
            ),
        ] {
            assert_eq!(set(body, at, value), expected.map(str::to_owned), "{body} {at}");
        }
    }

    #[test]
    fn depth_is_no_stack() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        let edited = set(&deep, "/b", Some(json!(1))).expect("fits");
        assert!(edited.ends_with(",\"b\":1}") && edited.len() == deep.len() + 6);
        for bad in ["", "{", "{}x", "[1,]", "\"\u{1}\"", "nul"] {
            assert!(Tree::read(bad.as_bytes()).is_none(), "{bad}");
        }
        assert!(Tree::read(b"\"\xff\"").is_none(), "not UTF-8");
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,3}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                proptest::collection::btree_map("[ab/~]{0,2}", inner, 0..3)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// What was set is found there, what was removed is not, and the text stays JSON.
        #[test]
        fn what_is_set_is_found(body in anything(), at in "(/([ab]|~0|~1|0|1|-)?){1,3}", value in anything()) {
            let body = body.to_string();
            if let Ok(edited) = set(&body, &at, Some(value.clone())) {
                let back: Value = serde_json::from_str(&edited).expect("JSON");
                if !at.contains('-') {
                    prop_assert_eq!(back.pointer(&at), Some(&value));
                }
                let removed = set(&edited, &at, None).expect("removing always fits");
                let back: Value = serde_json::from_str(&removed).expect("JSON");
                // An item that was taken out of a list makes room for the next.
                if !at.split('/').any(|t| t.parse::<usize>().is_ok()) && !at.contains('-') {
                    prop_assert_eq!(back.pointer(&at), None);
                }
            }
        }

        /// RFC 7396's own pseudocode is the oracle.
        #[test]
        fn merging_follows_the_rfc(body in anything(), patch in anything()) {
            fn oracle(target: &mut Value, patch: &Value) {
                let Some(patch) = patch.as_object() else {
                    *target = patch.clone();
                    return;
                };
                if !target.is_object() {
                    *target = json!({});
                }
                let members = target.as_object_mut().expect("an object");
                for (name, value) in patch {
                    if value.is_null() {
                        members.remove(name);
                    } else {
                        oracle(members.entry(name.clone()).or_insert(Value::Null), value);
                    }
                }
            }
            let text_before = body.to_string();
            let mut tree = Tree::read(text_before.as_bytes()).expect("JSON");
            tree.merge(made(patch.clone()));
            let mut expected = body;
            oracle(&mut expected, &patch);
            prop_assert_eq!(serde_json::from_str::<Value>(&text(&tree)).expect("JSON"), expected);
        }
    }
}
