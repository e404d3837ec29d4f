//! The pure part: which coding a caller wants, and which media types are worth it.

use crate::api::content::Coding;

/// The coding to use for this `accept-encoding`, all its lines joined by commas (RFC 9110 section 12.5.3). The caller's
/// weights decide, then our order. `None`: the content as it is.
pub fn choose(accept: &str, ours: &[Coding]) -> Option<Coding> {
    let mut star = None;
    let mut asked: [Option<u16>; 4] = [None; 4];
    let mut identity = None;
    for item in accept.split(',').take(MAX_ITEMS) {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            continue;
        }
        let Some(weight) = parts.next().map_or(Some(1000), weight) else { continue };
        if name == "*" {
            star = star.or(Some(weight));
        } else if name.eq_ignore_ascii_case("identity") {
            identity = identity.or(Some(weight));
        } else if let Some(coding) = Coding::named(name) {
            let slot = &mut asked[coding as usize];
            *slot = slot.or(Some(weight));
        }
    }
    let wanted = |coding: Coding| asked[coding as usize].or(star).unwrap_or(0);
    let mut best: Option<(Coding, u16)> = None;
    for &coding in ours {
        let weight = wanted(coding);
        if weight > best.map_or(0, |(_, w)| w) {
            best = Some((coding, weight));
        }
    }
    // A caller that would rather have it plain gets it plain.
    best.filter(|(_, weight)| identity.is_none_or(|plain| *weight >= plain)).map(|(coding, _)| coding)
}

/// Items of a field that are looked at: nobody honest lists more.
const MAX_ITEMS: usize = 32;

/// `q=0.5` in thousandths (RFC 9110 section 12.4.2). `None` if it is none.
fn weight(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    let value = value.trim();
    if !name.trim().eq_ignore_ascii_case("q") || value.is_empty() || value.len() > 5 {
        return None;
    }
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut thousandths = match whole {
        "0" => 0,
        "1" => 1000,
        _ => return None,
    };
    for (digit, scale) in fraction.bytes().zip([100, 10, 1]) {
        thousandths += u16::from(digit - b'0') * scale;
    }
    (thousandths <= 1000).then_some(thousandths)
}

/// Media types by name, by kind (`text/*`) and by suffix (`+json`).
pub enum Type {
    Exact(Box<str>),
    Kind(Box<str>),
    Suffix(Box<str>),
}

impl Type {
    /// Reads one; `None` if it is none.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let token =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
        if let Some(suffix) = text.strip_prefix('+') {
            return token(suffix).then(|| Self::Suffix(text.as_str().into()));
        }
        let (kind, sub) = text.split_once('/')?;
        match (token(kind), sub) {
            (true, "*") => Some(Self::Kind(format!("{kind}/").into())),
            (true, sub) if token(sub) => Some(Self::Exact(text.as_str().into())),
            _ => None,
        }
    }

    /// Whether it covers a type, which is written in any case.
    pub fn covers(&self, media_type: &str) -> bool {
        let bytes = media_type.as_bytes();
        let part =
            |range: Option<&[u8]>, own: &str| range.is_some_and(|part| part.eq_ignore_ascii_case(own.as_bytes()));
        match self {
            Self::Exact(own) => part(Some(bytes), own),
            Self::Kind(own) => part(bytes.get(..own.len()), own),
            Self::Suffix(own) => part(bytes.len().checked_sub(own.len()).and_then(|at| bytes.get(at..)), own),
        }
    }
}

/// What is never encoded, whatever the configuration says: streams of events must not wait for a codec, and gRPC has
/// codings of its own inside.
pub fn is_taboo(media_type: &str) -> bool {
    let lower = media_type.to_ascii_lowercase();
    lower == "text/event-stream" || lower.starts_with("application/grpc")
}
