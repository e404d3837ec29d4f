//! `cors`: cross-origin calls from browsers (the Fetch standard, "HTTP-CORS protocol").
//!
//! Preflights are answered here, before authentication (they carry no credentials). On everything else, errors of our
//! own included, the response says what the origin may do; what an upstream says about it is replaced.

mod config;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::contract::filter::{Filter, Needs, Step};
use crate::contract::origin::PageOrigin;
use crate::contract::{Body, Build, ConfigError, Entry, Node, Phase, RequestCx, ResponseCx, Role, Spot};
use config::Config;

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "cors",
    summary: "Cross-origin calls from browsers; answers preflights",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Cors, implied: |_, _| false, build },
};

struct Cors {
    origins: Origins,
    methods: List,
    headers: List,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: Option<HeaderValue>,
}

enum Origins {
    Any,
    Some(Vec<PageOrigin>),
}

/// Names for a preflight's answer.
enum List {
    None,
    /// `*`; with credentials the browser takes it literally, so the request's own list is sent back.
    Any,
    Names(HeaderValue),
}

fn build(node: Option<&Node>, _: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let config: Config = node.expect("cors is never implied").read()?;
    let origins = config.allow_origins.value;
    if origins.is_empty() {
        return Err(ConfigError::at(config.allow_origins.span, "no origin is allowed").help("name one, or drop `cors`"));
    }
    let any = origins.iter().find(|o| o.value == "*");
    if let Some(any) = any.filter(|_| config.allow_credentials) {
        return Err(ConfigError::at(any.span, "`*` with `allowCredentials` would let every site act as the user")
            .help("name the origins"));
    }
    let origins = match any {
        Some(_) => Origins::Any,
        None => Origins::Some(origins.iter().map(PageOrigin::read).collect::<Result<_, _>>()?),
    };
    let methods = match &config.allow_methods {
        Some(methods) => list(methods, |m| Method::from_bytes(m.as_bytes()).is_ok())?,
        None => List::Names(HeaderValue::from_static("GET, HEAD, POST")),
    };
    let is_field = |name: &str| HeaderName::try_from(name).is_ok();
    let expose = match list(&config.expose_headers, is_field)? {
        List::None => None,
        List::Any => Some(HeaderValue::from_static("*")),
        List::Names(names) => Some(names),
    };
    Ok(Arc::new(Cors {
        origins,
        methods,
        headers: list(&config.allow_headers, is_field)?,
        expose,
        credentials: config.allow_credentials,
        max_age: config.max_age.map(|d| HeaderValue::from(d.0.as_secs())),
    }))
}

fn list(names: &[Spot<String>], valid: impl Fn(&str) -> bool) -> Result<List, ConfigError> {
    if names.is_empty() {
        return Ok(List::None);
    }
    if names.iter().any(|n| n.value == "*") {
        return Ok(List::Any);
    }
    for name in names {
        if !valid(&name.value) {
            return Err(ConfigError::at(name.span, format!("`{}` is not a name that can stand here", name.value)));
        }
    }
    let joined = names.iter().map(|n| n.value.as_str()).collect::<Vec<_>>().join(", ");
    Ok(List::Names(HeaderValue::try_from(joined).expect("tokens are a valid value")))
}

impl Cors {
    /// What to answer an origin with, `None` if it may do nothing.
    fn admits(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Some(origins) => {
                let text = origin.to_str().ok()?;
                origins.iter().any(|o| o.fits(text)).then(|| origin.clone())
            }
        }
    }

    const fn depends_on_origin(&self) -> bool {
        matches!(self.origins, Origins::Some(_))
    }

    fn preflight(&self, rq: &RequestCx, origin: &HeaderValue) -> Response<Body> {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(
            VARY,
            HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        );
        let Some(origin) = self.admits(origin) else { return response };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        for (list, asked, answer) in [
            (&self.methods, ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
            (&self.headers, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
        ] {
            let value = match list {
                List::None => None,
                List::Names(names) => Some(names.clone()),
                List::Any => rq.headers.get(asked).cloned(),
            };
            if let Some(value) = value {
                headers.insert(answer, value);
            }
        }
        if let Some(age) = &self.max_age {
            headers.insert(ACCESS_CONTROL_MAX_AGE, age.clone());
        }
        response
    }
}

impl Filter for Cors {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        let origin = rq.headers.get(ORIGIN).cloned();
        if let Some(origin) = &origin
            && rq.method == Method::OPTIONS
            && rq.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        {
            return Step::reply(self.preflight(rq, origin));
        }
        if self.depends_on_origin() {
            // Also without Origin: a cache must not give that answer to a page.
            rq.reply_headers.push((VARY, HeaderValue::from_static("Origin")));
        }
        if let Some(allowed) = origin.and_then(|o| self.admits(&o)) {
            rq.reply_headers.push((ACCESS_CONTROL_ALLOW_ORIGIN, allowed));
            if self.credentials {
                rq.reply_headers.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
            }
            if let Some(expose) = &self.expose {
                rq.reply_headers.push((ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone()));
            }
        }
        Step::NEXT
    }

    /// Two answers to one question are an error for browsers, and the route's owner has decided: the upstream's goes.
    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        let is_preflight = rq.method == Method::OPTIONS && rq.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !is_preflight {
            for name in [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS] {
                rs.headers.remove(name);
            }
        }
        Step::NEXT
    }

    fn needs(&self) -> Needs {
        Needs { response: true }
    }
}
