//! Rules for bodies: reads one ahead, edits it, puts it back. A message that no rule applies to is not touched.

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Body as _;

use super::NAME;
use super::config::{Encoded, Json, LIMIT, MAX_LIMIT, Otherwise, RequestBody, ResponseBody};
use super::json::{Pointer, Tree};
use crate::api::content::{self, Limits};
use crate::contract::metrics::Counter;
use crate::contract::section::Value;
use crate::contract::units::Size;
use crate::contract::{
    Body, Buffered, ConfigError, Fault, Node, Origin, Reason, RequestCx, ResponseCx, Spot, Template,
};

/// Deepest nesting of a value in the configuration.
const MAX_DEPTH: usize = 32;
/// Bytes decoded per byte received: JSON rarely shrinks to less.
const RATIO: u64 = 200;
/// Most bytes that a coding adds to a text.
const FRAME: usize = 1024;

/// Edits of a JSON body.
pub struct Edits {
    template: Option<Shape>,
    merge: Option<Shape>,
    set: Vec<(Pointer, Shape)>,
    remove: Vec<Pointer>,
}

/// A value to build for each request.
enum Shape {
    Fixed(serde_json::Value),
    Text(Template),
    /// From the body as it came.
    Body(Pointer),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl Shape {
    fn read(node: &Node, depth: usize) -> Result<Self, ConfigError> {
        if depth > MAX_DEPTH {
            return Err(ConfigError::at(node.span, format!("the value is nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(match &node.value {
            Value::Str(text) => match text.strip_prefix("${body").and_then(|rest| rest.strip_suffix('}')) {
                Some(at) if at.is_empty() || at.starts_with('/') => Self::Body(pointer(at, node)?),
                _ if text.contains("${") => Self::Text(Template::compile(text, node.span)?),
                _ => Self::Fixed(text.as_str().into()),
            },
            Value::Seq(items) => Self::List(items.iter().map(|i| Self::read(i, depth + 1)).collect::<Result<_, _>>()?),
            Value::Map(members) => {
                let member = |(key, value): &(crate::contract::section::Key, Node)| {
                    Ok((key.name.clone(), Self::read(value, depth + 1)?))
                };
                Self::Map(members.iter().map(member).collect::<Result<_, ConfigError>>()?)
            }
            _ => Self::Fixed(node.to_json()),
        })
    }

    /// The value for this request; `None` if it cannot give one. In a list or a map, such a value is left out.
    fn make<'b>(&self, rq: &RequestCx, body: &Tree<'b>) -> Option<Tree<'b>> {
        Some(match self {
            Self::Fixed(value) => Tree::Made(value.clone()),
            Self::Text(template) => Tree::Made(template.json(rq)?),
            Self::Body(pointer) => body.find(pointer)?,
            Self::List(items) => Tree::List(items.iter().filter_map(|item| item.make(rq, body)).collect()),
            Self::Map(members) => Tree::Object(
                members.iter().filter_map(|(name, value)| Some((name.clone(), value.make(rq, body)?))).collect(),
            ),
        })
    }

    /// As [`Shape::make`] for a merge patch, where what the request cannot give is removed.
    fn patch<'b>(&self, rq: &RequestCx, body: &Tree<'b>) -> Tree<'b> {
        match self {
            Self::Map(members) => {
                Tree::Object(members.iter().map(|(name, value)| (name.clone(), value.patch(rq, body))).collect())
            }
            other => other.make(rq, body).unwrap_or(Tree::Made(serde_json::Value::Null)),
        }
    }
}

fn pointer(text: &str, node: &Node) -> Result<Pointer, ConfigError> {
    Pointer::read(text)
        .map_err(|why| ConfigError::at(node.span, format!("`{text}`: {why}")).help("such as `/items/0/id`"))
}

impl Edits {
    fn read(json: &Spot<Json>) -> Result<Self, ConfigError> {
        let rules = &json.value;
        let template = rules.template.as_ref().map(|node| match &node.value {
            // JSON as text: its texts are templates, so no value can break out of its place.
            Value::Str(text) => {
                let parsed: serde_json::Value = serde_json::from_str(text).map_err(|e| {
                    ConfigError::at(node.span, format!("the template is not JSON: {e}"))
                        .help("expressions stand inside of texts: `{\"user\": \"${user.sub}\"}`")
                })?;
                Shape::read(&node_of(parsed, node), 0)
            }
            _ => Shape::read(node, 0),
        });
        let mut set = Vec::new();
        if let Some(node) = &rules.set {
            if !matches!(node.value, Value::Map(_)) {
                return Err(ConfigError::at(node.span, "a map of JSON pointers and values stands here"));
            }
            for (key, value) in node.entries() {
                let at = Node { span: key.span, value: Value::Null };
                set.push((pointer(&key.name, &at)?, Shape::read(value, 0)?));
            }
        }
        let remove = rules.remove.iter().map(|text| {
            let at = Node { span: text.span, value: Value::Null };
            let found = pointer(&text.value, &at)?;
            if found.is_root() {
                return Err(ConfigError::at(text.span, "the whole body cannot be removed").help("name a part: `/a`"));
            }
            Ok(found)
        });
        let edits = Self {
            template: template.transpose()?,
            merge: rules.merge.as_ref().map(|node| Shape::read(node, 0)).transpose()?,
            set,
            remove: remove.collect::<Result<_, _>>()?,
        };
        if edits.template.is_none() && edits.merge.is_none() && edits.set.is_empty() && edits.remove.is_empty() {
            return Err(
                ConfigError::at(json.span, "there is no rule").help("write `set`, `remove`, `merge` or `template`")
            );
        }
        Ok(edits)
    }

    /// Template, merge, set, remove. `None`: not JSON, or of another shape than the rules.
    fn apply(&self, text: &[u8], rq: &RequestCx) -> Option<Vec<u8>> {
        let body = Tree::read(text)?;
        let mut tree = match &self.template {
            Some(shape) => shape.make(rq, &body)?,
            None => body.clone(),
        };
        if let Some(shape) = &self.merge {
            tree.merge(shape.patch(rq, &body));
        }
        for (pointer, shape) in &self.set {
            let Ok(()) = tree.set(pointer, shape.make(rq, &body)) else { return None };
        }
        for pointer in &self.remove {
            let Ok(()) = tree.set(pointer, None) else { return None };
        }
        let mut out = Vec::with_capacity(text.len() + 256);
        tree.write(&mut out);
        Some(out)
    }
}

/// A parsed value as if it stood in the configuration at this node.
fn node_of(json: serde_json::Value, at: &Node) -> Node {
    use serde_json::Value as J;
    let key = |name| crate::contract::section::Key { span: at.span, name };
    let value = match json {
        J::Null => Value::Null,
        J::Bool(b) => Value::Bool(b),
        J::Number(n) => n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or(f64::MAX)), Value::Int),
        J::String(text) => Value::Str(text),
        J::Array(items) => Value::Seq(items.into_iter().map(|item| node_of(item, at)).collect()),
        J::Object(members) => Value::Map(members.into_iter().map(|(k, v)| (key(k), node_of(v, at))).collect()),
    };
    Node { span: at.span, value }
}

fn limit(limit: Option<&Spot<Size>>) -> Result<usize, ConfigError> {
    let Some(limit) = limit else { return Ok(usize::try_from(LIMIT).unwrap_or(usize::MAX)) };
    if !(1..=MAX_LIMIT).contains(&limit.value.0) {
        return Err(ConfigError::at(limit.span, format!("`limit` is {}", limit.value)).help("from 1B to 256MiB"));
    }
    Ok(usize::try_from(limit.value.0).unwrap_or(usize::MAX))
}

fn is_json(headers: &HeaderMap) -> bool {
    content::media_type(headers).is_some_and(content::is_json)
}

/// Rules for request bodies.
pub struct Inward {
    edits: Edits,
    limit: usize,
    encoded: Encoded,
}

impl Inward {
    pub fn read(config: &RequestBody) -> Result<Self, ConfigError> {
        Ok(Self {
            edits: Edits::read(&config.json)?,
            limit: limit(config.limit.as_ref())?,
            encoded: config.encoded.unwrap_or(Encoded::Decode),
        })
    }

    /// Whether a request is one to edit.
    pub fn covers(&self, rq: &RequestCx) -> bool {
        !rq.dry_run && !rq.body.is_end_stream() && is_json(&rq.headers)
    }

    /// Edits the body of a request.
    pub async fn edit(&self, rq: &mut RequestCx) -> Result<(), Box<Fault>> {
        let refuse = |reason, detail| Box::new(Fault::new(reason).detail(detail).by(NAME));
        let mut codings = content::codings(&rq.headers);
        if self.encoded == Encoded::Refuse {
            codings = codings.filter(|codings| codings.is_empty());
        }
        let codings =
            codings.ok_or_else(|| refuse(Reason::UnsupportedMedia, "the coding of the body is not taken here"))?;
        let limits = Limits {
            size: self.limit as u64,
            ratio: RATIO,
            over: Reason::BodyTooLarge,
            broken: Reason::BadBody,
            by: NAME,
        };
        for coding in codings.into_iter().rev() {
            rq.body = content::decode(std::mem::take(&mut rq.body), coding, limits);
        }
        let read = content::read_ahead(&mut rq.body, self.limit, rq.deadline, Reason::BodyTimeout).await?;
        let Buffered::Whole(text) = read else {
            return Err(refuse(Reason::BodyTooLarge, "the body is larger than what may be edited"));
        };
        let edited = self.edits.apply(&text, rq);
        let edited = edited.ok_or_else(|| refuse(Reason::BadBody, "the body is not JSON of the expected shape"))?;
        content::replace(&mut rq.body, edited).await?;
        content::changed(&mut rq.headers);
        rq.headers.remove(CONTENT_ENCODING);
        Ok(())
    }
}

/// Rules for response bodies.
pub struct Outward {
    edits: Edits,
    limit: usize,
    otherwise: Otherwise,
    passed: Counter,
}

impl Outward {
    pub fn read(config: &ResponseBody, passed: Counter) -> Result<Self, ConfigError> {
        Ok(Self {
            edits: Edits::read(&config.json)?,
            limit: limit(config.limit.as_ref())?,
            otherwise: config.otherwise.unwrap_or(Otherwise::Refuse),
            passed,
        })
    }

    /// Asks the endpoint for what can be edited: the whole, and plain. A part would go past the rules.
    pub fn prepare(headers: &mut HeaderMap) {
        headers.remove(RANGE);
        headers.remove(IF_RANGE);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }

    /// Whether a response is one to edit.
    pub fn covers(&self, rq: &RequestCx, rs: &ResponseCx) -> bool {
        let bare = rs.status.is_informational()
            || matches!(rs.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
        !bare
            && rs.origin != Origin::Fault
            && !matches!(rq.method, Method::HEAD | Method::CONNECT)
            && !rs.body.is_end_stream()
            && is_json(&rs.headers)
    }

    /// The answer to HEAD says nothing about a body that nobody made.
    pub fn describe(rq: &RequestCx, rs: &mut ResponseCx) {
        if rq.method == Method::HEAD && is_json(&rs.headers) {
            content::changed(&mut rs.headers);
        }
    }

    /// Edits the body of a response.
    pub async fn edit(&self, rq: &mut RequestCx, rs: &mut ResponseCx) -> Result<(), Box<Fault>> {
        match self.edited(rq, rs).await? {
            Ok(text) => {
                content::replace(&mut rs.body, text).await?;
                content::changed(&mut rs.headers);
                rs.headers.remove(CONTENT_ENCODING);
                Ok(())
            }
            Err(_) if self.otherwise == Otherwise::Pass => {
                self.passed.inc();
                Ok(())
            }
            Err((reason, detail)) => Err(Box::new(Fault::new(reason).detail(detail).by(NAME))),
        }
    }

    /// The edited text, or why there is none, with the response as it came.
    async fn edited(&self, rq: &mut RequestCx, rs: &mut ResponseCx) -> Result<Edited, Box<Fault>> {
        // An endpoint that answers with a part nobody asked for.
        if rs.status == StatusCode::PARTIAL_CONTENT {
            return Ok(Err((Reason::BodyUnusable, "the endpoint's answer is a part")));
        }
        let Some(codings) = content::codings(&rs.headers) else {
            return Ok(Err((Reason::BodyUnusable, "the coding of the endpoint's body is not known")));
        };
        // A codec's own frame makes a short text longer.
        let limit = self.limit + if codings.is_empty() { 0 } else { FRAME };
        let read = content::read_ahead(&mut rs.body, limit, rq.deadline, Reason::Deadline).await?;
        let Buffered::Whole(text) = read else { return Ok(Err(TOO_LARGE)) };
        let limits = Limits {
            size: self.limit as u64,
            ratio: RATIO,
            over: Reason::ResponseBodyTooLarge,
            broken: Reason::BodyUnusable,
            by: NAME,
        };
        let plain =
            codings.into_iter().rev().fold(Body::full(text), |body, coding| content::decode(body, coding, limits));
        let text = match http_body_util::BodyExt::collect(plain).await {
            Ok(text) => text.to_bytes(),
            Err(fault) if fault.reason == Reason::ResponseBodyTooLarge => return Ok(Err(TOO_LARGE)),
            Err(_) => return Ok(Err((Reason::BodyUnusable, "the endpoint's body is not what its coding says"))),
        };
        Ok(self
            .edits
            .apply(&text, rq)
            .ok_or((Reason::BodyUnusable, "the endpoint's body is not JSON of the expected shape")))
    }
}

type Edited = Result<Vec<u8>, (Reason, &'static str)>;

const TOO_LARGE: (Reason, &str) =
    (Reason::ResponseBodyTooLarge, "the endpoint's body is larger than what may be edited");
