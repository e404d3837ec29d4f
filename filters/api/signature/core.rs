//! The pure part: what a signature says of itself, and the text that it covers (RFC 9421 section 2).

use std::borrow::Cow;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use sfv::{Dictionary, FieldType, InnerList, Item, ListEntry, Parser};

/// Signatures of a request that are looked at.
pub const MAX_SIGNATURES: usize = 4;
/// Components that one may cover.
pub const MAX_COMPONENTS: usize = 32;

/// Section 2.2.8: what `application/x-www-form-urlencoded` leaves as it is; a space becomes `%20`.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// Fields that are dictionaries, for the parameter `sf`: a strict form is known only for a known type.
const DICTIONARIES: [&str; 9] = [
    "accept-signature",
    "cache-control",
    "content-digest",
    "priority",
    "repr-digest",
    "signature",
    "signature-input",
    "want-content-digest",
    "want-repr-digest",
];

/// A request as signatures see it.
pub struct Message<'a> {
    pub method: &'a Method,
    pub https: bool,
    /// Lower-case.
    pub authority: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// `Content-Length`, which is not among the fields.
    pub length: Option<u64>,
}

/// A signature, and what it says of itself. Nothing in it is verified.
#[derive(Debug)]
pub struct Claim {
    covered: InnerList,
    pub signature: Vec<u8>,
    pub keyid: String,
    pub alg: Option<String>,
    pub created: Option<i64>,
    pub expires: Option<i64>,
    pub nonce: Option<String>,
    pub tag: Option<String>,
}

/// What is wrong, in a word for the caller.
pub type Wrong = &'static str;

/// Every signature of a message (section 4): labels pair the two fields.
pub fn claims(headers: &HeaderMap) -> Result<Vec<Claim>, Wrong> {
    let inputs = dictionary(headers, "signature-input")?;
    let signatures = dictionary(headers, "signature")?;
    if inputs.len() > MAX_SIGNATURES {
        return Err("the request has too many signatures");
    }
    let mut claims = Vec::with_capacity(inputs.len());
    for (label, input) in inputs {
        let ListEntry::InnerList(covered) = input else { return Err("`Signature-Input` is malformed") };
        let Some(ListEntry::Item(signature)) = signatures.get(&label) else {
            return Err("a label of `Signature-Input` has no signature");
        };
        let signature = signature.bare_item.as_byte_sequence().ok_or("`Signature` is malformed")?.to_vec();
        claims.push(claim(covered, signature)?);
    }
    Ok(claims)
}

fn claim(covered: InnerList, signature: Vec<u8>) -> Result<Claim, Wrong> {
    const MALFORMED: Wrong = "a parameter of the signature is malformed";
    if covered.items.len() > MAX_COMPONENTS {
        return Err("the signature covers too many components");
    }
    let text = |name: &str| match covered.params.get(name) {
        None => Ok(None),
        Some(value) => value.as_string().map(|s| Some(s.as_str().to_owned())).ok_or(MALFORMED),
    };
    let time = |name: &str| match covered.params.get(name) {
        None => Ok(None),
        Some(value) => value.as_integer().map(|n| Some(i64::from(n))).ok_or(MALFORMED),
    };
    Ok(Claim {
        keyid: text("keyid")?.ok_or("the signature names no key")?,
        alg: text("alg")?,
        created: time("created")?,
        expires: time("expires")?,
        nonce: text("nonce")?,
        tag: text("tag")?,
        signature,
        covered,
    })
}

fn dictionary(headers: &HeaderMap, name: &str) -> Result<Dictionary, Wrong> {
    let text = field(headers, name).ok_or("`Signature` and `Signature-Input` go together")?;
    Parser::new(text.as_ref()).parse().map_err(|_| "`Signature` or `Signature-Input` is malformed")
}

/// A field's lines as one value, each trimmed, joined as section 2.1 wants it.
pub fn field<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    let mut lines = headers.get_all(name).iter().map(|v| v.to_str().ok().map(str::trim));
    let first = lines.next()??;
    let mut joined = Cow::Borrowed(first);
    for line in lines {
        let joined = joined.to_mut();
        joined.push_str(", ");
        joined.push_str(line?);
    }
    Some(joined)
}

impl Claim {
    /// Whether it covers a component as a whole: a part of a field (`key`) says nothing of the rest.
    pub fn covers(&self, name: &str) -> bool {
        let whole = |item: &&Item| !item.params.contains_key("key") && !item.params.contains_key("name");
        let named = |item: &Item| item.bare_item.as_string().is_some_and(|s| s.as_str() == name);
        self.covered.items.iter().filter(whole).any(named)
    }

    /// The signature base (section 2.5).
    pub fn base(&self, message: &Message<'_>) -> Result<String, Wrong> {
        let mut base = String::with_capacity(512);
        let mut seen: Vec<String> = Vec::with_capacity(self.covered.items.len());
        for item in &self.covered.items {
            let identifier = item.serialize();
            if seen.contains(&identifier) {
                return Err("a component is covered twice");
            }
            let value = component(item, message)?;
            if value.contains(['\n', '\r']) {
                return Err("a component has a line break");
            }
            let _ = writeln!(base, "{identifier}: {value}");
            seen.push(identifier);
        }
        let parameters = vec![ListEntry::InnerList(self.covered.clone())].serialize().unwrap_or_default();
        let _ = write!(base, "\"@signature-params\": {parameters}");
        Ok(base)
    }
}

fn component<'a>(item: &Item, message: &Message<'a>) -> Result<Cow<'a, str>, Wrong> {
    const UNKNOWN: Wrong = "a covered component is not known here";
    let name = item.bare_item.as_string().ok_or("a covered component is malformed")?.as_str();
    let (path, query) = (message.path, message.query);
    let plain = || if item.params.is_empty() { Ok(()) } else { Err(UNKNOWN) };
    if !name.starts_with('@') {
        return covered_field(name, item, message);
    }
    if name == "@query-param" {
        return parameter(item, query.unwrap_or_default()).map(Cow::Owned);
    }
    plain()?;
    let target = || match query {
        Some(query) => Cow::Owned(format!("{path}?{query}")),
        None => Cow::Borrowed(path),
    };
    let scheme = if message.https { "https" } else { "http" };
    // Section 2.2.3: without the scheme's own port.
    let own = if message.https { ":443" } else { ":80" };
    let authority = message.authority.strip_suffix(own).unwrap_or(message.authority);
    Ok(match name {
        "@method" => Cow::Owned(message.method.as_str().to_owned()),
        "@authority" => Cow::Borrowed(authority),
        "@scheme" => Cow::Borrowed(scheme),
        "@path" => Cow::Borrowed(path),
        "@query" => Cow::Owned(format!("?{}", query.unwrap_or_default())),
        "@request-target" => target(),
        "@target-uri" => Cow::Owned(format!("{scheme}://{authority}{}", target())),
        // `@status` is a response's; others are not known to anybody yet.
        _ => return Err(UNKNOWN),
    })
}

/// Section 2.2.8: one named parameter, decoded and encoded again so that all spellings are one.
fn parameter(item: &Item, query: &str) -> Result<String, Wrong> {
    let wanted = match (item.params.len(), item.params.get("name").and_then(|n| n.as_string())) {
        (1, Some(name)) => name.as_str(),
        _ => return Err("`@query-param` names no parameter"),
    };
    let again = |text: &str| {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode(spaced.as_bytes()).decode_utf8_lossy();
        utf8_percent_encode(&decoded, FORM).to_string()
    };
    let pairs = query.split('&').filter(|p| !p.is_empty());
    let mut found = pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).filter(|(name, _)| again(name) == wanted);
    match (found.next(), found.next()) {
        (Some((_, value)), None) => Ok(again(value)),
        (None, _) => Err("a covered query parameter is not there"),
        // Which of them is meant, nobody can say.
        _ => Err("a covered query parameter stands twice"),
    }
}

fn covered_field<'a>(name: &str, item: &Item, message: &Message<'a>) -> Result<Cow<'a, str>, Wrong> {
    const ABSENT: Wrong = "a covered field is not there";
    if name != name.to_ascii_lowercase() || HeaderName::try_from(name).is_err() {
        return Err("a covered component is malformed");
    }
    if item.params.is_empty() {
        return match name {
            // Taken out of the fields when the request arrived.
            "host" => Ok(Cow::Borrowed(message.authority)),
            "content-length" => Ok(Cow::Owned(message.length.ok_or(ABSENT)?.to_string())),
            _ => field(message.headers, name).ok_or(ABSENT),
        };
    }
    if item.params.len() > 1 {
        return Err("the parameters of a covered field do not go together");
    }
    let dictionary = || -> Result<Dictionary, Wrong> {
        let text = field(message.headers, name).ok_or(ABSENT)?;
        Parser::new(text.as_ref()).parse().map_err(|_| "a covered field is no dictionary")
    };
    let is_set = |flag: &str| item.params.get(flag).and_then(|v| v.as_boolean()) == Some(true);
    if let Some(key) = item.params.get("key") {
        let key = key.as_string().ok_or("a covered component is malformed")?.as_str();
        let member = dictionary()?.get(key).cloned().ok_or(ABSENT)?;
        return Ok(Cow::Owned(vec![member].serialize().ok_or(ABSENT)?));
    }
    if is_set("sf") && DICTIONARIES.contains(&name) {
        return dictionary()?.serialize().map(Cow::Owned).ok_or(ABSENT);
    }
    if is_set("bs") {
        let lines = message.headers.get_all(name).iter();
        let encoded: Vec<String> = lines.map(|l| format!(":{}:", STANDARD.encode(l.as_bytes().trim_ascii()))).collect();
        return if encoded.is_empty() { Err(ABSENT) } else { Ok(Cow::Owned(encoded.join(", "))) };
    }
    // `req` belongs to responses, `tr` to trailers, which are not there yet.
    Err("a covered component is not known here")
}
