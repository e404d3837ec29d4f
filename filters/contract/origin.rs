//! Origins of web pages as a config names them, for filters that judge what browsers send.

use super::section::{ConfigError, Spot};

/// An origin that may, by itself or with everything below it.
#[derive(Debug)]
pub enum PageOrigin {
    /// `https://shop.example.com`, or `null`.
    Exact(Box<str>),
    /// Scheme with `://`, and the rest from the dot on.
    Below(Box<str>, Box<str>),
}

impl PageOrigin {
    /// `scheme://host[:port]` as browsers write it (RFC 6454 section 6.2), with at most a whole first label as wildcard.
    ///
    /// # Errors
    /// It is none.
    pub fn read(text: &Spot<String>) -> Result<Self, ConfigError> {
        let wrong = || {
            ConfigError::at(text.span, format!("`{}` is not an origin", text.value))
                .help("write `https://shop.example.com`, `https://*.example.com` or `*`, without a path")
        };
        let value = text.value.to_ascii_lowercase();
        if value == "null" {
            return Ok(Self::Exact(value.into()));
        }
        let (scheme, host) = value.split_once("://").ok_or_else(wrong)?;
        let plain = host.strip_prefix("*.").unwrap_or(host);
        if scheme.is_empty() || plain.is_empty() || plain.contains(['/', '*', '@', '?', '#', ' ', ',']) {
            return Err(wrong());
        }
        Ok(match host.strip_prefix('*') {
            Some(below) => Self::Below(format!("{scheme}://").into(), below.into()),
            None => Self::Exact(value.into()),
        })
    }

    /// Whether this is the origin.
    #[must_use]
    pub fn fits(&self, origin: &str) -> bool {
        match self {
            Self::Exact(exact) => origin.eq_ignore_ascii_case(exact),
            Self::Below(scheme, below) => {
                // Labels only: `https://a@evil.test/.example.com` has none of their bytes alone before the dot.
                let label = |l: &str| {
                    !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
                };
                let (Some((head, rest)), Some(end)) =
                    (origin.split_at_checked(scheme.len()), origin.len().checked_sub(below.len()))
                else {
                    return false;
                };
                let cut = end.checked_sub(scheme.len()).and_then(|at| rest.split_at_checked(at));
                cut.is_some_and(|(l, tail)| {
                    head.eq_ignore_ascii_case(scheme) && tail.eq_ignore_ascii_case(below) && label(l)
                })
            }
        }
    }
}
