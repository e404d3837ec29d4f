//! Field names of responses, read once: endpoints send the same names, in the same spelling, in every answer.

use std::cell::RefCell;

use http::header::{self, HeaderName};

/// What a field means to the reader of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `content-length`.
    Length,
    /// `transfer-encoding`.
    Coding,
    /// `upgrade`.
    Upgrade,
    /// Belongs to the connection (RFC 9110 section 7.6.1).
    Hop,
    /// Is passed on.
    Plain,
}

impl Kind {
    fn of(name: &HeaderName) -> Self {
        match *name {
            header::CONTENT_LENGTH => Self::Length,
            header::TRANSFER_ENCODING => Self::Coding,
            header::UPGRADE => Self::Upgrade,
            header::CONNECTION | header::TE => Self::Hop,
            _ if matches!(name.as_str(), "keep-alive" | "proxy-connection") => Self::Hop,
            _ => Self::Plain,
        }
    }
}

struct Known {
    /// As the endpoint spells it.
    raw: Box<[u8]>,
    name: HeaderName,
    kind: Kind,
}

/// Slots: more than the names of one service's answers, few enough to stay in the cache.
const SLOTS: usize = 64;
/// Longer names are read anew each time, which bounds what is kept.
const LONGEST: usize = 48;

thread_local! {
    /// Names this thread read last, by a cheap hash of their bytes. A peer that invents names only makes them be read.
    static KNOWN: RefCell<[Option<Known>; SLOTS]> = const { RefCell::new([const { None }; SLOTS]) };
}

/// The name in these bytes; `None` if they are none.
pub(super) fn name(raw: &[u8]) -> Option<(HeaderName, Kind)> {
    let [first, .., last] = raw else { return read(raw) };
    if raw.len() > LONGEST {
        return read(raw);
    }
    let middle = usize::from(raw[raw.len() / 2]);
    let slot = (raw.len() ^ usize::from(*first) ^ middle << 1 ^ usize::from(*last) << 2) % SLOTS;
    KNOWN.with_borrow_mut(|known| {
        let known = &mut known[slot];
        if let Some(known) = known
            && *known.raw == *raw
        {
            return Some((known.name.clone(), known.kind));
        }
        let (name, kind) = read(raw)?;
        *known = Some(Known { raw: raw.into(), name: name.clone(), kind });
        Some((name, kind))
    })
}

fn read(raw: &[u8]) -> Option<(HeaderName, Kind)> {
    let name = HeaderName::from_bytes(raw).ok()?;
    let kind = Kind::of(&name);
    Some((name, kind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever was read before, a name is what the bytes say.
        #[test]
        fn a_name_is_what_its_bytes_say(
            names in proptest::collection::vec("(?i)(content-(length|type)|x-[a-z]{0,3}|te|upgrade|keep-alive|[ -~]{0,4})", 1..60),
        ) {
            for raw in &names {
                let read = name(raw.as_bytes());
                let expected = HeaderName::from_bytes(raw.as_bytes()).ok();
                prop_assert_eq!(read.as_ref().map(|(name, _)| name), expected.as_ref(), "{}", raw);
                prop_assert_eq!(read.map(|(_, kind)| kind), expected.map(|name| Kind::of(&name)), "{}", raw);
            }
        }
    }

    #[test]
    fn what_belongs_to_the_connection_is_known_in_any_spelling() {
        for (raw, kind) in [
            ("Content-Length", Kind::Length),
            ("TRANSFER-ENCODING", Kind::Coding),
            ("Upgrade", Kind::Upgrade),
            ("Connection", Kind::Hop),
            ("Keep-Alive", Kind::Hop),
            ("Proxy-Connection", Kind::Hop),
            ("TE", Kind::Hop),
            ("Content-Type", Kind::Plain),
        ] {
            // Read, and then known.
            for _ in 0..2 {
                let (name, found) = name(raw.as_bytes()).expect("a name");
                assert_eq!((name.as_str(), found), (raw.to_ascii_lowercase().as_str(), kind));
            }
        }
    }
}
