//! The pure part: a token's form (RFC 7515, 7519) and its claims, as RFC 8725 wants them checked.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::keys::Algorithm;
use crate::contract::AuthError;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// The one refusal that time undoes.
pub const NOT_YET: &str = "the token is not valid yet";

/// What a token must say.
#[derive(Debug)]
pub struct Rules {
    pub issuer: String,
    pub audiences: Vec<String>,
    /// Seconds.
    pub leeway: f64,
    pub typ: Option<String>,
}

/// A token taken apart; nothing in it is verified.
#[derive(Debug)]
pub struct Token<'a> {
    /// What the signature covers.
    pub signed: &'a [u8],
    pub signature: Vec<u8>,
    pub algorithm: Algorithm,
    pub kid: Option<String>,
    pub typ: Option<String>,
    pub claims: Map<String, Json>,
}

/// Members that matter. A repeated one is an error, so that no two readers can differ.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    typ: Option<Cow<'a, str>>,
    crit: Option<Json>,
}

const fn invalid(description: &'static str) -> AuthError {
    AuthError { code: "invalid_token", description }
}

impl<'a> Token<'a> {
    /// Takes a compact JWS apart (RFC 7515 section 5.2). Base64 is strict: no padding, no stray bits.
    pub fn parse(text: &'a str) -> Result<Self, AuthError> {
        if text.len() > MAX_TOKEN {
            return Err(invalid("the token is too long"));
        }
        let malformed = invalid("the token is malformed");
        let (signed, signature) = text.rsplit_once('.').ok_or(malformed.clone())?;
        let (header, payload) = signed.split_once('.').ok_or(malformed.clone())?;
        if payload.contains('.') {
            return Err(invalid("encrypted tokens are not accepted"));
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed.clone());
        let header = decode(header)?;
        let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| malformed.clone())?;
        if header.crit.is_some() {
            // RFC 7515 section 4.1.11: extensions that are not understood make the token invalid; we understand none.
            return Err(invalid("the token has critical extensions"));
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(invalid("the algorithm is not accepted"))?;
        let claims = serde_json::from_slice(&decode(payload)?).map_err(|_| malformed.clone())?;
        Ok(Self {
            signed: signed.as_bytes(),
            signature: decode(signature)?,
            algorithm,
            kid: header.kid.map(Cow::into_owned),
            typ: header.typ.map(Cow::into_owned),
            claims,
        })
    }

    /// Checks what the token says at `unix` seconds; gives the seconds it is good for from then on.
    pub fn check(&self, rules: &Rules, unix: f64) -> Result<f64, AuthError> {
        if let Some(wanted) = &rules.typ
            && !self.typ.as_deref().is_some_and(|typ| media_type(typ).eq_ignore_ascii_case(media_type(wanted)))
        {
            return Err(invalid("the token is of another type"));
        }
        if self.claims.get("iss").and_then(Json::as_str) != Some(&rules.issuer) {
            return Err(invalid("the issuer is not accepted"));
        }
        let ours = |aud: &Json| aud.as_str().is_some_and(|a| rules.audiences.iter().any(|r| r == a));
        let audience = match self.claims.get("aud") {
            Some(Json::Array(list)) => list.iter().all(Json::is_string) && list.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        };
        if !audience {
            return Err(invalid("the audience is not accepted"));
        }
        if self.claims.get("sub").is_some_and(|s| !s.is_string()) {
            return Err(invalid("the subject is not text"));
        }
        let left = self.date("exp")?.ok_or(invalid("the token never expires"))? + rules.leeway - unix;
        if left <= 0.0 {
            return Err(invalid("the token has expired"));
        }
        if self.date("nbf")?.is_some_and(|nbf| nbf - rules.leeway > unix) {
            return Err(invalid(NOT_YET));
        }
        self.date("iat")?;
        Ok(left)
    }

    /// A NumericDate (RFC 7519 section 2).
    fn date(&self, claim: &str) -> Result<Option<f64>, AuthError> {
        match self.claims.get(claim) {
            None => Ok(None),
            Some(date) => date.as_f64().map(Some).ok_or(invalid("a date in the token is not a number")),
        }
    }
}

/// `application/at+jwt` and `at+jwt` are the same (RFC 7515 section 4.1.9).
fn media_type(typ: &str) -> &str {
    match typ.split_at_checked("application/".len()) {
        Some((head, rest)) if head.eq_ignore_ascii_case("application/") => rest,
        _ => typ,
    }
}

/// What a token may do: `scope`, `scp` and `scopes`.
pub fn scopes(claims: &Map<String, Json>) -> Vec<Arc<str>> {
    super::claims::scopes_at(claims, &super::claims::SCOPES)
}
