//! An OpenAPI description (3.0 or 3.1) compiled: its paths as expressions, its operations with a validator for each part.

use std::path::Path;

use http::{HeaderMap, Method, StatusCode};
use jsonschema::Validator;
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use regex::Regex;
use serde_json::Value;

use super::params::{Style, Types};
use super::schema::{self, Folder, Library};
use crate::api::openapi::server_path;
use crate::api::watched;
use crate::contract::Mistake;

/// A description.
pub struct Api {
    paths: Vec<Item>,
}

struct Item {
    regex: Regex,
    names: Vec<String>,
    operations: Vec<(Method, Operation)>,
}

/// What one method of one path takes and gives.
pub struct Operation {
    params: Vec<Param>,
    pub body: Option<Body>,
    responses: Vec<(String, Vec<Media>)>,
}

/// A request body.
pub struct Body {
    pub required: bool,
    media: Vec<Media>,
}

/// A media type and its schema.
pub struct Media {
    range: String,
    pub validator: Option<Validator>,
    pub types: Types,
}

struct Param {
    name: String,
    place: Place,
    required: bool,
    style: Style,
    types: Types,
    validator: Option<Validator>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Path,
    Query,
    Header,
    Cookie,
}

impl Place {
    const fn word(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "headers",
            Self::Cookie => "cookies",
        }
    }
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug)]
pub struct Spot(usize, usize);

/// What a request asks for.
pub enum Found<'a> {
    Operation(Spot, &'a Operation, Vec<(&'a str, String)>),
    OtherMethods(Vec<&'a Method>),
    Nothing,
}

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// A place in the document, with references followed.
struct At<'d> {
    root: &'d Value,
    pointer: String,
    value: &'d Value,
}

impl<'d> At<'d> {
    fn follow(root: &'d Value, pointer: String) -> Result<Self, String> {
        let mut pointer = pointer;
        for _ in 0..16 {
            let value = root.pointer(&pointer).ok_or_else(|| format!("`{pointer}` leads nowhere"))?;
            match value.get("$ref").and_then(Value::as_str) {
                None => return Ok(Self { root, pointer, value }),
                Some(target) => {
                    let local = target
                        .strip_prefix('#')
                        .ok_or_else(|| format!("`{pointer}`: `{target}`: only schemas may stand in other files"))?;
                    pointer = percent_decode_str(local).decode_utf8_lossy().into_owned();
                }
            }
        }
        Err(format!("`{pointer}`: references go round in circles"))
    }

    fn below(&self, token: &str) -> Result<Self, String> {
        Self::follow(self.root, format!("{}/{}", self.pointer, token.replace('~', "~0").replace('/', "~1")))
    }

    fn members(&self, key: &str) -> Vec<String> {
        self.value.get(key).and_then(Value::as_object).map(|m| m.keys().cloned().collect()).unwrap_or_default()
    }
}

impl Api {
    /// Reads and compiles a description.
    pub fn compile(file: &Path, base_path: Option<&str>, folder: &Folder) -> Result<Self, String> {
        let mut document = watched::document(file)?;
        let version = document.get("openapi").and_then(Value::as_str).unwrap_or_default().to_owned();
        if version.starts_with("3.0.") {
            modernise(&mut document);
        } else if !version.starts_with("3.1.") {
            return Err(format!("{}: `openapi: {version}` is neither 3.0 nor 3.1", file.display()));
        }
        let base = match base_path {
            Some(base) => base.to_owned(),
            None => server_path(&document),
        };
        let uri = schema::uri(file);
        let library = Library::of(&uri, document.clone(), folder.clone())?;
        let compiler = Compiler { uri, library };
        let root = At::follow(&document, String::new())?;
        let mut paths = Vec::new();
        for template in root.members("paths") {
            let wrong = |why: String| format!("{}: `{template}`: {why}", file.display());
            let at = root.below("paths").and_then(|paths| paths.below(&template)).map_err(wrong)?;
            let item = compiler.item(&at, base.trim_end_matches('/'), &template).map_err(wrong)?;
            let fixed: Vec<bool> = template.split('/').map(|segment| segment.contains('{')).collect();
            paths.push((fixed, item));
        }
        // Concrete paths are matched before templated ones (OpenAPI 3.1, "Paths Object").
        paths.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Self { paths: paths.into_iter().map(|(_, item)| item).collect() })
    }

    /// Looks a request up.
    pub fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let mut others = Vec::new();
        for (i, item) in self.paths.iter().enumerate() {
            let Some(found) = item.regex.captures(path) else { continue };
            // HEAD is a GET without a body (RFC 9110 section 9.3.2), unless it is described.
            let named = |wanted: &Method| item.operations.iter().position(|(own, _)| own == wanted);
            let at = named(method).or_else(|| (*method == Method::HEAD).then(|| named(&Method::GET)).flatten());
            if let Some(o) = at {
                let values = found.iter().skip(1).map(|m| m.map_or("", |m| m.as_str()));
                let values = values.map(|v| percent_decode_str(v).decode_utf8_lossy().into_owned());
                let captured = item.names.iter().map(String::as_str).zip(values).collect();
                return Found::Operation(Spot(i, o), &item.operations[o].1, captured);
            }
            others.extend(item.operations.iter().map(|(method, _)| method));
        }
        if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
    }

    /// The operation that was found before.
    pub fn operation(&self, Spot(i, o): Spot) -> &Operation {
        &self.paths[i].operations[o].1
    }
}

/// 3.0's own words for what JSON Schema says otherwise.
fn modernise(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(modernise),
        Value::Object(members) => {
            if members.get("nullable").is_some_and(Value::is_boolean) {
                let nullable = members.remove("nullable") == Some(Value::Bool(true));
                if nullable && let Some(Value::String(name)) = members.get("type") {
                    let both = vec![name.as_str().into(), "null".into()];
                    members.insert("type".to_owned(), Value::Array(both));
                    if let Some(Value::Array(allowed)) = members.get_mut("enum")
                        && !allowed.contains(&Value::Null)
                    {
                        allowed.push(Value::Null);
                    }
                }
            }
            for (exclusive, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
                if members.get(exclusive).is_some_and(Value::is_boolean)
                    && members.remove(exclusive) == Some(Value::Bool(true))
                    && let Some(limit) = members.remove(bound)
                {
                    members.insert(exclusive.to_owned(), limit);
                }
            }
            members.values_mut().for_each(modernise);
        }
        _ => {}
    }
}

struct Compiler {
    uri: String,
    library: Library,
}

impl Compiler {
    fn item(&self, at: &At<'_>, base: &str, template: &str) -> Result<Item, String> {
        let (regex, names) = expression(base, template)?;
        let mut operations = Vec::new();
        for method in METHODS {
            if at.value.get(method).is_none() {
                continue;
            }
            let operation = self.operation(at, &at.below(method)?).map_err(|why| format!("{method}: {why}"))?;
            let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).map_err(|e| e.to_string())?;
            operations.push((method, operation));
        }
        Ok(Item { regex, names, operations })
    }

    fn operation(&self, item: &At<'_>, at: &At<'_>) -> Result<Operation, String> {
        let mut params: Vec<Param> = Vec::new();
        // An operation's own parameter takes the place of the path's.
        for place in [item, at] {
            let count = place.value.get("parameters").and_then(Value::as_array).map_or(0, Vec::len);
            for i in 0..count {
                let at = At::follow(place.root, format!("{}/parameters/{i}", place.pointer))?;
                if let Some(param) = self.param(&at)? {
                    params.retain(|old| (old.place, &old.name) != (param.place, &param.name));
                    params.push(param);
                }
            }
        }
        let body = match at.value.get("requestBody") {
            None => None,
            Some(_) => {
                let body = at.below("requestBody")?;
                let required = body.value.get("required") == Some(&Value::Bool(true));
                Some(Body { required, media: self.media(&body)? })
            }
        };
        let mut responses = Vec::new();
        for status in at.members("responses") {
            let response = at.below("responses")?.below(&status)?;
            responses.push((status.to_ascii_uppercase(), self.media(&response)?));
        }
        Ok(Operation { params, body, responses })
    }

    /// The validator of a schema, and the types it asks for.
    fn schema(&self, at: &At<'_>) -> Result<(Option<Validator>, Types), String> {
        let Some(schema) = at.value.get("schema") else { return Ok((None, Types::default())) };
        let pointer = format!("{}/schema", at.pointer);
        // Braces and spaces of a path template cannot stand in a fragment.
        let fragment = utf8_percent_encode(&pointer, schema::PATH);
        let validator =
            self.library.compile(&format!("{}#{fragment}", self.uri)).map_err(|e| format!("`{pointer}`: {e}"))?;
        Ok((Some(validator), Types::of(schema, at.root)))
    }

    fn media(&self, at: &At<'_>) -> Result<Vec<Media>, String> {
        let ranges = at.members("content").into_iter().map(|range| {
            let (validator, types) = self.schema(&at.below("content")?.below(&range)?)?;
            let range = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            Ok(Media { range, validator, types })
        });
        let mut media = ranges.collect::<Result<Vec<_>, String>>()?;
        media.sort_by_key(|media| media.range.matches('*').count());
        Ok(media)
    }

    fn param(&self, at: &At<'_>) -> Result<Option<Param>, String> {
        let text = |key| at.value.get(key).and_then(Value::as_str);
        let name = text("name").ok_or_else(|| format!("`{}` has no name", at.pointer))?;
        let place = match text("in") {
            Some("path") => Place::Path,
            Some("query") => Place::Query,
            Some("header") => Place::Header,
            Some("cookie") => Place::Cookie,
            other => return Err(format!("`{name}` is in `{}`", other.unwrap_or_default())),
        };
        // OpenAPI 3.1, "Parameter Object": these are described elsewhere.
        let elsewhere = ["accept", "content-type", "authorization"].iter().any(|own| name.eq_ignore_ascii_case(own));
        if place == Place::Header && elsewhere {
            return Ok(None);
        }
        let form = matches!(place, Place::Query | Place::Cookie);
        let style = text("style").unwrap_or(if form { "form" } else { "simple" });
        let explode = at.value.get("explode").and_then(Value::as_bool).unwrap_or(style == "form");
        let style = match (style, place) {
            ("simple", Place::Path | Place::Header) | ("form", Place::Query | Place::Cookie) => {
                Style::List { separator: ',', explode }
            }
            ("spaceDelimited", Place::Query) => Style::List { separator: ' ', explode },
            ("pipeDelimited", Place::Query) => Style::List { separator: '|', explode },
            ("deepObject", Place::Query) => Style::Deep,
            (style, _) => return Err(format!("`{name}`: style `{style}` is not supported in {}", place.word())),
        };
        let (validator, types) = self.schema(at)?;
        let required = at.value.get("required") == Some(&Value::Bool(true)) || place == Place::Path;
        let name = if place == Place::Header { name.to_ascii_lowercase() } else { name.to_owned() };
        Ok(Some(Param { name, place, required, style, types, validator }))
    }
}

/// A path template as an expression, and the names of its groups.
fn expression(base: &str, template: &str) -> Result<(Regex, Vec<String>), String> {
    let mut pattern = format!("^{}", regex::escape(base));
    let mut names = Vec::new();
    let mut rest = template;
    while let Some((literal, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or("`{` is not closed")?;
        pattern += &regex::escape(literal);
        pattern += "([^/]+)";
        names.push(name.to_owned());
        rest = after;
    }
    pattern += &regex::escape(rest);
    pattern.push('$');
    Regex::new(&pattern).map(|regex| (regex, names)).map_err(|e| e.to_string())
}

fn covering<'m>(media: &'m [Media], media_type: &str) -> Option<&'m Media> {
    let wanted = media_type.to_ascii_lowercase();
    media.iter().find(|media| {
        media.range == wanted
            || media.range == "*/*"
            || media.range.strip_suffix('*').is_some_and(|kind| kind.ends_with('/') && wanted.starts_with(kind))
    })
}

impl Body {
    /// What is said about a media type; `None`: it is not taken.
    pub fn media(&self, media_type: &str) -> Option<&Media> {
        covering(&self.media, media_type)
    }
}

impl Operation {
    /// What is said about an answer: `None`: nothing of this status; `Some(None)`: nothing of this media type.
    pub fn response(&self, status: StatusCode, media_type: Option<&str>) -> Option<Option<&Media>> {
        let exact = status.as_str();
        let class = format!("{}XX", &exact[..1]);
        let found = [exact, class.as_str(), "DEFAULT"]
            .iter()
            .find_map(|wanted| self.responses.iter().find(|(own, _)| own == wanted));
        let (_, media) = found?;
        Some(media_type.and_then(|media_type| covering(media, media_type)))
    }

    /// Checks everything but the body.
    pub fn check(
        &self,
        captured: &[(&str, String)],
        pairs: &[(String, String)],
        headers: &HeaderMap,
        found: &mut Vec<Mistake>,
    ) {
        for param in &self.params {
            let value = match param.place {
                Place::Path => {
                    let text = captured.iter().find(|(name, _)| *name == param.name).map(|(_, text)| text);
                    text.map(|text| param.types.value(text, param.style))
                }
                Place::Query => param.types.in_query(&param.name, pairs, param.style),
                Place::Header => {
                    let lines: Vec<&str> =
                        headers.get_all(param.name.as_str()).iter().filter_map(|v| v.to_str().ok()).collect();
                    (!lines.is_empty()).then(|| param.types.value(&lines.join(","), param.style))
                }
                Place::Cookie => cookie(headers, &param.name).map(|text| param.types.value(text, param.style)),
            };
            let pointer = format!("{}.{}", param.place.word(), param.name);
            match (value, &param.validator) {
                (Some(value), Some(validator)) => schema::mistakes(validator, &value, &pointer, found),
                (None, _) if param.required => {
                    found.push(Mistake { pointer, detail: "is missing".to_owned() });
                }
                _ => {}
            }
        }
    }
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(http::header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut crumbs = lines.flat_map(|line| line.split(';')).filter_map(|crumb| crumb.trim().split_once('='));
    crumbs.find(|(own, _)| *own == name).map(|(_, value)| value)
}
