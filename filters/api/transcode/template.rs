//! Path templates of `google.api.http` (its grammar is written in google/api/http.proto). Pure.

use std::cmp::Ordering;

use percent_encoding::percent_decode_str;

/// A compiled path template.
#[derive(Debug, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
    captures: Vec<Capture>,
    verb: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// `*`: one segment.
    One,
    /// `**`: the rest, maybe nothing.
    Rest,
}

/// A variable: the field it sets, and the segments it stands for.
#[derive(Debug, PartialEq, Eq)]
struct Capture {
    field: String,
    from: usize,
    to: usize,
}

/// A captured value: the field path and its text.
pub type Captured = (String, String);

impl Template {
    /// Reads one; the error says what is wrong.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut rest = text.strip_prefix('/').ok_or("it does not begin with `/`")?;
        let mut template = Self { segments: Vec::new(), captures: Vec::new(), verb: None };
        loop {
            if let Some(inner) = rest.strip_prefix('{') {
                let (variable, after) = inner.split_once('}').ok_or("`{` is not closed")?;
                let (field, segments) = variable.split_once('=').unwrap_or((variable, "*"));
                if field.is_empty() || !field.split('.').all(is_identifier) {
                    return Err(format!("`{field}` is not a field path"));
                }
                if template.captures.iter().any(|c| c.field == field) {
                    return Err(format!("`{field}` is captured twice"));
                }
                let from = template.segments.len();
                for segment in segments.split('/') {
                    template.push(segment)?;
                }
                template.captures.push(Capture { field: field.to_owned(), from, to: template.segments.len() });
                rest = after;
            } else {
                let end = rest.find(['/', ':']).unwrap_or(rest.len());
                template.push(&rest[..end])?;
                rest = &rest[end..];
            }
            match rest.chars().next() {
                None => return Ok(template),
                Some('/') => rest = &rest[1..],
                Some(':') => {
                    let verb = &rest[1..];
                    if verb.is_empty() || verb.contains(['/', '{', '}', '*']) {
                        return Err(format!("`{verb}` is not a verb"));
                    }
                    template.verb = Some(verb.to_owned());
                    return Ok(template);
                }
                Some(_) => return Err("a segment follows a variable without `/`".to_owned()),
            }
        }
    }

    fn push(&mut self, text: &str) -> Result<(), String> {
        if self.segments.contains(&Segment::Rest) {
            return Err("`**` is the last segment".to_owned());
        }
        self.segments.push(match text {
            "*" => Segment::One,
            "**" => Segment::Rest,
            "" => return Err("a segment is empty".to_owned()),
            text if text.contains(['*', '{', '}', '=']) => return Err(format!("`{text}` is not a segment")),
            text => Segment::Literal(text.to_owned()),
        });
        Ok(())
    }

    /// The fields it captures.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.captures.iter().map(|capture| capture.field.as_str())
    }

    /// The values of its variables, if it covers a path.
    pub fn captures(&self, path: &str) -> Option<Vec<Captured>> {
        let path = path.strip_prefix('/')?;
        let path = match &self.verb {
            Some(verb) => path.strip_suffix(verb.as_str())?.strip_suffix(':')?,
            None => path,
        };
        let parts: Vec<&str> = path.split('/').collect();
        let open = self.segments.last() == Some(&Segment::Rest);
        let fixed = self.segments.len() - usize::from(open);
        if parts.len() < fixed || (!open && parts.len() > fixed) {
            return None;
        }
        let fits = self.segments.iter().zip(&parts).all(|(segment, part)| match segment {
            Segment::Literal(own) => own == part,
            Segment::One => !part.is_empty(),
            Segment::Rest => true,
        });
        if !fits {
            return None;
        }
        let value = |capture: &Capture| {
            let to = if open && capture.to == self.segments.len() { parts.len() } else { capture.to };
            let single = capture.to == capture.from + 1 && !(open && capture.to == self.segments.len());
            let decoded: Option<Vec<String>> =
                parts.get(capture.from..to)?.iter().map(|part| decoded(part, single)).collect();
            Some((capture.field.clone(), decoded?.join("/")))
        };
        self.captures.iter().map(value).collect()
    }

    /// The more exact first: of two that cover a path, it is the one that is meant.
    pub fn exactness(&self, other: &Self) -> Ordering {
        let rank = |segment: Option<&Segment>| match segment {
            Some(Segment::Literal(_)) => 0,
            Some(Segment::One) => 1,
            Some(Segment::Rest) => 3,
            None => 2,
        };
        let longest = self.segments.len().max(other.segments.len());
        let by_segment = (0..longest).map(|i| rank(self.segments.get(i)).cmp(&rank(other.segments.get(i))));
        by_segment.fold(Ordering::Equal, Ordering::then).then(other.verb.is_some().cmp(&self.verb.is_some()))
    }
}

fn is_identifier(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

/// Of a single segment everything is decoded; of several, not the slash, which would move their borders.
fn decoded(part: &str, single: bool) -> Option<String> {
    if single {
        return percent_decode_str(part).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    }
    let kept = part.replace("%2F", "%252F").replace("%2f", "%252f");
    percent_decode_str(&kept).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn captured(template: &str, path: &str) -> Option<String> {
        let found = Template::read(template).unwrap_or_else(|e| panic!("{template}: {e}")).captures(path)?;
        Some(found.iter().map(|(field, value)| format!("{field}={value}")).collect::<Vec<_>>().join("&"))
    }

    #[test]
    fn templates_capture_what_they_cover() {
        for (template, path, found) in [
            ("/v1/orders", "/v1/orders", Some("")),
            ("/v1/orders", "/v1/orders/", None),
            ("/v1/orders/{id}", "/v1/orders/7", Some("id=7")),
            ("/v1/orders/{id}", "/v1/orders/a%20b%2Fc", Some("id=a b/c")),
            ("/v1/orders/{id}", "/v1/orders/", None),
            ("/v1/orders/{id}", "/v1/orders/7/8", None),
            ("/v1/{name=shelves/*}", "/v1/shelves/1", Some("name=shelves/1")),
            ("/v1/{name=shelves/*}/books/{book.id}", "/v1/shelves/1/books/2", Some("name=shelves/1&book.id=2")),
            ("/v1/{name=**}", "/v1/a/b%2Fc/d%20e", Some("name=a/b%2Fc/d e")),
            ("/v1/{name=a/**}", "/v1/a", Some("name=a")),
            ("/v1/{name=**}", "/v1/", Some("name=")),
            ("/v1/*/x", "/v1/any/x", Some("")),
            ("/v1/orders/{id}:cancel", "/v1/orders/7:cancel", Some("id=7")),
            ("/v1/orders/{id}:cancel", "/v1/orders/7", None),
            ("/v1/orders/{id}", "/v1/orders/%ff", None),
        ] {
            assert_eq!(captured(template, path).as_deref(), found, "{template} {path}");
        }
    }

    #[test]
    fn bad_templates_are_told() {
        for bad in [
            "", "v1", "/", "/a//b", "/{", "/{}", "/{a}b", "/{a.}", "/{1a}", "/{a}/{a}", "/**/a", "/a:", "/a:b/c",
            "/a*", "/{a={b}}",
        ] {
            assert!(Template::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_exact_one_is_asked_first() {
        let mut all: Vec<Template> = ["/v1/{a=**}", "/v1/{a}", "/v1/mine", "/v1/{a}:do", "/{b}/mine"]
            .into_iter()
            .map(|t| Template::read(t).expect("a template"))
            .collect();
        all.sort_by(Template::exactness);
        let order: Vec<Option<usize>> = ["/v1/mine", "/v1/x:do", "/v1/x", "/v1/x/y", "/v2/mine"]
            .into_iter()
            .map(|path| all.iter().position(|t| t.captures(path).is_some()))
            .collect();
        assert_eq!(order, [Some(0), Some(1), Some(2), Some(3), Some(4)]);
    }

    proptest! {
        #[test]
        fn no_text_panics(template in "[/{}a*=:.]{0,12}", path in "/[a/%2F:]{0,10}") {
            if let Ok(template) = Template::read(&template) {
                let _ = template.captures(&path);
            }
        }
    }
}
