//! Path rewriting, shared by redirects and the transform filter. Pure.

use std::borrow::Cow;

use bytes::Bytes;
use http::uri::{InvalidUri, PathAndQuery};

/// Replaces a prefix of whole segments, as the Gateway API's `ReplacePrefixMatch` does. Slashes at the seam are never
/// doubled or lost: `/foo` to `/bar` makes `/foo/x` into `/bar/x`, and `/foo/` into `/bar/`.
///
/// A path that does not lie under the prefix is returned as it is.
#[must_use]
pub fn replace_prefix<'p>(path: &'p str, prefix: &str, replacement: &str) -> Cow<'p, str> {
    let prefix = prefix.trim_end_matches('/');
    let rest = match path.strip_prefix(prefix) {
        // Prefix `/` covers the whole of path `/`.
        Some("/") if prefix.is_empty() => "",
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => return Cow::Borrowed(path),
    };
    let slash = if replacement.starts_with('/') { "" } else { "/" };
    let replacement = if rest.is_empty() { replacement } else { replacement.trim_end_matches('/') };
    match (replacement, rest) {
        ("", "") => Cow::Borrowed("/"),
        ("", rest) => Cow::Owned(rest.to_owned()),
        _ => Cow::Owned([slash, replacement, rest].concat()),
    }
}

/// The target with another path and the same query. A path of its own query keeps that and drops the target's.
///
/// # Errors
/// The path has bytes no URI may have.
pub fn with_path(target: &PathAndQuery, path: &str) -> Result<PathAndQuery, InvalidUri> {
    let text = match target.query() {
        Some(query) if !path.contains('?') => [path, "?", query].concat(),
        _ => path.to_owned(),
    };
    PathAndQuery::from_maybe_shared(Bytes::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the Gateway API's `HTTPPathModifier`, and its corners.
    #[test]
    fn prefixes_are_replaced_by_segment() {
        for (path, prefix, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/", "/foo", "/xyz/", "/xyz/"),
            ("/foo", "/foo", "/xyz/", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/x", "/foo", "/", "/x"),
            ("/foo/x", "/foo", "bar", "/bar/x"),
            ("/foobar", "/foo", "/xyz", "/foobar"),
            ("/other", "/foo", "/xyz", "/other"),
            ("/", "/", "/xyz", "/xyz"),
            ("/a", "/", "/xyz", "/xyz/a"),
            ("/a/", "/", "/xyz/", "/xyz/a/"),
            ("/a", "/", "/", "/a"),
        ] {
            assert_eq!(replace_prefix(path, prefix, replacement), expected, "{path} {prefix} {replacement}");
        }
    }

    #[test]
    fn a_new_path_keeps_the_query() {
        let target = PathAndQuery::from_static("/a?x=1");
        assert_eq!(with_path(&target, "/b").unwrap(), "/b?x=1");
        assert_eq!(with_path(&target, "/b?y=2").unwrap(), "/b?y=2");
        assert_eq!(with_path(&PathAndQuery::from_static("/a"), "/b").unwrap(), "/b");
        assert!(with_path(&target, "/b c").is_err());
    }
}
