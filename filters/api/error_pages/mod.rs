//! `errorPages`: bodies of your own for failures, in the form that the client prefers.

mod config;
mod core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use self::core::{Escape, Facts, NAMES, Template, Which};
use crate::api::accept::prefers_html;
use crate::contract::filter::{Filter, Needs, Step};
use crate::contract::section::{Value, suggest};
use crate::contract::{
    Body, Build, ConfigError, Entry, Node, Origin, Phase, Reason, RequestCx, ResponseCx, Role, Span,
};
use config::{File, Page, Whose};

const NAME: &str = "errorPages";
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// Largest page.
const MAX_PAGE: u64 = 1 << 20;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Bodies of your own for failures, HTML or JSON as the client prefers",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Vec<Page>>(),
    role: Role::Api { phase: Phase::Encode, implied: |_, _| false, build },
};

struct Pages(Vec<Compiled>);

struct Compiled {
    at: Vec<Which>,
    whose: Whose,
    html: Option<Template>,
    json: Option<(HeaderValue, Template)>,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let node = node.expect("errorPages is never implied");
    let pages: Vec<Node> = node.read()?;
    if pages.is_empty() {
        return Err(ConfigError::at(node.span, "there is no page").help("write `[{ at: [5xx], html: ... }]`"));
    }
    Ok(Arc::new(Pages(pages.iter().map(|page| compile(page, build)).collect::<Result<_, _>>()?)))
}

fn compile(node: &Node, build: &Build<'_>) -> Result<Compiled, ConfigError> {
    let page: Page = node.read()?;
    if page.at.is_empty() {
        return Err(ConfigError::at(node.span, "the page is for no failure").help("such as `at: [404, 5xx]`"));
    }
    if page.html.is_none() && page.json.is_none() {
        return Err(ConfigError::at(node.span, "the page has no text").help("add `html` or `json`"));
    }
    let json = page.json.as_ref().map(|json| template(json, Escape::Json, build)).transpose()?;
    let kind = match &page.json_type {
        None => HeaderValue::from_static("application/json"),
        Some(kind) if json.is_none() => {
            return Err(ConfigError::at(kind.span, "there is no `json` of this type").help("add `json`"));
        }
        Some(kind) => HeaderValue::try_from(kind.value.as_str())
            .map_err(|_| ConfigError::at(kind.span, "this is not the value of a header field"))?,
    };
    Ok(Compiled {
        at: page.at.iter().map(which).collect::<Result<_, _>>()?,
        whose: page.whose,
        html: page.html.as_ref().map(|html| template(html, Escape::Html, build)).transpose()?,
        json: json.map(|json| (kind, json)),
    })
}

fn which(node: &Node) -> Result<Which, ConfigError> {
    let wrong = |what: String| ConfigError::at(node.span, format!("`{what}` is no failure"));
    let status = |code: i64| u16::try_from(code).ok().filter(|code| (400..=599).contains(code)).map(Which::Status);
    match &node.value {
        Value::Int(code) => status(*code).ok_or_else(|| wrong(code.to_string()).help("400 to 599")),
        Value::Str(text) => match text.as_str() {
            "4xx" => Ok(Which::Class(4)),
            "5xx" => Ok(Which::Class(5)),
            text => {
                if let Some(found) = text.parse().ok().and_then(status) {
                    return Ok(found);
                }
                let reason = Reason::ALL.iter().find(|r| r.code() == text);
                let known: Vec<&str> = Reason::ALL.iter().map(|r| r.code()).collect();
                reason.map(|r| Which::Reason(r.code())).ok_or_else(|| {
                    wrong(text.to_owned())
                        .help(format!("a status, `4xx`, `5xx` or a reason: {}", suggest(text, &known)))
                })
            }
        },
        _ => Err(ConfigError::at(node.span, "this is no failure").help("such as `404`, `5xx` or `over-quota`")),
    }
}

fn template(node: &Node, escape: Escape, build: &Build<'_>) -> Result<Template, ConfigError> {
    let (text, span) = match &node.value {
        Value::Str(text) => (text.clone(), node.span),
        _ => read(node, build)?,
    };
    Template::compile(&text, escape).map_err(|name| {
        ConfigError::at(span, format!("`${{{name}}}` means nothing here"))
            .help(format!("known here: {}", NAMES.map(|n| format!("${{{n}}}")).join(", ")))
    })
}

fn read(node: &Node, build: &Build<'_>) -> Result<(String, Span), ConfigError> {
    let File { file } = node.read()?;
    let path = build.path(&file.value);
    let wrong = |e: String| ConfigError::at(file.span, format!("{}: {e}", path.display())).help("name a readable file");
    let size = std::fs::metadata(&path).map_err(|e| wrong(e.to_string()))?.len();
    if size > MAX_PAGE {
        return Err(wrong("larger than 1MiB".to_owned()));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
    Ok((text, file.span))
}

impl Filter for Pages {
    fn on_request<'a>(&'a self, _: &'a mut RequestCx) -> Step<'a> {
        Step::NEXT
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        self.replace(rq, rs);
        Step::NEXT
    }

    fn needs(&self) -> Needs {
        Needs { response: true }
    }
}

impl Pages {
    fn replace(&self, rq: &RequestCx, rs: &mut ResponseCx) {
        let failed = rs.status.is_client_error() || rs.status.is_server_error();
        // What a filter answers by itself is as somebody wants it.
        if !failed || rs.origin == Origin::Filter || is_grpc(&rs.headers) {
            return;
        }
        let own = rs.origin == Origin::Fault;
        let reason = if own { reason(&rs.headers) } else { None };
        let code = reason.map_or("", Reason::code);
        let Some(page) = self.0.iter().find(|page| {
            let whose = match page.whose {
                Whose::Own => own,
                Whose::Upstream => !own,
                Whose::All => true,
            };
            whose && page.at.iter().any(|which| which.fits(rs.status, code))
        }) else {
            return;
        };
        // Whatever is chosen: another client may get another form.
        if page.html.is_some() {
            rs.headers.append(VARY, HeaderValue::from_static("accept"));
        }
        let html = page.html.as_ref().filter(|_| prefers_html(&rq.headers));
        let (kind, template) = match (html, &page.json) {
            (Some(html), _) => (HeaderValue::from_static("text/html; charset=utf-8"), html),
            (None, Some((kind, json))) => (kind.clone(), json),
            (None, None) => return,
        };
        let text = template.render(&Facts {
            status: rs.status,
            reason: code,
            title: title(reason, rs.status),
            request_id: rq.request_id.to_str().unwrap_or_default(),
        });
        for name in [CONTENT_ENCODING, CONTENT_RANGE, ACCEPT_RANGES, ETAG, LAST_MODIFIED, CONTENT_LENGTH] {
            rs.headers.remove(name);
        }
        for name in ["content-digest", "repr-digest", "digest"] {
            rs.headers.remove(name);
        }
        rs.headers.insert(CONTENT_TYPE, kind);
        rs.body = if rq.method == Method::HEAD { Body::Empty } else { Body::full(text) };
    }
}

/// The reason of a failure of our own, as its `Proxy-Status` names it: `details="CODE ..."`.
fn reason(headers: &HeaderMap) -> Option<Reason> {
    let text = headers.get(PROXY_STATUS)?.to_str().ok()?;
    let (_, details) = text.split_once("details=\"")?;
    let code = details.split([' ', ':', '"']).next()?;
    Reason::ALL.iter().copied().find(|r| r.code() == code)
}

fn title(reason: Option<Reason>, status: StatusCode) -> &'static str {
    reason.map_or_else(|| status.canonical_reason().unwrap_or_default(), Reason::title)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}
