//! Answers that stream: a line of JSON, or an event, for each message.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, SerializeOptions};

use super::message::{self, Bad, Frames};
use super::status::Status;
use super::table::Table;
use crate::api::watched::Compiled;
use crate::contract::{Body, BodyError, Fault, Reason};

/// How messages follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line for each message; an error is the last line's `error`.
    Lines,
    /// Server-sent events; an error is an event of that name.
    Events,
}

/// The body that goes out.
pub struct Streamed {
    pub body: Body,
    pub frames: Frames,
    pub form: Form,
    pub output: MessageDescriptor,
    pub only: Option<FieldDescriptor>,
    pub options: SerializeOptions,
    pub limit: usize,
    pub table: Arc<Compiled<Table>>,
    pub ended: bool,
}

impl Streamed {
    fn written(&self, event: Option<&str>, json: &[u8]) -> Frame<Bytes> {
        let mut out = Vec::with_capacity(json.len() + 32);
        match (self.form, event) {
            (Form::Lines, None) => out.extend_from_slice(json),
            (Form::Lines, Some(name)) => {
                out.extend_from_slice(format!("{{\"{name}\":").as_bytes());
                out.extend_from_slice(json);
                out.push(b'}');
            }
            // JSON has no line breaks but in escapes, so one `data` line holds it.
            (Form::Events, event) => {
                if let Some(name) = event {
                    out.extend_from_slice(format!("event: {name}\n").as_bytes());
                }
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(json);
                out.push(b'\n');
            }
        }
        out.push(b'\n');
        Frame::data(out.into())
    }

    fn next(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        let broken = |reason, detail| Box::new(Fault::new(reason).detail(detail).by(super::NAME));
        let message = self.frames.next(self.limit).map_err(|bad| match bad {
            Bad::TooLarge => broken(Reason::ResponseBodyTooLarge, "a message is larger than what may be transcoded"),
            Bad::Malformed => broken(Reason::BodyUnusable, "the endpoint's body is not made of plain frames"),
        })?;
        let Some(bytes) = message else { return Ok(None) };
        let json = DynamicMessage::decode(self.output.clone(), bytes)
            .ok()
            .and_then(|message| message::json(&message, self.only.as_ref(), &self.options));
        let json = json.ok_or_else(|| broken(Reason::BodyUnusable, "a message is not what its descriptor says"))?;
        Ok(Some(self.written(None, &json)))
    }
}

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let trailers = loop {
            match this.next() {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(fault) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(fault)));
                }
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => break None,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.frames.push(&data),
                    Err(frame) => break frame.into_trailers().ok(),
                },
                Some(Err(fault)) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(fault)));
                }
            }
        };
        this.ended = true;
        let mut status = Status::of(trailers.as_ref());
        if status.code == 0 && !this.frames.is_empty() {
            status.code = 13;
            "the service ended within a message".clone_into(&mut status.message);
        }
        if status.code == 0 {
            return Poll::Ready(None);
        }
        let json = status.json(this.table.made.status.as_ref(), &this.options);
        Poll::Ready(Some(Ok(this.written(Some("error"), &json))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
