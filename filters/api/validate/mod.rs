//! `validate`: checks requests, and answers if asked to, against JSON Schema or an OpenAPI description.

mod config;
mod openapi;
mod params;
mod schema;
mod strict;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http::header::{ACCEPT_ENCODING, ALLOW};
use http::{HeaderValue, Method, StatusCode};
use http_body::Body as _;
use jsonschema::Validator;
use serde_json::Value;

use self::openapi::{Api, Found, Spot as Place};
use self::params::Types;
use self::schema::Folder;
use crate::api::content::{self, Limits};
use crate::api::watched::{Compiled, Watched};
use crate::contract::filter::{Filter, Needs, Step, Verdict};
use crate::contract::metrics::Counter;
use crate::contract::{
    Body, Buffered, Build, ConfigError, Entry, Fault, Mistake, Node, Optional, Origin, Phase, Reason, RequestCx,
    ResponseCx, Role, Span,
};
use config::{Config, DEPTH, LIMIT, MAX_DEPTH, MAX_LIMIT, Response};

const NAME: &str = "validate";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Checks messages against JSON Schema or OpenAPI",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Validate, implied: |_, _| false, build },
};

struct Validate {
    rules: Arc<Watched<Rules>>,
    limit: usize,
    depth: usize,
    shadow: bool,
    response: Response,
    counts: Counts,
}

/// By side and result.
struct Counts {
    request: [Counter; 3],
    response: [Counter; 3],
}

const RESULTS: [&str; 3] = ["ok", "refused", "shadowed"];

/// What messages are held against, compiled.
struct Rules {
    body: Option<(Validator, bool)>,
    query: Option<(Validator, Types)>,
    headers: Option<(Validator, Types)>,
    openapi: Option<Api>,
}

/// An operation under way, noted on the way in.
struct Under {
    rules: Arc<Compiled<Rules>>,
    place: Place,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let config: Config = node.expect("validate is never implied").read()?;
    if config.body.is_none() && config.query.is_none() && config.headers.is_none() && config.openapi.is_none() {
        return Err(ConfigError::at(build.span, "there is nothing to check against")
            .help("write `body`, `query`, `headers` or `openapi`"));
    }
    if let Some(limit) = config.limit.as_ref().filter(|limit| !(1..=MAX_LIMIT).contains(&limit.value.0)) {
        return Err(ConfigError::at(limit.span, format!("`limit` is {}", limit.value)).help("from 1B to 64MiB"));
    }
    if let Some(depth) = config.max_depth.as_ref().filter(|depth| !(1..=MAX_DEPTH).contains(&depth.value)) {
        return Err(ConfigError::at(depth.span, format!("`maxDepth` is {}", depth.value)).help("from 1 to 128"));
    }
    let response = config.response.as_ref().map_or(Response::Skip, |response| response.value);
    if let (Some(at), None, true) = (&config.response, &config.openapi, response != Response::Skip) {
        return Err(ConfigError::at(at.span, "answers are only described by OpenAPI").help("add `openapi`"));
    }
    match (&config.base_path, &config.openapi) {
        (Some(base), None) => {
            return Err(ConfigError::at(base.span, "`basePath` belongs to `openapi`").help("add `openapi`"));
        }
        (Some(base), _) if !base.value.is_empty() && !base.value.starts_with('/') => {
            return Err(ConfigError::at(base.span, format!("`{}` does not begin with `/`", base.value)));
        }
        _ => {}
    }
    let limit = config.limit.as_ref().map_or(LIMIT, |limit| limit.value.0);
    let depth = config.max_depth.as_ref().map_or(DEPTH, |depth| depth.value);
    let shadow = config.shadow;
    let shape = format!("{:?}", node.map(Node::to_json));
    let dir = build.dir.clone();
    let first = Rules::compile(&config, dir.clone())?;
    let again = move || Rules::compile(&config, dir.clone()).map_err(|e| e.to_string());
    let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope).to_owned();
    let metrics = build.metrics.clone();
    let count = |side: &str| {
        RESULTS.map(|result| {
            let labels = [("route", route.as_str()), ("side", side), ("result", result)];
            metrics.counter("onehop_validated_total", "Messages that were checked, by result", &labels)
        })
    };
    let counts = Counts { request: count("request"), response: count("response") };
    Ok(Arc::new(Validate {
        rules: Watched::keep(build, NAME, &shape, first, Box::new(again)),
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
        depth,
        shadow,
        response,
        counts,
    }))
}

impl Rules {
    fn compile(config: &Config, dir: PathBuf) -> Result<Compiled<Self>, ConfigError> {
        let folder = Folder { dir, files: Arc::new(Mutex::new(Vec::new())) };
        let wrong = |span: Span| {
            move |why: String| {
                ConfigError::at(span, why.replace('\n', " ")).help("JSON Schema 2020-12, or OpenAPI 3.0 or 3.1")
            }
        };
        let schema = |node: &Node, what| schema::of_node(node, what, &folder).map_err(wrong(node.span));
        let typed = |node: &Node, what| {
            let (validator, schema) = schema(node, what)?;
            Ok::<_, ConfigError>((validator, Types::of(&schema, &schema)))
        };
        let body = match &config.body {
            Some(body) => Some((schema(&body.schema, "body")?.0, body.required)),
            None => None,
        };
        let openapi = match &config.openapi {
            Some(file) => {
                let path = folder.dir.join(&file.value);
                folder.files.lock().expect("no panic under the lock").push(path.clone());
                let base = config.base_path.as_ref().map(|base| base.value.as_str());
                Some(Api::compile(&path, base, &folder).map_err(wrong(file.span))?)
            }
            None => None,
        };
        let made = Self {
            body,
            query: config.query.as_ref().map(|node| typed(node, "query")).transpose()?,
            headers: config.headers.as_ref().map(|node| typed(node, "headers")).transpose()?,
            openapi,
        };
        let mut files = std::mem::take(&mut *folder.files.lock().expect("no panic under the lock"));
        files.sort();
        files.dedup();
        Ok(Compiled::new(made, files))
    }
}

fn mistake(pointer: &str, detail: impl Into<String>) -> Mistake {
    Mistake { pointer: pointer.to_owned(), detail: detail.into() }
}

impl Validate {
    /// What is wrong with a request; a fault of its own where it is more than a list of mistakes.
    async fn request(&self, rq: &mut RequestCx) -> Result<(), Box<Fault>> {
        let rules = self.rules.load();
        let mut found = Vec::new();
        let pairs = params::pairs(rq.target.query().unwrap_or_default());
        if pairs.is_none() {
            found.push(mistake("query", "is not UTF-8"));
        }
        let pairs = pairs.unwrap_or_default();
        if let Some((validator, types)) = &rules.made.query {
            schema::mistakes(validator, &params::object(&pairs, types), "query", &mut found);
        }
        if let Some((validator, types)) = &rules.made.headers {
            let lines =
                rq.headers.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
            let lines: Vec<(String, String)> = lines.collect();
            schema::mistakes(validator, &params::object(&lines, types), "headers", &mut found);
        }
        let mut described = None;
        if let Some(api) = &rules.made.openapi {
            match api.find(&rq.method, rq.path()) {
                Found::Nothing => return Err(Box::new(Fault::new(Reason::NotDescribed).by(NAME))),
                Found::OtherMethods(methods) => {
                    let allow = methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ");
                    let fault = Fault::new(Reason::MethodRefused).by(NAME);
                    let allow = HeaderValue::try_from(allow);
                    return Err(Box::new(allow.map(|allow| fault.clone().header(ALLOW, allow)).unwrap_or(fault)));
                }
                Found::Operation(place, operation, captured) => {
                    operation.check(&captured, &pairs, &rq.headers, &mut found);
                    described = operation.body.as_ref();
                    rq.scratch.put(Under { rules: rules.clone(), place });
                }
            }
        }
        if !rq.dry_run {
            self.request_body(rq, &rules.made, described, &mut found).await?;
        }
        if found.is_empty() {
            return Ok(());
        }
        Err(Box::new(Fault::new(Reason::InvalidRequest).errors(found).by(NAME)))
    }

    async fn request_body(
        &self,
        rq: &mut RequestCx,
        rules: &Rules,
        described: Option<&openapi::Body>,
        found: &mut Vec<Mistake>,
    ) -> Result<(), Box<Fault>> {
        let required =
            described.is_some_and(|body| body.required) || rules.body.as_ref().is_some_and(|(_, required)| *required);
        if rq.body.is_end_stream() {
            if required {
                found.push(mistake("", "is missing"));
            }
            return Ok(());
        }
        let unsupported = |detail| Box::new(Fault::new(Reason::UnsupportedMedia).detail(detail).by(NAME));
        let media_type = content::media_type(&rq.headers).unwrap_or_default().to_owned();
        let media = match described {
            Some(body) => {
                Some(body.media(&media_type).ok_or_else(|| unsupported("the type of the body is not described"))?)
            }
            None => None,
        };
        let is_json = content::is_json(&media_type);
        if rules.body.is_some() && !is_json {
            return Err(unsupported("a JSON body is taken here"));
        }
        let is_form = media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded");
        let checks =
            rules.body.is_some() || media.is_some_and(|media| media.validator.is_some() && (is_json || is_form));
        if !checks {
            return Ok(());
        }
        if !content::codings(&rq.headers).is_some_and(|codings| codings.is_empty()) {
            return Err(unsupported("an encoded body cannot be checked; `decompression` decodes"));
        }
        let text = match content::read_ahead(&mut rq.body, self.limit, rq.deadline, Reason::BodyTimeout).await? {
            Buffered::Whole(text) => text,
            Buffered::Partial(_) => {
                return Err(Box::new(
                    Fault::new(Reason::BodyTooLarge).detail("the body is larger than what is checked").by(NAME),
                ));
            }
        };
        let value = if is_json {
            match strict::read(&text, self.depth) {
                Ok(value) => value,
                Err(why) => {
                    found.push(mistake("", why));
                    return Ok(());
                }
            }
        } else {
            let form = std::str::from_utf8(&text).ok().and_then(params::pairs);
            let Some(form) = form else {
                found.push(mistake("", "is not UTF-8"));
                return Ok(());
            };
            media.map_or(Value::Null, |media| params::object(&form, &media.types))
        };
        let own = rules.body.as_ref().map(|(validator, _)| validator);
        for validator in own.into_iter().chain(media.and_then(|media| media.validator.as_ref())) {
            schema::mistakes(validator, &value, "", found);
        }
        Ok(())
    }

    /// What is wrong with an answer.
    async fn answer(&self, rq: &mut RequestCx, under: &Under, rs: &mut ResponseCx) -> Result<(), Box<Fault>> {
        let invalid = |errors| Box::new(Fault::new(Reason::InvalidResponse).errors(errors).by(NAME));
        let Some(api) = &under.rules.made.openapi else { return Ok(()) };
        let operation = api.operation(under.place);
        let media_type = content::media_type(&rs.headers).map(str::to_owned);
        let empty = rs.body.is_end_stream() || rq.method == Method::HEAD;
        let media = match operation.response(rs.status, media_type.as_deref()) {
            None => return Err(invalid(vec![mistake("status", "is not described")])),
            Some(None) if empty => return Ok(()),
            Some(None) => return Err(invalid(vec![mistake("headers.content-type", "is not described")])),
            Some(Some(media)) => media,
        };
        let Some(validator) = media.validator.as_ref().filter(|_| media_type.as_deref().is_some_and(content::is_json))
        else {
            return Ok(());
        };
        if rq.method == Method::HEAD || rs.status == StatusCode::PARTIAL_CONTENT {
            return Ok(());
        }
        if empty {
            return Err(invalid(vec![mistake("", "is missing")]));
        }
        let too_large = || Box::new(Fault::new(Reason::ResponseBodyTooLarge).by(NAME));
        let text = match content::read_ahead(&mut rs.body, self.limit, rq.deadline, Reason::Deadline).await? {
            Buffered::Whole(text) => text,
            Buffered::Partial(_) => return Err(too_large()),
        };
        let limits = Limits {
            size: self.limit as u64,
            ratio: u64::MAX,
            over: Reason::ResponseBodyTooLarge,
            broken: Reason::BodyUnusable,
            by: NAME,
        };
        let codings = content::codings(&rs.headers);
        let codings = codings.ok_or_else(|| invalid(vec![mistake("headers.content-encoding", "is not known")]))?;
        let plain =
            codings.into_iter().rev().fold(Body::full(text), |body, coding| content::decode(body, coding, limits));
        let text = http_body_util::BodyExt::collect(plain).await?.to_bytes();
        let mut found = Vec::new();
        match strict::read(&text, self.depth) {
            Ok(value) => schema::mistakes(validator, &value, "", &mut found),
            Err(why) => found.push(mistake("", why)),
        }
        if found.is_empty() { Ok(()) } else { Err(invalid(found)) }
    }

    /// Counts a result, and refuses unless it is only looked at.
    fn judged(route: &str, counts: &[Counter; 3], shadow: bool, result: Result<(), Box<Fault>>) -> Verdict {
        match result {
            Ok(()) => {
                counts[0].inc();
                Verdict::Next
            }
            Err(fault) if shadow => {
                counts[2].inc();
                let first = fault.lists.as_ref().and_then(|lists| lists.errors.first());
                let (pointer, detail) = first.map_or(("", ""), |first| (&first.pointer, &first.detail));
                tracing::debug!(route, reason = fault.reason.code(), pointer, detail, "would be refused");
                Verdict::Next
            }
            Err(fault) => {
                counts[1].inc();
                Verdict::Fail(fault)
            }
        }
    }
}

impl Filter for Validate {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        // What refuses nothing may be left out; what an answer is held against is found out here.
        if self.shadow && self.response != Response::Enforce && rq.services.leaves_out(Optional::Validation) {
            return Step::NEXT;
        }
        Step::Wait(Box::pin(async move {
            let result = self.request(rq).await;
            // A body that broke off did so whoever looked at it.
            if let Err(fault) = &result
                && fault.by != NAME
            {
                return Verdict::Fail(fault.clone());
            }
            if self.response != Response::Skip && (result.is_ok() || self.shadow) {
                rq.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            Self::judged(&rq.route.name, &self.counts.request, self.shadow, result)
        }))
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        let Some(under) = rq.scratch.take::<Under>() else { return Step::NEXT };
        if rs.origin == Origin::Fault || rs.status.is_informational() || rs.status == StatusCode::NOT_MODIFIED {
            return Step::NEXT;
        }
        if self.response == Response::Shadow && rq.services.leaves_out(Optional::Validation) {
            return Step::NEXT;
        }
        Step::Wait(Box::pin(async move {
            let result = self.answer(rq, &under, rs).await;
            let shadow = self.response == Response::Shadow;
            Self::judged(&rq.route.name, &self.counts.response, shadow, result)
        }))
    }

    fn needs(&self) -> Needs {
        Needs { response: self.response != Response::Skip }
    }
}
