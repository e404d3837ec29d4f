//! `catalogue`: a read-only list of routes for the developers who call them, with their OpenAPI documents and with what
//! the caller's own plan and quotas are.

mod config;
pub mod describe;
mod document;
mod page;
mod place;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderValue, Method, Response, StatusCode};

use self::config::Config;
use self::describe::Described;
use self::document::Origin;
use self::page::{Entry as Row, List};
use crate::api::accept::prefers_html;
use crate::api::left::{CATALOGUE, Register};
use crate::contract::filter::{Filter, Step};
use crate::contract::{Body, Build, ConfigError, Entry, Fault, Node, Reason, RequestCx, Role, ShownPath, Spot};

/// Its key.
pub const NAME: &str = CATALOGUE;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Lists routes for developers: OpenAPI documents, own plan and quota",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Answer(build),
};

struct Catalogue {
    title: String,
    listeners: Vec<String>,
    base: Option<Origin>,
    routes: Vec<Described>,
    register: Arc<Register>,
}

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let config: Config = node.read()?;
    let known = &build.directory.listeners;
    for listener in &config.listeners {
        if !known.contains(&listener.value) {
            let known = known.iter().map(String::as_str);
            return Err(ConfigError::unknown(listener.span, "listener", &listener.value, known));
        }
    }
    if let (Some(listener), None) = (config.listeners.first(), &config.base_url) {
        return Err(ConfigError::at(listener.span, "it is not known where callers reach other listeners")
            .help("add `baseUrl: https://api.example.com`"));
    }
    let own = build.surface().expect("a route that answers has a surface");
    if own.matches.iter().any(|shown| !matches!(shown.path, ShownPath::Any | ShownPath::Prefix(_))) {
        return Err(ConfigError::at(node.span, "documents stand below the catalogue's own path")
            .help("match it by `path: { prefix: ... }`"));
    }
    let surfaces = build.directory.surfaces.iter();
    let described = surfaces.filter_map(|surface| Some((surface, surface.section(describe::NAME)?)));
    // A bad note is told once, where it stands.
    let routes = described.filter_map(|(surface, note)| Described::read(note, surface, build).ok()).collect();
    Ok(Arc::new(Catalogue {
        title: config.title,
        base: config.base_url.as_ref().map(origin).transpose()?,
        listeners: config.listeners.into_iter().map(|listener| listener.value).collect(),
        routes,
        register: Register::of(build),
    }))
}

fn origin(url: &Spot<String>) -> Result<Origin, ConfigError> {
    let read = || {
        let uri: http::Uri = url.value.parse().ok()?;
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?.to_owned();
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        bare.then(|| Origin { scheme, host: authority.host().to_ascii_lowercase(), port: authority.port_u16() })
    };
    read().ok_or_else(|| {
        ConfigError::at(url.span, format!("`{}` is not scheme, host and port alone", url.value))
            .help("write `https://api.example.com`")
    })
}

impl Filter for Catalogue {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        if !matches!(rq.method, Method::GET | Method::HEAD) {
            let fault = Fault::new(Reason::MethodRefused).header(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Step::fail(fault);
        }
        let path = rq.path();
        let (base, rest) = path.split_at_checked(rq.covered).unwrap_or(("", path));
        let (base, rest) = (base.trim_end_matches('/'), rest.trim_start_matches('/'));
        if rest.is_empty() {
            return Step::reply(self.list(rq, base));
        }
        match self.document(rq, rest) {
            Some(reply) => Step::reply(reply),
            None => Step::fail(Fault::new(Reason::NotDescribed).detail("The catalogue has no such document.")),
        }
    }
}

impl Catalogue {
    /// Scheme, host and port that the caller reaches us at.
    fn here(&self, rq: &RequestCx) -> Origin {
        self.base.clone().unwrap_or_else(|| Origin {
            scheme: if rq.https { "https" } else { "http" }.to_owned(),
            host: rq.host().to_owned(),
            port: rq.authority.port_u16(),
        })
    }

    fn list(&self, rq: &RequestCx, base: &str) -> Response<Body> {
        let here = self.here(rq);
        let seen: Vec<&Described> = self.routes.iter().filter(|route| route.is_for(rq, &self.listeners)).collect();
        // A limit tells the name of its route, which is told to those only who may see the route.
        let caller = self.register.told(rq, |route| seen.iter().any(|other| &*other.name == route));
        let routes = seen.iter().map(|route| Row::of(route, &route.origins(&here), base)).collect();
        let list = List { title: &self.title, caller, routes };
        let (kind, body) = match prefers_html(&rq.headers) {
            true => ("text/html; charset=utf-8", list.html()),
            false => ("application/json", list.json()),
        };
        let mut reply = reply(kind, body);
        let headers = reply.headers_mut();
        // What is left of a quota is true for a moment.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(VARY, HeaderValue::from_static("accept"));
        headers.insert(http::header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
        reply
    }

    /// `NAME/openapi.json` or `NAME/openapi.yaml` of a route that the caller may see.
    fn document(&self, rq: &RequestCx, rest: &str) -> Option<Response<Body>> {
        let (name, form) = rest.rsplit_once("/openapi.").filter(|(_, form)| matches!(*form, "json" | "yaml"))?;
        let name = percent_encoding::percent_decode_str(name).decode_utf8().ok()?;
        let route = self.routes.iter().find(|route| *route.name == *name)?;
        let document = route.document.as_ref().filter(|_| route.is_for(rq, &self.listeners))?.load();
        let origins = route.origins(&self.here(rq));
        let tag = document.made.tag(form, &origins);
        let known = rq.headers.get_all(IF_NONE_MATCH).iter().filter_map(|field| field.to_str().ok());
        // RFC 9110 section 13.1.2: compared weakly.
        let known = known.flat_map(|field| field.split(',')).any(|seen| seen.trim().trim_start_matches("W/") == tag);
        let mut reply = match (known, form) {
            (true, _) => {
                let mut unchanged = Response::new(Body::Empty);
                *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
                unchanged
            }
            // RFC 9512 for YAML; the types of OpenAPI itself never left the draft.
            (false, "yaml") => reply("application/yaml", document.made.yaml(&origins)),
            (false, _) => reply("application/json", document.made.json(&origins)),
        };
        let headers = reply.headers_mut();
        headers.insert(ETAG, HeaderValue::try_from(tag).expect("hexadecimal digits in quotes"));
        // Who may see it is asked each time.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        Some(reply)
    }
}

fn reply(kind: &'static str, body: String) -> Response<Body> {
    let mut reply = Response::new(Body::full(body));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
