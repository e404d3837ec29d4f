//! The pure part: what is asked (RFC 7662 section 2.1), and what an answer says.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value as Json};

use super::config::ClientAuth;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// What `application/x-www-form-urlencoded` leaves as it is (RFC 6749 appendix B).
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'*');

/// What an answer must say.
#[derive(Debug)]
pub struct Rules {
    pub issuer: Option<String>,
    pub audiences: Option<Vec<String>>,
}

/// What the issuer said of a token.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// Good; for so many seconds, if it says that.
    Active(Map<String, Json>, Option<f64>),
    /// Not, and why.
    Inactive(&'static str),
}

/// Whether the text can be a token at all (RFC 6750 section 2.1, `b64token`): nobody is asked about anything else.
pub fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b);
    !body.is_empty() && text.len() <= MAX_TOKEN && body.bytes().all(fits)
}

/// The question. The answer must not be cached on the way, and the token stands in no URL.
pub fn question(path: &str, id: &str, secret: &str, auth: ClientAuth, token: &str) -> Option<Request<Bytes>> {
    let form = |text: &str| utf8_percent_encode(text, FORM).to_string();
    let mut body = format!("token={}&token_type_hint=access_token", form(token));
    let mut request = Request::post(path)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    match auth {
        ClientAuth::Basic => {
            let pair = STANDARD.encode(format!("{}:{}", form(id), form(secret)));
            let mut value = HeaderValue::try_from(format!("Basic {pair}")).ok()?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        ClientAuth::Post => {
            body.push_str(&format!("&client_id={}&client_secret={}", form(id), form(secret)));
        }
    }
    request.body(body.into()).ok()
}

/// Reads an answer (RFC 7662 section 2.2) at `unix` seconds. An error is the issuer's fault, and no verdict.
pub fn answer(body: &[u8], rules: &Rules, unix: f64) -> Result<Said, String> {
    let claims: Map<String, Json> =
        serde_json::from_slice(body).map_err(|_| "the answer is no JSON object".to_owned())?;
    match claims.get("active") {
        Some(Json::Bool(true)) => {}
        Some(Json::Bool(false)) => return Ok(Said::Inactive("the token is not active")),
        _ => return Err("the answer does not say whether the token is active".to_owned()),
    }
    let date = |name: &str| match claims.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(date) => date.as_f64().map(Some).ok_or(format!("`{name}` in the answer is not a number")),
    };
    let left = date("exp")?.map(|exp| exp - unix);
    if left.is_some_and(|left| left <= 0.0) {
        return Ok(Said::Inactive("the token has expired"));
    }
    if date("nbf")?.is_some_and(|nbf| nbf > unix) {
        return Ok(Said::Inactive("the token is not valid yet"));
    }
    if rules.issuer.as_deref().is_some_and(|wanted| claims.get("iss").and_then(Json::as_str) != Some(wanted)) {
        return Ok(Said::Inactive("the issuer is not accepted"));
    }
    if let Some(wanted) = &rules.audiences {
        let ours = |aud: &Json| aud.as_str().is_some_and(|a| wanted.iter().any(|w| w == a));
        let fits = match claims.get("aud") {
            Some(Json::Array(list)) => list.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        };
        if !fits {
            return Ok(Said::Inactive("the audience is not accepted"));
        }
    }
    Ok(Said::Active(claims, left))
}
