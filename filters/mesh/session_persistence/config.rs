//! Keys of `sessionPersistence`, named as in Gateway API's GEP-1619.

use std::time::Duration;

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::place::Place;
use crate::contract::section::{ConfigError, Node, Span, Spot};
use crate::contract::units::{self, Secret};

/// The section. Exactly one of `cookie` and `header`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Name of the cookie that keeps the session.
    pub cookie: Option<Spot<String>>,
    /// Name of a header field that keeps it instead: callers send back what they got.
    pub header: Option<Spot<String>>,
    /// Longest life of a session. Default no limit.
    pub absolute_timeout: Option<Spot<units::Duration>>,
    /// How long a session lives without a request. Default no limit.
    pub idle_timeout: Option<Spot<units::Duration>>,
    /// Whether browsers forget the cookie when they end (`session`, the default), or keep it for `absoluteTimeout`.
    #[schemars(extend("default" = "session"))]
    pub lifetime: Option<Spot<Lifetime>>,
    /// What sessions are sealed with, 32 bytes or more. Default: made at start, so that a session ends with the process
    /// and another instance does not know it.
    pub secret: Option<Spot<Secret>>,
    /// Secrets of before, which still open sessions.
    #[serde(default)]
    pub previous_secrets: Vec<Spot<Secret>>,
}

/// How long a browser keeps the cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Lifetime {
    /// Until it ends.
    #[default]
    Session,
    /// As long as the session may live.
    Permanent,
}

/// What the section means.
#[derive(Debug)]
pub struct Settings {
    /// Where a session stands.
    pub place: Place,
    /// What a new cookie begins with and ends with, `NAME=` and the attributes; empty for a header.
    pub around: (String, String),
    /// See [`Section::absolute_timeout`].
    pub absolute: Option<Duration>,
    /// See [`Section::idle_timeout`].
    pub idle: Option<Duration>,
    /// Whether the cookie says how long it is good.
    pub permanent: bool,
}

impl Section {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn settings(&self, node: &Node) -> Result<Settings, ConfigError> {
        let (place, name) = match (&self.cookie, &self.header) {
            (Some(cookie), None) => {
                // RFC 6265 section 4.1.1: a token, as the name of a field is.
                let known = HeaderName::try_from(cookie.as_str());
                known.map_err(|_| {
                    ConfigError::at(cookie.span, format!("`{}` is not the name of a cookie", cookie.value))
                        .help("letters, digits and `-`, such as `app-node`")
                })?;
                (Place::Cookie(cookie.as_str().into()), Some(cookie))
            }
            (None, Some(header)) => {
                let name = HeaderName::try_from(header.as_str()).map_err(|_| {
                    ConfigError::at(header.span, format!("`{}` is not the name of a header field", header.value))
                        .help("letters, digits and `-`, such as `x-session`")
                })?;
                (Place::Header(name), None)
            }
            _ => {
                return Err(ConfigError::at(node.span, "a session is kept in either `cookie` or `header`")
                    .help("write `cookie: NAME` for browsers, or `header: NAME`"));
            }
        };
        let absolute = time(self.absolute_timeout.as_ref())?;
        let idle = time(self.idle_timeout.as_ref())?;
        if let (Some(absolute), Some(shorter), Some(at)) = (absolute, idle, &self.idle_timeout)
            && shorter >= absolute
        {
            return Err(ConfigError::at(at.span, "`idleTimeout` never acts: the session ends before")
                .help("make it shorter than `absoluteTimeout`, or remove it"));
        }
        let permanent = self.lifetime.as_ref().filter(|lifetime| lifetime.value == Lifetime::Permanent);
        if let Some(lifetime) = permanent
            && (name.is_none() || absolute.is_none())
        {
            return Err(ConfigError::at(lifetime.span, "only a cookie with an `absoluteTimeout` can be permanent")
                .help("add `absoluteTimeout`, or remove `lifetime`"));
        }
        let around = name.map_or_else(Default::default, |name| {
            (format!("{}=", name.value), "; Path=/; HttpOnly; SameSite=Lax".to_owned())
        });
        Ok(Settings { place, around, absolute, idle, permanent: permanent.is_some() })
    }
}

fn time(limit: Option<&Spot<units::Duration>>) -> Result<Option<Duration>, ConfigError> {
    let too_short = |span: Span| {
        ConfigError::at(span, "a session lives for a second or longer").help("leave the key out for no limit")
    };
    match limit {
        Some(limit) if limit.value.0 < Duration::from_secs(1) => Err(too_short(limit.span)),
        limit => Ok(limit.map(|limit| limit.value.0)),
    }
}
