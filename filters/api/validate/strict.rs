//! JSON as it must be for a check to mean anything: bounded in depth, and no name twice in an object, because of two
//! readers one takes the first and one the last.

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Reads a text; the error says what is wrong and where, never what stands there.
pub fn read(text: &[u8], max_depth: usize) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Depth(max_depth).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|e| {
        let what = match e.classify() {
            serde_json::error::Category::Data if e.to_string().starts_with(TWICE) => TWICE,
            serde_json::error::Category::Data if e.to_string().starts_with(DEEP) => DEEP,
            _ => "is not JSON",
        };
        format!("{what} (line {}, column {})", e.line(), e.column())
    })
}

const TWICE: &str = "has a name twice in an object";
const DEEP: &str = "is nested too deeply";

/// Levels that are left.
#[derive(Clone, Copy)]
struct Depth(usize);

impl<'de> DeserializeSeed<'de> for Depth {
    type Value = Value;
    fn deserialize<D: de::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl Depth {
    fn below<E: de::Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom(DEEP))
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Value;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(b.into())
    }
    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(n.into())
    }
    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(n.into())
    }
    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(n.into())
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(below)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(below)?;
            if members.insert(name, value).is_some() {
                return Err(de::Error::custom(TWICE));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_every_reader_reads_alike() {
        for (text, says) in [
            ("", "is not JSON"),
            ("{", "is not JSON"),
            ("1 2", "is not JSON"),
            ("\"\u{1}\"", "is not JSON"),
            (r#"{"a":1,"a":2}"#, TWICE),
            (r#"[{"a":1,"\u0061":2}]"#, TWICE),
            ("[[[[1]]]]", DEEP),
            (r#"{"a":{"b":{"c":[]}}}"#, DEEP),
        ] {
            let e = read(text.as_bytes(), 3).expect_err(text);
            assert!(e.starts_with(says) && e.contains("line 1"), "{text}: {e}");
        }
        assert!(read(&b"[".repeat(500), 1000).is_err(), "no deeper than the reader");
        assert_eq!(
            read(b" [[[1, null, true, -2.5, \"x\"]]] ", 3).ok(),
            Some(serde_json::json!([[[1, null, true, -2.5, "x"]]]))
        );
    }

    proptest! {
        #[test]
        fn agrees_with_the_usual_reader(text in "[\\[\\]{}\":,0-9a ]{0,16}") {
            if let Ok(value) = read(text.as_bytes(), 64) {
                prop_assert_eq!(Some(value), serde_json::from_str::<Value>(&text).ok());
            }
        }
    }
}
