//! Single cookies of a request, and attributes of the cookies that a service sets. Pure.

use std::fmt::Write as _;

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS};

use super::config::{Cookies, SameSite, SetCookie};
use super::pairs;
use crate::contract::{ConfigError, RequestCx, Spot, Template};

/// What a cookie's value cannot have (RFC 6265 section 4.1.1), and the sign of the encoding itself.
const VALUE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b',').add(b';').add(b'\\').add(b'%');

/// Edits of `cookie`.
pub struct Inward {
    set: Vec<(String, Template)>,
    remove: Vec<String>,
}

impl Inward {
    pub fn read(config: Cookies) -> Result<Self, ConfigError> {
        let keys = config.set.as_ref().map_or(&[][..], crate::contract::Node::entries);
        for (key, _) in keys {
            named(&key.name, key.span)?;
        }
        for name in &config.remove {
            named(&name.value, name.span)?;
        }
        Ok(Self {
            set: pairs(config.set.as_ref())?,
            remove: config.remove.into_iter().map(|name| name.value).collect(),
        })
    }

    /// The values to set: they see the request before any edit.
    pub fn values(&self, rq: &RequestCx) -> Vec<Option<String>> {
        self.set.iter().map(|(_, template)| template.encoded(rq, VALUE)).collect()
    }

    /// Set (in the place of the first of that name), then remove. Others keep their bytes and their order.
    pub fn apply(&self, headers: &mut HeaderMap, values: Vec<Option<String>>) {
        let mut crumbs: Vec<Vec<u8>> = headers
            .get_all(COOKIE)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b';'))
            .map(|crumb| crumb.trim_ascii().to_vec())
            .filter(|crumb| !crumb.is_empty())
            .collect();
        for ((name, _), value) in self.set.iter().zip(values) {
            let at = crumbs.iter().position(|crumb| is_named(crumb, name)).unwrap_or(crumbs.len());
            crumbs.retain(|crumb| !is_named(crumb, name));
            if let Some(value) = value {
                crumbs.insert(at.min(crumbs.len()), format!("{name}={value}").into_bytes());
            }
        }
        crumbs.retain(|crumb| !self.remove.iter().any(|name| is_named(crumb, name)));
        match HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            Ok(value) if !crumbs.is_empty() => {
                headers.insert(COOKIE, value);
            }
            _ => {
                headers.remove(COOKIE);
            }
        }
    }
}

fn is_named(crumb: &[u8], name: &str) -> bool {
    crumb.split(|b| *b == b'=').next().is_some_and(|own| own.trim_ascii() == name.as_bytes())
}

fn named(name: &str, span: crate::contract::Span) -> Result<(), ConfigError> {
    let token = |b: u8| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(
            ConfigError::at(span, format!("`{name}` is not the name of a cookie")).help("letters, digits, `-`, `_`")
        );
    }
    Ok(())
}

/// Edits of `set-cookie`.
pub struct Outward(Vec<SetCookie>);

impl Outward {
    pub fn read(config: Vec<Spot<SetCookie>>) -> Result<Self, ConfigError> {
        for rule in &config {
            let SetCookie { name, remove, secure, http_only, same_site, domain, path, max_age } = &rule.value;
            if name != "*" {
                named(name, rule.span)?;
            }
            let attributes = secure.is_some()
                || http_only.is_some()
                || same_site.is_some()
                || domain.is_some()
                || path.is_some()
                || max_age.is_some();
            if *remove == attributes {
                return Err(ConfigError::at(rule.span, "a cookie is either removed or given attributes")
                    .help("write `remove: true`, or some of secure, httpOnly, sameSite, domain, path, maxAge"));
            }
            if *same_site == Some(SameSite::None) && *secure != Some(true) {
                return Err(ConfigError::at(rule.span, "browsers refuse `sameSite: none` without `secure`")
                    .help("add `secure: true`"));
            }
            for text in [domain, path].into_iter().flatten() {
                if !text.bytes().all(|b| b.is_ascii_graphic() && b != b';') {
                    return Err(
                        ConfigError::at(rule.span, format!("`{text}` cannot stand in a cookie")).help("plain ASCII")
                    );
                }
            }
        }
        Ok(Self(config.into_iter().map(|rule| rule.value).collect()))
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each rule in its order, to each cookie of its name.
    pub fn apply(&self, headers: &mut HeaderMap) {
        if !headers.contains_key(SET_COOKIE) {
            return;
        }
        let old: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().cloned().collect();
        headers.remove(SET_COOKIE);
        for value in old {
            if let Some(value) = self.edited(value) {
                headers.append(SET_COOKIE, value);
            }
        }
    }

    fn edited(&self, mut value: HeaderValue) -> Option<HeaderValue> {
        for rule in &self.0 {
            let Ok(text) = value.to_str() else { return Some(value) };
            let name = text.split(['=', ';']).next().unwrap_or_default().trim();
            if rule.name != "*" && rule.name != name {
                continue;
            }
            if rule.remove {
                return None;
            }
            value = HeaderValue::try_from(with_attributes(text, rule)).unwrap_or(value);
        }
        Some(value)
    }
}

fn with_attributes(cookie: &str, rule: &SetCookie) -> String {
    let mut parts = cookie.split(';').map(str::trim);
    let mut out = parts.next().unwrap_or_default().to_owned();
    let replaced = |attribute: &str| match attribute.to_ascii_lowercase().as_str() {
        "secure" => rule.secure.is_some(),
        "httponly" => rule.http_only.is_some(),
        "samesite" => rule.same_site.is_some(),
        "domain" => rule.domain.is_some(),
        "path" => rule.path.is_some(),
        // Max-Age wins over Expires (RFC 6265 section 5.3), but not every reader knows.
        "max-age" | "expires" => rule.max_age.is_some(),
        _ => false,
    };
    for part in parts.filter(|part| !part.is_empty()) {
        if !replaced(part.split('=').next().unwrap_or_default().trim()) {
            let _ = write!(out, "; {part}");
        }
    }
    for (name, value) in [("Domain", &rule.domain), ("Path", &rule.path)] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            let _ = write!(out, "; {name}={value}");
        }
    }
    if let Some(age) = rule.max_age {
        let _ = write!(out, "; Max-Age={}", age.0.as_secs());
    }
    if let Some(site) = rule.same_site {
        let site = match site {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None => "None",
        };
        let _ = write!(out, "; SameSite={site}");
    }
    for (name, value) in [("Secure", rule.secure), ("HttpOnly", rule.http_only)] {
        if value == Some(true) {
            let _ = write!(out, "; {name}");
        }
    }
    out
}
