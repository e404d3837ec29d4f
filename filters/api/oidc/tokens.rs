//! Questions to the token endpoint (RFC 6749 sections 4.1.3 and 6) and to userinfo.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::assertion::{KIND, Signer};
use super::config::ClientAuth;
use super::provider::Endpoints;
use crate::contract::client::{Bounds, Remote};

/// Bytes of an answer.
const MAX_ANSWER: usize = 128 << 10;
/// RFC 3986 section 2.3: what never needs an escape.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Who asks.
pub struct Client {
    pub id: String,
    pub secret: Option<String>,
    pub auth: Option<ClientAuth>,
    pub key: Option<Signer>,
}

/// RFC 6749 section 5.1.
#[derive(Deserialize)]
pub struct Tokens {
    pub access_token: String,
    pub token_type: String,
    pub expires_in: Option<Seconds>,
    pub refresh_token: Option<String>,
    pub id_token: Option<String>,
    pub scope: Option<String>,
}

/// A number, which some issuers write as text.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Seconds {
    Number(f64),
    Text(String),
}

impl Seconds {
    pub fn whole(&self) -> Option<u64> {
        let number = match self {
            Self::Number(n) => *n,
            Self::Text(text) => text.parse().ok()?,
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
        (0.0..1e10).contains(&number).then_some(number as u64)
    }
}

/// Why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The issuer says no: asking again does not help.
    Denied(&'static str),
    /// No usable answer, for the log: later there may be one.
    Unreachable(String),
}

/// `name=value&...`, escaped as a form and as a query.
pub fn form<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs = pairs.into_iter().map(|(name, value)| format!("{}={}", escape(name), escape(value)));
    pairs.collect::<Vec<_>>().join("&")
}

pub fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

impl Client {
    /// Asks for tokens with a grant.
    pub async fn ask(&self, endpoints: &Endpoints, grant: &[(&str, &str)]) -> Result<Tokens, Failure> {
        let mut pairs = grant.to_vec();
        let auth = self.auth.unwrap_or(match self.secret {
            None => ClientAuth::None,
            Some(_) if endpoints.only_post => ClientAuth::Post,
            Some(_) => ClientAuth::Basic,
        });
        let secret = self.secret.as_deref().unwrap_or_default();
        let assertion = match &self.key {
            None => None,
            Some(key) => Some(key.assertion(&self.id).ok_or(Failure::Denied("the client's key signs nothing"))?),
        };
        if let Some(assertion) = &assertion {
            pairs.extend([("client_assertion_type", KIND), ("client_assertion", assertion)]);
        }
        let mut request = Request::post(path(&endpoints.token))
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        match auth {
            // RFC 6749 section 2.3.1: both are form-encoded before they are joined.
            ClientAuth::Basic => {
                let basic = STANDARD.encode(format!("{}:{}", escape(&self.id), escape(secret)));
                let mut value = HeaderValue::try_from(format!("Basic {basic}"))
                    .map_err(|_| Failure::Denied("the client's secret cannot be sent"))?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            ClientAuth::Post => pairs.extend([("client_id", self.id.as_str()), ("client_secret", secret)]),
            ClientAuth::None => pairs.push(("client_id", &self.id)),
        }
        let request = request.body(Bytes::from(form(pairs))).map_err(|e| Failure::Unreachable(e.to_string()))?;
        let bounds = Bounds { body: MAX_ANSWER, ..Bounds::default() };
        let answer = endpoints.token.call(request, bounds).await.map_err(Failure::Unreachable)?;
        let status = answer.status().as_u16();
        if status == 200 {
            let tokens: Tokens = serde_json::from_slice(answer.body())
                .map_err(|_| Failure::Denied("the token endpoint's answer has no tokens"))?;
            let bearer = tokens.token_type.eq_ignore_ascii_case("bearer");
            return if bearer { Ok(tokens) } else { Err(Failure::Denied("the access token is not a bearer token")) };
        }
        if status >= 500 || status == 429 {
            return Err(Failure::Unreachable(format!("the token endpoint answered {status}")));
        }
        // RFC 6749 section 5.2. Of the words of the issuer none are shown, for they are not ours.
        let error = serde_json::from_slice::<Map<String, Json>>(answer.body()).ok();
        match error.as_ref().and_then(|e| e.get("error")).and_then(Json::as_str) {
            Some("invalid_grant") => {
                Err(Failure::Denied("the issuer does not accept the code or token (invalid_grant)"))
            }
            Some("invalid_client") => Err(Failure::Denied("the issuer does not accept the client (invalid_client)")),
            Some("unauthorized_client") => Err(Failure::Denied("the client may not do this (unauthorized_client)")),
            Some("invalid_scope") => Err(Failure::Denied("the issuer does not grant the scopes (invalid_scope)")),
            Some(_) if status == 400 => Err(Failure::Denied("the issuer refused the request for tokens")),
            _ => Err(Failure::Unreachable(format!("the token endpoint answered {status}"))),
        }
    }
}

/// Claims of the userinfo endpoint (OpenID Connect Core 1.0 section 5.3), about this very user (section 5.3.2).
pub async fn userinfo(remote: &Remote, access: &str, subject: &str) -> Result<Map<String, Json>, Failure> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {access}"))
        .map_err(|_| Failure::Denied("the access token cannot be sent"))?;
    bearer.set_sensitive(true);
    let request = Request::get(path(remote)).header(ACCEPT, "application/json").header(AUTHORIZATION, bearer);
    let request = request.body(Bytes::new()).map_err(|e| Failure::Unreachable(e.to_string()))?;
    let bounds = Bounds { body: MAX_ANSWER, ..Bounds::default() };
    let answer = remote.call(request, bounds).await.map_err(Failure::Unreachable)?;
    if answer.status() != 200 {
        return Err(Failure::Unreachable(format!("userinfo answered {}", answer.status().as_u16())));
    }
    let claims: Map<String, Json> =
        serde_json::from_slice(answer.body()).map_err(|_| Failure::Denied("userinfo is not a JSON object"))?;
    match claims.get("sub").and_then(Json::as_str) {
        Some(sub) if sub == subject => Ok(claims),
        _ => Err(Failure::Denied("userinfo is about somebody else")),
    }
}

fn path(remote: &Remote) -> &str {
    remote.uri().path_and_query().map_or("/", |p| p.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_escaped() {
        assert_eq!(form([("a b", "c&d=e"), ("f", "~-._ü+")]), "a%20b=c%26d%3De&f=~-._%C3%BC%2B");
    }

    #[test]
    fn seconds_may_be_text() {
        let read = |text: &str| serde_json::from_str::<Seconds>(text).ok().and_then(|s| s.whole());
        assert_eq!((read("60"), read("\"60\""), read("59.9")), (Some(60), Some(60), Some(59)));
        assert_eq!((read("-1"), read("\"x\""), read("1e300")), (None, None, None));
    }
}
