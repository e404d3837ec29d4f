//! Units are always written: `800ms`, `64KiB`, `20%`. Serde types for config sections.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `90s`, `1h30m`, `250ms`, `1d`; `0s` is allowed where a key says what zero means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

/// `64KiB`, `10MiB`, `1GiB`, `512B`; also `kB`, `MB`, `GB` (powers of ten).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// `20%`, `0.5%`; 0 to 100. Kept as a fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Percent(pub f64);

/// A secret: a string, `{file: PATH}` or `{env: NAME}`. Never shows in a dump or a log.
#[derive(Clone)]
pub enum Secret {
    /// Written in the config.
    Inline(String),
    /// Elsewhere.
    Elsewhere(Elsewhere),
}

/// Where a secret is kept.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Elsewhere {
    /// A file; one trailing newline is cut.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(_) => f.write_str(REDACTED),
            Self::Elsewhere(e) => e.fmt(f),
        }
    }
}

/// What stands in a dump where a secret was.
pub const REDACTED: &str = "[redacted]";

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Secret;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a secret, such as a string, `{file: PATH}` or `{env: NAME}`")
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<Secret, E> {
                // Else a dump that is loaded again would make a well-known text a valid secret.
                if s == REDACTED {
                    return Err(E::custom("the secret was redacted from this text\nput the secret back"));
                }
                Ok(Secret::Inline(s.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Secret, A::Error> {
                Elsewhere::deserialize(de::value::MapAccessDeserializer::new(map)).map(Secret::Elsewhere)
            }
        }
        d.deserialize_any(Either)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Inline(_) => s.serialize_str(REDACTED),
            Self::Elsewhere(e) => e.serialize(s),
        }
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A secret: a string, {file: PATH} or {env: NAME}. Never shows in a dump or a log.",
            "writeOnly": true,
            "anyOf": [{ "type": "string" }, g.subschema_for::<Elsewhere>()],
        })
    }
}

impl Secret {
    /// Fetches it. Paths are relative to `dir`.
    ///
    /// # Errors
    /// Says which file or variable is missing, never what is in it.
    pub fn reveal(&self, dir: &Path) -> Result<String, String> {
        match self {
            Self::Inline(s) => Ok(s.clone()),
            Self::Elsewhere(Elsewhere::File(p)) => {
                let path = dir.join(p);
                let text = read_bounded(&path).map_err(|e| format!("secret file {}: {e}", path.display()))?;
                Ok(text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_owned())
            }
            Self::Elsewhere(Elsewhere::Env(name)) => {
                std::env::var(name).map_err(|_| format!("environment variable {name} is not set"))
            }
        }
    }
}

/// A secret is small; a path that leads to a device or a log must not fill the memory.
fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::{Error, Read};
    const MOST: u64 = 1 << 20;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MOST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST { Err(Error::other("larger than 1 MiB")) } else { Ok(text) }
}

fn split(text: &str) -> Option<(f64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    Some((number.parse().ok()?, unit.trim_start()))
}

impl std::str::FromStr for Duration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a duration\nwrite a number and a unit, such as `800ms`, `30s`, `5m`, `1h`, `1d`")
        };
        let mut rest = text.trim();
        let mut total = 0f64;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let (number, tail) = split(rest).ok_or_else(wrong)?;
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, next) = tail.split_at(end);
            total += number
                * match unit.trim_end() {
                    "us" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "m" | "min" => 60.0,
                    "h" => 3600.0,
                    "d" => 86_400.0,
                    _ => return Err(wrong()),
                };
            rest = next;
        }
        std::time::Duration::try_from_secs_f64(total).map(Self).map_err(|_| wrong())
    }
}

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size\nwrite a number and a unit, such as `512B`, `64KiB`, `10MiB`");
        let (number, unit) = split(text.trim()).ok_or_else(wrong)?;
        let scale = match unit {
            "B" => 1.0,
            "kB" | "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            _ => return Err(wrong()),
        };
        let bytes = number * scale;
        if !(0.0..1e18).contains(&bytes) {
            return Err(wrong());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
        Ok(Self(bytes as u64))
    }
}

impl std::str::FromStr for Percent {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a percentage\nwrite a number from 0% to 100%, such as `20%`");
        let number: f64 = text.trim().strip_suffix('%').and_then(|n| n.trim().parse().ok()).ok_or_else(wrong)?;
        if (0.0..=100.0).contains(&number) { Ok(Self(number / 100.0)) } else { Err(wrong()) }
    }
}

impl std::fmt::Display for Duration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let us = self.0.as_micros();
        for (scale, unit) in
            [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms")]
        {
            if us != 0 && us.is_multiple_of(scale) {
                return write!(f, "{}{unit}", us / scale);
            }
        }
        if us == 0 { f.write_str("0s") } else { write!(f, "{us}us") }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (scale, unit) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(scale) {
                return write!(f, "{}{unit}", self.0 / scale);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}%", (self.0 * 1e6).round() / 1e4)
    }
}

macro_rules! text_form {
    ($t:ident, $expects:literal, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $t;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expects)
                    }
                    fn visit_str<E: de::Error>(self, s: &str) -> Result<$t, E> {
                        s.parse().map_err(E::custom)
                    }
                }
                d.deserialize_str(Text)
            }
        }
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl JsonSchema for $t {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($t).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $expects })
            }
        }
    };
}

text_form!(
    Duration,
    "a duration with a unit, such as `800ms`, `30s`, `5m`, `1h`",
    r"^([0-9.]+ *(us|ms|s|m|min|h|d) *)+$"
);
text_form!(Size, "a size with a unit, such as `64KiB`", r"^[0-9.]+ *(B|kB|KB|MB|GB|KiB|MiB|GiB)$");
text_form!(Percent, "a percentage, such as `20%`", r"^[0-9.]+ *%$");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_units() {
        for (text, ms) in [("800ms", 800), ("1h30m", 5_400_000), ("1.5s", 1500), ("0s", 0), ("2 min", 120_000)] {
            assert_eq!(text.parse::<Duration>().map(|d| d.0.as_millis()), Ok(ms), "{text}");
        }
        for text in ["", "5", "s", "5 parsecs", "-1s", "1.2.3s", "1s2", "1e400s", "99999999999999999999d"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_need_units() {
        for (text, bytes) in [("64KiB", 65_536), ("10 MiB", 10 << 20), ("0B", 0), ("2kB", 2000)] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "64", "64K", "1.1.1B", "-1B", "999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_stop_at_a_hundred() {
        assert_eq!("20%".parse::<Percent>(), Ok(Percent(0.2)));
        for text in ["20", "101%", "-1%", "%", "NaN%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_redacted_secret_is_refused_and_a_secret_never_shows() {
        let read = |v: serde_json::Value| serde_json::from_value::<Secret>(v);
        assert!(read(serde_json::json!("[redacted]")).is_err());
        let secret = read(serde_json::json!("hunter2")).expect("a string is a secret");
        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert_eq!(serde_json::to_value(&secret).ok(), Some(serde_json::json!("[redacted]")));
        assert!(read(serde_json::json!({ "env": "A", "file": "b" })).is_err());
        assert!(matches!(read(serde_json::json!({ "env": "A" })), Ok(Secret::Elsewhere(Elsewhere::Env(_)))));
    }

    #[test]
    fn a_secret_file_loses_one_newline_and_is_bounded() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let secret = |name: &str| Secret::Elsewhere(Elsewhere::File(name.into())).reveal(dir.path());
        std::fs::write(dir.path().join("a"), "key\r\n").expect("write");
        std::fs::write(dir.path().join("big"), vec![b'x'; (1 << 20) + 1]).expect("write");
        assert_eq!(secret("a").as_deref(), Ok("key"));
        assert!(secret("big").is_err_and(|e| e.contains("1 MiB")));
        assert!(secret("none").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(us in 0u64..10_000_000_000_000, bytes in 0u64..1 << 50) {
            let d = Duration(std::time::Duration::from_micros(us));
            let back = d.to_string().parse::<Duration>().expect("own output");
            prop_assert!(back.0.abs_diff(d.0) < std::time::Duration::from_micros(1));
            let back = Size(bytes).to_string().parse::<Size>().expect("own output");
            prop_assert_eq!(back, Size(bytes));
        }
        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = (text.parse::<Duration>(), text.parse::<Size>(), text.parse::<Percent>());
        }
    }
}
