//! HTTP to message and back: the proto3 JSON mapping is prost-reflect's; what stands here is where each part goes.

use bytes::{Buf, Bytes};
use percent_encoding::percent_decode_str;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    Cardinality, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions, Value,
};
use serde_json::value::RawValue;

use super::table::{Binding, BodyIs, resolve};
use super::template::Captured;

/// What is wrong with a request: where, and what.
pub type Wrong = (String, String);

/// Largest number of query parameters.
const MAX_PARAMETERS: usize = 256;

/// The message that a request stands for: its body, then its query, then its path, which nothing overrides.
pub fn request(
    binding: &Binding,
    body: &[u8],
    query: &str,
    path: Vec<Captured>,
    deny: bool,
) -> Result<DynamicMessage, Wrong> {
    let mut message = from_body(binding, body, deny)?;
    for parameter in query.split('&').filter(|p| !p.is_empty()).take(MAX_PARAMETERS) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
            return Err(("query".to_owned(), "is not UTF-8".to_owned()));
        };
        let wrong = |why: &str| (format!("query.{name}"), why.to_owned());
        // With `body: "*"` every field is the body's.
        let fields = if matches!(binding.body, BodyIs::Message) { None } else { resolve(&binding.call.input, &name) };
        let fields = fields.filter(|fields| !in_body(binding, fields));
        match fields {
            Some(fields) => put(&mut message, &fields, &value).map_err(wrong)?,
            None if deny => return Err(wrong("is not a field of the message")),
            None => {}
        }
    }
    for (field, value) in path {
        let wrong = |why: &str| (format!("path.{field}"), why.to_owned());
        let fields = resolve(&binding.call.input, &field).ok_or_else(|| wrong("is not a field of the message"))?;
        put(&mut message, &fields, &value).map_err(wrong)?;
    }
    Ok(message)
}

fn in_body(binding: &Binding, fields: &[FieldDescriptor]) -> bool {
    matches!((&binding.body, fields.first()), (BodyIs::Field(own), Some(first)) if own.number() == first.number())
}

fn decoded(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

fn from_body(binding: &Binding, body: &[u8], deny: bool) -> Result<DynamicMessage, Wrong> {
    let input = &binding.call.input;
    let options = DeserializeOptions::new().deny_unknown_fields(deny);
    // The reader's words may quote what it read; only its place is told.
    let wrong = |e: serde_json::Error| {
        let place = format!("line {}, column {}", e.line(), e.column());
        (String::new(), format!("is not JSON of {} ({place})", input.full_name()))
    };
    let read = |text: &[u8]| {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let message = DynamicMessage::deserialize_with_options(input.clone(), &mut reader, &options);
        message.and_then(|message| reader.end().map(|()| message)).map_err(wrong)
    };
    match &binding.body {
        _ if body.is_empty() => Ok(DynamicMessage::new(input.clone())),
        BodyIs::Absent => Err((String::new(), "has no place in this call".to_owned())),
        BodyIs::Message => read(body),
        BodyIs::Field(field) => {
            // One JSON value, so that it cannot close the object around it.
            let value: &RawValue = serde_json::from_slice(body).map_err(wrong)?;
            let name = serde_json::to_string(field.json_name()).unwrap_or_default();
            read(["{", &name, ":", value.get(), "}"].concat().as_bytes())
        }
    }
}

/// Puts a text into the field at the end of a path.
fn put(message: &mut DynamicMessage, fields: &[FieldDescriptor], text: &str) -> Result<(), &'static str> {
    let Some((field, rest)) = fields.split_first() else { return Ok(()) };
    if !rest.is_empty() {
        let inner = message.get_field_mut(field).as_message_mut().ok_or("is not a field of the message")?;
        return put(inner, rest, text);
    }
    if field.is_map() {
        return Err("is a map, which only a body can hold");
    }
    let value = value(&field.kind(), text).ok_or("is not a value of its field's type")?;
    if field.cardinality() == Cardinality::Repeated {
        message.get_field_mut(field).as_list_mut().ok_or("is not a list")?.push(value);
    } else {
        message.try_set_field(field, value).map_err(|_| "is not a value of its field's type")?;
    }
    Ok(())
}

/// A text as a value of a field, as the JSON mapping writes it in a string.
fn value(kind: &Kind, text: &str) -> Option<Value> {
    Some(match kind {
        Kind::String => Value::String(text.to_owned()),
        Kind::Bool => Value::Bool(text.parse().ok()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(text.parse().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(text.parse().ok()?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(text.parse().ok()?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(text.parse().ok()?),
        Kind::Float => Value::F32(text.parse().ok()?),
        Kind::Double => Value::F64(text.parse().ok()?),
        Kind::Bytes => Value::Bytes(bytes_of(text)?.into()),
        Kind::Enum(kind) => match kind.get_value_by_name(text) {
            Some(named) => Value::EnumNumber(named.number()),
            None => Value::EnumNumber(text.parse().ok()?),
        },
        Kind::Message(message) => Value::Message(well_known(message, text)?),
    })
}

/// Base64 in either alphabet, padded or not.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let text = text.trim_end_matches('=');
    URL_SAFE_NO_PAD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()
}

/// Messages that JSON writes as one value: times, durations, field masks, and the wrappers.
fn well_known(message: &MessageDescriptor, text: &str) -> Option<DynamicMessage> {
    let name = message.full_name().strip_prefix("google.protobuf.")?;
    if name.ends_with("Value") && !matches!(name, "Value" | "NullValue" | "ListValue") {
        let mut wrapper = DynamicMessage::new(message.clone());
        let field = message.get_field(1)?;
        wrapper.try_set_field(&field, value(&field.kind(), text)?).ok()?;
        return Some(wrapper);
    }
    if !matches!(name, "Timestamp" | "Duration" | "FieldMask") {
        return None;
    }
    let json = serde_json::Value::from(text);
    DynamicMessage::deserialize(message.clone(), json).ok()
}

/// A message as JSON text.
pub fn json(message: &DynamicMessage, only: Option<&FieldDescriptor>, options: &SerializeOptions) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(256);
    let Some(field) = only else {
        message.serialize_with_options(&mut serde_json::Serializer::new(&mut out), options).ok()?;
        return Some(out);
    };
    // As it stands within the whole, also if it has its default value.
    let whole = message
        .serialize_with_options(serde_json::value::Serializer, &options.clone().skip_default_fields(false))
        .ok()?;
    let value = whole.get(field.json_name()).or_else(|| whole.get(field.name()));
    serde_json::to_writer(&mut out, value.unwrap_or(&serde_json::Value::Null)).ok()?;
    Some(out)
}

/// A message as a frame of gRPC, not compressed.
pub fn frame(message: &DynamicMessage) -> Option<Vec<u8>> {
    let length = message.encoded_len();
    let mut out = Vec::with_capacity(5 + length);
    out.push(0);
    out.extend_from_slice(&u32::try_from(length).ok()?.to_be_bytes());
    message.encode(&mut out).ok()?;
    Some(out)
}

/// Frames of gRPC as they come in pieces.
#[derive(Default)]
pub struct Frames {
    held: bytes::BytesMut,
}

/// What stopped the reading of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A message over the limit.
    TooLarge,
    /// Compressed, though nobody offered it, or no frame.
    Malformed,
}

impl Frames {
    pub fn push(&mut self, piece: &[u8]) {
        self.held.extend_from_slice(piece);
    }

    /// The next whole message.
    pub fn next(&mut self, limit: usize) -> Result<Option<Bytes>, Bad> {
        let Some(head) = self.held.first_chunk::<5>() else { return Ok(None) };
        if head[0] != 0 {
            return Err(Bad::Malformed);
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > limit {
            return Err(Bad::TooLarge);
        }
        if self.held.len() < 5 + length {
            return Ok(None);
        }
        self.held.advance(5);
        Ok(Some(self.held.split_to(length).freeze()))
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
