//! `transcode`: a gRPC service as JSON over HTTP, as its `google.api.http` annotations say.

mod config;
mod message;
mod status;
mod stream;
mod table;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::header::{ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, SerializeOptions};

use self::message::{Bad, Frames};
use self::status::Status;
use self::stream::{Form, Streamed};
use self::table::{BodyIs, Found, Table};
use crate::api::content;
use crate::api::watched::{Compiled, Watched};
use crate::contract::filter::{Filter, Needs, Step, Verdict};
use crate::contract::{
    Body, Buffered, Build, ConfigError, Dialect, Entry, Fault, Mistake, Node, Origin, Phase, Reason, RequestCx,
    ResponseCx, Role,
};
use config::{Config, LIMIT, MAX_LIMIT, Unknown};

const NAME: &str = "transcode";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Offers a gRPC service as JSON over HTTP",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Api { phase: Phase::Bridge, implied: |_, _| false, build },
};

struct Transcode {
    table: Arc<Watched<Table>>,
    limit: usize,
    deny_unknown: bool,
    options: SerializeOptions,
}

/// A call under way, noted on the way in.
struct Under {
    table: Arc<Compiled<Table>>,
    output: MessageDescriptor,
    only: Option<FieldDescriptor>,
    streams: bool,
    form: Form,
}

fn build(node: Option<&Node>, build: &mut Build<'_>) -> Result<Arc<dyn Filter>, ConfigError> {
    let config: Config = node.expect("transcode is never implied").read()?;
    build.speaks_http2()?;
    if config.services.value.is_empty() {
        return Err(ConfigError::at(config.services.span, "no service is offered").help("such as `[shop.v1.Orders]`"));
    }
    if let Some(limit) = config.limit.as_ref().filter(|limit| !(1..=MAX_LIMIT).contains(&limit.value.0)) {
        return Err(ConfigError::at(limit.span, format!("`limit` is {}", limit.value)).help("from 1B to 64MiB"));
    }
    let file = build.path(&config.descriptors.value);
    let services: Vec<String> = config.services.value.iter().map(|name| name.value.clone()).collect();
    let auto = config.auto_mapping;
    let shape = format!("{} {services:?} {auto}", file.display());
    let compile = move || Table::compile(&file, &services, auto);
    let first = compile().map_err(|why| {
        // A name that is not in the set is blamed on itself.
        let named = config.services.value.iter().find(|name| why.contains(&format!("`{}`", name.value)));
        let span = named.map_or(config.descriptors.span, |name| name.span);
        match why.split_once('\n') {
            Some((message, help)) => ConfigError::at(span, message).help(help),
            None => ConfigError::at(span, why),
        }
    })?;
    let options = SerializeOptions::new()
        .skip_default_fields(!config.json.defaults)
        .use_proto_field_name(config.json.proto_names)
        .use_enum_numbers(config.json.enum_numbers);
    Ok(Arc::new(Transcode {
        table: Watched::keep(build, NAME, &shape, first, Box::new(compile)),
        limit: usize::try_from(config.limit.map_or(LIMIT, |limit| limit.value.0)).unwrap_or(usize::MAX),
        deny_unknown: config.unknown != Some(Unknown::Ignore),
        options,
    }))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"))
}

/// What the caller wants a stream to look like.
fn form(headers: &HeaderMap) -> Form {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    if accept.contains("text/event-stream") { Form::Events } else { Form::Lines }
}

impl Transcode {
    async fn call(&self, rq: &mut RequestCx) -> Result<(), Box<Fault>> {
        let table = self.table.load();
        let (binding, captured) = match table.made.find(&rq.method, rq.path()) {
            Found::Call(binding, captured) => (binding, captured),
            Found::OtherMethods(methods) => {
                let allow = methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ");
                let mut fault = Fault::new(Reason::MethodRefused).by(NAME);
                if let Ok(allow) = HeaderValue::try_from(allow) {
                    fault = fault.header(ALLOW, allow);
                }
                return Err(Box::new(fault));
            }
            Found::Nothing => return Err(Box::new(Fault::new(Reason::NotDescribed).by(NAME))),
        };
        let text = self.body(rq, &binding.body).await?;
        let query = rq.target.query().unwrap_or_default();
        let made =
            message::request(binding, &text, query, captured, self.deny_unknown).map_err(|(pointer, detail)| {
                let mistake = Mistake { pointer, detail };
                Box::new(Fault::new(Reason::InvalidRequest).errors(vec![mistake]).by(NAME))
            })?;
        let frame = message::frame(&made).ok_or_else(|| Box::new(Fault::new(Reason::BodyTooLarge).by(NAME)))?;
        let form = form(&rq.headers);
        rq.scratch.put(Dialect { grpc: None });
        rq.scratch.put(Under {
            output: binding.call.output.clone(),
            only: binding.response_body.clone(),
            streams: binding.call.streams,
            form,
            table: table.clone(),
        });
        rq.method = Method::POST;
        rq.target = binding.call.path.clone();
        content::changed(&mut rq.headers);
        for name in [ACCEPT, ACCEPT_ENCODING] {
            rq.headers.remove(name);
        }
        rq.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        rq.body = Body::full(frame);
        Ok(())
    }

    /// The JSON text of a request.
    async fn body(&self, rq: &mut RequestCx, body: &BodyIs) -> Result<bytes::Bytes, Box<Fault>> {
        if rq.body.is_end_stream() || (rq.dry_run && matches!(body, BodyIs::Absent)) {
            return Ok(bytes::Bytes::new());
        }
        let plain = content::codings(&rq.headers).is_some_and(|codings| codings.is_empty());
        if !plain || !content::media_type(&rq.headers).is_none_or(content::is_json) {
            let fault = Fault::new(Reason::UnsupportedMedia).detail("a JSON body without a coding is taken here");
            return Err(Box::new(fault.by(NAME)));
        }
        match content::read_ahead(&mut rq.body, self.limit, rq.deadline, Reason::BodyTimeout).await? {
            Buffered::Whole(text) => Ok(text),
            Buffered::Partial(_) => Err(Box::new(Fault::new(Reason::BodyTooLarge).by(NAME))),
        }
    }

    /// The answer to a call with one answer.
    async fn unary(&self, rq: &mut RequestCx, under: &Under, rs: &mut ResponseCx) -> Result<(), Box<Fault>> {
        let broken = |reason, detail| Box::new(Fault::new(reason).detail(detail).by(NAME));
        let too_large = || broken(Reason::ResponseBodyTooLarge, "the message is larger than what may be transcoded");
        let limit = self.limit.saturating_add(5);
        let read = content::read_ahead(&mut rs.body, limit, rq.deadline, Reason::Deadline).await?;
        let Buffered::Whole(bytes) = read else { return Err(too_large()) };
        let all = http_body_util::BodyExt::collect(std::mem::take(&mut rs.body)).await?;
        let status = Status::of(all.trailers());
        if status.code != 0 {
            self.failed(under, &status, rs);
            return Ok(());
        }
        let mut frames = Frames::default();
        frames.push(&bytes);
        let message = frames.next(self.limit).map_err(|bad| match bad {
            Bad::TooLarge => too_large(),
            Bad::Malformed => broken(Reason::BodyUnusable, "the endpoint's body is not made of plain frames"),
        })?;
        let json = message
            .filter(|_| frames.is_empty())
            .and_then(|bytes| DynamicMessage::decode(under.output.clone(), bytes).ok())
            .and_then(|message| message::json(&message, under.only.as_ref(), &self.options));
        let json = json.ok_or_else(|| broken(Reason::BodyUnusable, "the message is not what its descriptor says"))?;
        rs.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        rs.body = Body::full(json);
        Ok(())
    }

    fn failed(&self, under: &Under, status: &Status, rs: &mut ResponseCx) {
        rs.status = status.http();
        rs.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        rs.body = Body::full(status.json(under.table.made.status.as_ref(), &self.options));
    }
}

impl Filter for Transcode {
    fn on_request<'a>(&'a self, rq: &'a mut RequestCx) -> Step<'a> {
        // Callers that speak gRPC themselves need nobody in between.
        if is_grpc(&rq.headers) {
            return Step::NEXT;
        }
        Step::Wait(Box::pin(async move {
            match self.call(rq).await {
                Ok(()) => Verdict::Next,
                Err(fault) => Verdict::Fail(fault),
            }
        }))
    }

    fn on_response<'a>(&'a self, rq: &'a mut RequestCx, rs: &'a mut ResponseCx) -> Step<'a> {
        let Some(under) = rq.scratch.take::<Under>() else { return Step::NEXT };
        // Our own failures are problems already, and what is no gRPC (a proxy's error page) speaks for itself.
        if rs.origin == Origin::Fault || (rs.status != StatusCode::OK && !is_grpc(&rs.headers)) {
            return Step::NEXT;
        }
        if !is_grpc(&rs.headers) {
            return Step::fail(
                Fault::new(Reason::BodyUnusable).detail("the endpoint did not answer with gRPC").by(NAME),
            );
        }
        content::changed(&mut rs.headers);
        rs.headers.remove(http::header::TRAILER);
        let in_head = rs.headers.contains_key("grpc-status").then(|| Status::of(Some(&rs.headers)));
        for name in ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-encoding", "grpc-accept-encoding"]
        {
            rs.headers.remove(name);
        }
        match in_head {
            Some(status) if status.code != 0 || !under.streams => {
                self.failed(&under, &status, rs);
                Step::NEXT
            }
            Some(_) => {
                // A stream without a message.
                rs.headers.insert(CONTENT_TYPE, stream_type(under.form));
                rs.body = Body::Empty;
                Step::NEXT
            }
            None if under.streams => {
                rs.headers.insert(CONTENT_TYPE, stream_type(under.form));
                rs.headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
                rs.body = Body::stream(Streamed {
                    body: std::mem::take(&mut rs.body),
                    frames: Frames::default(),
                    form: under.form,
                    output: under.output,
                    only: under.only,
                    options: self.options.clone(),
                    limit: self.limit,
                    table: under.table,
                    ended: false,
                });
                Step::NEXT
            }
            None => Step::Wait(Box::pin(async move {
                match self.unary(rq, &under, rs).await {
                    Ok(()) => Verdict::Next,
                    Err(fault) => Verdict::Fail(fault),
                }
            })),
        }
    }

    fn needs(&self) -> Needs {
        Needs { response: true }
    }
}

const fn stream_type(form: Form) -> HeaderValue {
    match form {
        Form::Lines => HeaderValue::from_static("application/x-ndjson"),
        Form::Events => HeaderValue::from_static("text/event-stream"),
    }
}
