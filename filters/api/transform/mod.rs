//! `transform`: rewrites path, host, query, headers, cookies and JSON body of a request; headers, cookies and JSON body of
//! its response.

mod body;
mod config;
mod cookies;
mod core;
pub mod json;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::HeaderValue;
use http::uri::Authority;
use regex::Regex;

use self::core::Query;
use crate::contract::edits::pairs;
use crate::contract::filter::{Filter, Needs, Step, Verdict};
use crate::contract::{
    Build, ConfigError, Entry, Fault, FieldEdits, Node, Phase, Reason, RequestCx, ResponseCx, Role, Spot, Template,
    rewrite,
};
use config::{Config, Path};

const NAME: &str = "transform";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Rewrites path, host, query, headers, cookies and JSON bodies",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Transform, implied: |_, _| false, build },
};

struct Transform {
    path: Option<NewPath>,
    host: Option<HeaderValue>,
    query: Option<Query>,
    request: FieldEdits,
    response: FieldEdits,
    cookies: Option<cookies::Inward>,
    set_cookies: cookies::Outward,
    request_body: Option<body::Inward>,
    response_body: Option<body::Outward>,
}

enum NewPath {
    Prefix(Box<str>),
    Full(Template),
    Regex(Regex, Box<str>),
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let config: Config = node.expect("transform is never implied").read()?;
    let query = Query {
        set: pairs(config.query.set.as_ref())?,
        add: pairs(config.query.add.as_ref())?,
        remove: config.query.remove.into_iter().map(|n| n.value).collect(),
    };
    let (request, response) = (config.request, config.response);
    let outward = |config: &config::ResponseBody| {
        let labels = [("route", build.scope.strip_prefix("routes.").unwrap_or(&build.scope))];
        let help = "Responses that passed although body rules could not be applied";
        body::Outward::read(config, build.metrics.counter("onehop_transform_passed_total", help, &labels))
    };
    Ok(Arc::new(Transform {
        path: config.path.map(new_path).transpose()?,
        host: config.host.map(host).transpose()?,
        query: (!query.is_empty()).then_some(query),
        request: FieldEdits::read(&request.fields())?,
        response: FieldEdits::read(&response.fields())?,
        cookies: request.cookies.map(cookies::Inward::read).transpose()?,
        set_cookies: cookies::Outward::read(response.cookies)?,
        request_body: request.body.as_ref().map(body::Inward::read).transpose()?,
        response_body: response.body.as_ref().map(outward).transpose()?,
    }))
}

fn new_path(Spot { span, value }: Spot<Path>) -> Result<NewPath, ConfigError> {
    let absolute = |path: Spot<String>| {
        if path.value.is_empty() || path.value.starts_with('/') || path.value.starts_with("${") {
            Ok(path)
        } else {
            Err(ConfigError::at(path.span, format!("`{}` does not begin with `/`", path.value)))
        }
    };
    match (value.replace_prefix, value.replace_full, value.regex, value.substitution) {
        (Some(prefix), None, None, None) => {
            let prefix = absolute(prefix)?;
            if !prefix.value.is_empty() && core::checked(&prefix.value).is_none() {
                return Err(ConfigError::at(prefix.span, format!("`{}` is not a path", prefix.value)));
            }
            Ok(NewPath::Prefix(prefix.value.into()))
        }
        (None, Some(full), None, None) => {
            let full = absolute(full)?;
            let template = Template::compile(&full.value, full.span)?;
            if template.is_fixed() && core::checked(&full.value).is_none() {
                return Err(ConfigError::at(full.span, format!("`{}` is not a path", full.value)));
            }
            Ok(NewPath::Full(template))
        }
        (None, None, Some(regex), Some(substitution)) => {
            let compiled = regex::RegexBuilder::new(&regex.value).size_limit(1 << 20).build().map_err(|e| {
                ConfigError::at(regex.span, format!("`{}` is not a regular expression: {e}", regex.value))
            })?;
            Ok(NewPath::Regex(compiled, substitution.value.into()))
        }
        _ => Err(ConfigError::at(span, "`path` takes exactly one rewrite")
            .help("write `replacePrefix`, `replaceFull`, or `regex` with `substitution`")),
    }
}

fn host(text: Spot<String>) -> Result<HeaderValue, ConfigError> {
    let wrong = || ConfigError::at(text.span, format!("`{}` is not a host", text.value)).help("HOST or HOST:PORT");
    let authority: Authority = text.value.parse().map_err(|_| wrong())?;
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err(wrong());
    }
    HeaderValue::try_from(text.value.as_str()).map_err(|_| wrong())
}

impl Transform {
    /// Everything but the body.
    fn head(&self, rq: &mut RequestCx) -> Verdict {
        let values = self.request.values(rq);
        let crumbs = self.cookies.as_ref().map(|cookies| (cookies, cookies.values(rq)));
        let rewritten = self.rewrite(rq);
        self.request.apply(&mut rq.headers, values);
        if let Some((cookies, values)) = crumbs {
            cookies.apply(&mut rq.headers, values);
        }
        if self.response_body.is_some() {
            body::Outward::prepare(&mut rq.headers);
        }
        if let Some(host) = &self.host {
            rq.upstream_host = Some(host.clone());
        }
        match rewritten {
            Ok(()) => Verdict::Next,
            Err(detail) => Verdict::Fail(Box::new(Fault::new(Reason::BadPath).detail(detail).by(NAME))),
        }
    }

    fn rewrite(&self, rq: &mut RequestCx) -> Result<(), &'static str> {
        let bad = "the rewritten path is not acceptable";
        let query = self.query.as_ref().map(|q| q.apply(rq.target.query().unwrap_or_default(), rq));
        let path = match &self.path {
            None => None,
            Some(NewPath::Prefix(replacement)) => {
                let prefix = rq.path().get(..rq.covered).unwrap_or_default();
                Some(rewrite::replace_prefix(rq.path(), prefix, replacement).into_owned())
            }
            Some(NewPath::Full(template)) => Some(template.encoded(rq, core::PATH).ok_or(bad)?),
            Some(NewPath::Regex(regex, substitution)) => Some(regex.replace(rq.path(), &**substitution).into_owned()),
        };
        if path.is_none() && query.is_none() {
            return Ok(());
        }
        let path = path.unwrap_or_else(|| rq.path().to_owned());
        if core::checked(&path).is_none() {
            return Err(bad);
        }
        let query = query.as_deref().unwrap_or_else(|| rq.target.query().unwrap_or_default());
        rq.target = match query {
            // A path with a query of its own keeps that alone.
            query if !query.is_empty() && !path.contains('?') => [&path, "?", query].concat(),
            _ => path,
        }
        .try_into()
        .map_err(|_| bad)?;
        Ok(())
    }
}

impl Filter for Transform {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        // Headers, host, path: what each template reads is the request as the client sent it.
        let edited = self.request_body.as_ref().filter(|body| body.covers(rq));
        match edited {
            None => Step::Done(self.head(rq)),
            // The body first: its templates, too, see the request as it came.
            Some(body) => Step::Wait(Box::pin(async move {
                match body.edit(rq).await {
                    Ok(()) => self.head(rq),
                    Err(fault) => Verdict::Fail(fault),
                }
            })),
        }
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        self.response.apply(&mut rs.headers, self.response.values(rq));
        self.set_cookies.apply(&mut rs.headers);
        let Some(body) = &self.response_body else { return Step::NEXT };
        body::Outward::describe(rq, rs);
        match Some(body).filter(|body| body.covers(rq, rs)) {
            None => Step::NEXT,
            Some(body) => Step::Wait(Box::pin(async move {
                match body.edit(rq, rs).await {
                    Ok(()) => Verdict::Next,
                    Err(fault) => Verdict::Fail(fault),
                }
            })),
        }
    }

    fn needs(&self) -> Needs {
        let response = !self.response.is_empty() || !self.set_cookies.is_empty() || self.response_body.is_some();
        Needs { response }
    }
}
