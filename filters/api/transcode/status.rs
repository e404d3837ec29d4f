//! The status of a call as HTTP and JSON: `google.rpc.Code` says which HTTP status, `google.rpc.Status` how it is written.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{HeaderMap, StatusCode};
use percent_encoding::percent_decode;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::json;

/// How a call ended.
#[derive(Debug)]
pub struct Status {
    pub code: i32,
    pub message: String,
    details: Option<Vec<u8>>,
}

impl Status {
    /// Reads trailers. None there: the service ended without a status.
    pub fn of(trailers: Option<&HeaderMap>) -> Self {
        let text = |name| trailers.and_then(|t| t.get(name)).and_then(|v| v.to_str().ok());
        let Some(code) = text("grpc-status").and_then(|code| code.parse().ok()) else {
            return Self { code: 2, message: "the service ended without a status".to_owned(), details: None };
        };
        let message = text("grpc-message").unwrap_or_default();
        let details = text("grpc-status-details-bin");
        Self {
            code,
            message: percent_decode(message.as_bytes()).decode_utf8_lossy().into_owned(),
            details: details.and_then(|text| STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()),
        }
    }

    /// The HTTP status, as google/rpc/code.proto has it.
    pub fn http(&self) -> StatusCode {
        let status = match self.code {
            0 => 200,
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        };
        StatusCode::from_u16(status).expect("a status of the table")
    }

    /// As JSON: `google.rpc.Status`. Details are told where the descriptor set knows their types.
    pub fn json(&self, status: Option<&MessageDescriptor>, options: &SerializeOptions) -> Vec<u8> {
        let detailed = || {
            let message = DynamicMessage::decode(status?.clone(), &**self.details.as_ref()?).ok()?;
            let whole = message.serialize_with_options(serde_json::value::Serializer, options).ok()?;
            whole.get("details").cloned()
        };
        let mut out = json!({ "code": self.code, "message": self.message });
        if let Some(details) = detailed() {
            out["details"] = details;
        }
        out.to_string().into_bytes()
    }
}
