//! Identity kind `signature`: requests signed by a consumer's key (RFC 9421), bodies by their digest (RFC 9530).

mod config;
mod core;
mod digest;
mod keys;
mod nonces;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest as hash};
use http::HeaderName;
use http_body::Body as _;

use self::config::Config;
use self::core::{Claim, Message, Wrong, claims, field};
use self::digest::Judgement;
use self::keys::Key;
use self::nonces::{Nonces, Use};
use crate::contract::filter::{AuthError, AuthStep, AuthVerdict, Authenticator};
use crate::contract::metrics::Counter;
use crate::contract::principal::Consumer;
use crate::contract::units::{Duration as Time, Size};
use crate::contract::{Body, Buffered, Build, ConfigError, Entry, Node, RequestCx, Role, Spot, now};

const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const CONTENT_DIGEST: &str = "content-digest";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: "signature",
    summary: "Requests signed by keys of consumers (HTTP message signatures)",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Config>(),
    role: Role::Identity(build),
};

/// `consumers.NAME.signatureKeys`.
pub const KEYS: Entry = Entry {
    name: "signatureKeys",
    summary: "Keys that a consumer signs requests with",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Vec<config::Key>>(),
    role: Role::Credential(|held, dir| keys::read(held, dir).1),
};

struct Signature {
    name: Box<str>,
    keys: BTreeMap<String, (Key, Arc<Consumer>)>,
    required: Vec<Box<str>>,
    max_age: Duration,
    skew: Duration,
    tag: Option<String>,
    nonce_required: bool,
    nonces: Arc<Nonces>,
    body_limit: usize,
    accepted: Counter,
    refused: Counter,
    replayed: Counter,
}

fn build(node: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Authenticator>, ConfigError> {
    Ok(Arc::new(signature(node, build)?))
}

fn signature(node: &Node, build: &mut Build<'_>) -> Result<Signature, ConfigError> {
    let config: Config = node.read()?;
    let (keys, mut errors) = keys::read(build.directory.held(KEYS.name), &build.dir);
    if let Some(e) = errors.drain(..).next() {
        return Err(e);
    }
    let owner = |(id, key): (String, Key)| {
        let owner = build.directory.consumers.get(&key.owner)?.clone();
        Some((id, (key, owner)))
    };
    let keys = keys.into_iter().filter_map(owner).collect();
    let at_most = |time: &Option<Spot<Time>>, default: Duration, most: Duration| match time {
        Some(t) if t.value.0 > most => {
            Err(ConfigError::at(t.span, format!("{} is too long", t.value)).help(format!("at most {}", Time(most))))
        }
        Some(t) => Ok(t.value.0),
        None => Ok(default),
    };
    let max_age = at_most(&config.max_age, config::MAX_AGE, config::OLDEST)?;
    let skew = at_most(&config.skew, config::SKEW, config::MAX_SKEW)?;
    let body_limit = match &config.body_limit {
        Some(l) if l.value.0 > config::MAX_BODY => {
            let help = format!("at most {}: bodies are held in memory", Size(config::MAX_BODY));
            return Err(ConfigError::at(l.span, format!("{} is too large", l.value)).help(help));
        }
        limit => limit.as_ref().map_or(config::BODY, |l| l.value.0),
    };
    let most = match &config.nonces {
        Some(n) if n.value == 0 => {
            return Err(ConfigError::at(n.span, "no nonce could be remembered").help("such as `nonces: 100000`"));
        }
        most => most.as_ref().map_or(config::NONCES, |n| n.value),
    };
    let name = build.scope.strip_prefix("identities.").unwrap_or(&build.scope).to_owned();
    // A signature is of use from `skew` before its `created` to `maxAge` after; clocks of whole seconds round.
    let window = max_age + skew + Duration::from_secs(2);
    let nonces = build.keep("nonces", &format!("{window:?} {most}"), || Nonces::new(window, most));
    let count = |result| {
        let labels = [("identity", name.as_str()), ("result", result)];
        build.metrics.counter("onehop_signatures_total", "Signed requests that were judged, by result", &labels)
    };
    Ok(Signature {
        keys,
        required: required(config.required)?,
        max_age,
        skew,
        tag: config.tag.map(|t| t.value),
        nonce_required: config.nonce_required,
        nonces,
        body_limit: usize::try_from(body_limit).unwrap_or(usize::MAX),
        accepted: count("accepted"),
        refused: count("refused"),
        replayed: count("replayed"),
        name: name.into(),
    })
}

fn required(names: Option<Spot<Vec<Spot<String>>>>) -> Result<Vec<Box<str>>, ConfigError> {
    const DERIVED: [&str; 7] =
        ["@authority", "@method", "@path", "@query", "@request-target", "@scheme", "@target-uri"];
    let Some(Spot { span, value }) = names else {
        return Ok(["@method", "@authority", "@path", "@query", CONTENT_DIGEST].map(Into::into).into());
    };
    if value.is_empty() {
        return Err(ConfigError::at(span, "a signature over nothing would fit every request")
            .help("name what must be covered, such as `[\"@method\", \"@authority\", \"@path\"]`"));
    }
    let one = |name: Spot<String>| {
        let fits = match name.value.starts_with('@') {
            true => DERIVED.contains(&name.value.as_str()),
            false => HeaderName::try_from(&name.value).is_ok(),
        };
        match fits {
            true => Ok(name.value.to_ascii_lowercase().into()),
            false => Err(ConfigError::at(name.span, format!("`{}` is no component of a request", name.value))
                .help(format!("a field's name, or one of {}", DERIVED.join(", ")))),
        }
    };
    value.into_iter().map(one).collect()
}

/// The signature base of every signature in these fields, for a GET of `example.com`, after a look at the digest: what
/// strangers' bytes reach, for fuzzing.
#[must_use]
pub fn probe(headers: &http::HeaderMap, path: &str, query: Option<&str>, body: &[u8]) -> Option<Vec<String>> {
    if let Some(said) = field(headers, CONTENT_DIGEST) {
        let _ = digest::judge(&said, body);
    }
    let (authority, length) = ("example.com", Some(body.len() as u64));
    let message = Message { method: &http::Method::GET, https: true, authority, path, query, headers, length };
    Some(claims(headers).ok()?.iter().filter_map(|claim| claim.base(&message).ok()).collect())
}

const fn invalid(description: Wrong) -> AuthError {
    AuthError { code: "invalid_token", description }
}

impl Signature {
    /// The claims that are ours to judge: by a known key, with our tag.
    fn ours(&self, rq: &RequestCx) -> Result<Option<Vec<Claim>>, AuthError> {
        if !rq.headers.contains_key(SIGNATURE) && !rq.headers.contains_key(SIGNATURE_INPUT) {
            return Ok(None);
        }
        let mut ours = claims(&rq.headers).map_err(|description| AuthError { code: "invalid_request", description })?;
        if let Some(tag) = &self.tag {
            ours.retain(|claim| claim.tag.as_ref() == Some(tag));
            if ours.is_empty() {
                return Ok(None);
            }
        }
        ours.retain(|claim| self.keys.contains_key(&claim.keyid));
        if ours.is_empty() { Err(invalid("the key is not known")) } else { Ok(Some(ours)) }
    }

    /// Everything but the body and the nonce.
    fn verify(&self, claim: &Claim, rq: &RequestCx) -> Result<&Arc<Consumer>, Wrong> {
        let (key, owner) = self.keys.get(&claim.keyid).ok_or("the key is not known")?;
        if claim.alg.as_deref().is_some_and(|alg| alg != key.algorithm.name()) {
            return Err("the algorithm does not fit the key");
        }
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.timely(claim, i64::try_from(unix).unwrap_or(i64::MAX))?;
        if self.nonce_required && claim.nonce.is_none() {
            return Err("the signature has no nonce");
        }
        self.complete(claim, rq)?;
        let message = Message {
            method: &rq.method,
            https: rq.https,
            authority: rq.authority.as_str(),
            path: rq.target.path(),
            query: rq.target.query(),
            headers: &rq.headers,
            length: rq.body.size_hint().exact(),
        };
        match key.verify(claim.base(&message)?.as_bytes(), &claim.signature) {
            true => Ok(owner),
            false => Err("the signature is wrong"),
        }
    }

    /// Section 3.2, step 5: the times that the signature says, at `unix` seconds.
    fn timely(&self, claim: &Claim, unix: i64) -> Result<(), Wrong> {
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let created = claim.created.ok_or("the signature does not say when it was made")?;
        if created > unix.saturating_add(seconds(self.skew)) {
            return Err("the signature is from the future");
        }
        if unix.saturating_sub(created) > seconds(self.max_age) {
            return Err("the signature is too old");
        }
        match claim.expires {
            Some(expires) if expires <= unix => Err("the signature has expired"),
            _ => Ok(()),
        }
    }

    /// Whether all is covered that must be (section 3.2.1).
    fn complete(&self, claim: &Claim, rq: &RequestCx) -> Result<(), Wrong> {
        let whole = |name: &str| match name {
            "@authority" | "@scheme" => claim.covers("@target-uri"),
            "@path" | "@query" => claim.covers("@target-uri") || claim.covers("@request-target"),
            _ => false,
        };
        let concerns = |name: &str| match name {
            "@query" => rq.target.query().is_some(),
            CONTENT_DIGEST => !matches!(rq.body, Body::Empty),
            _ => true,
        };
        let mut missing = self.required.iter().filter(|name| concerns(name) && !claim.covers(name) && !whole(name));
        missing.next().map_or(Ok(()), |_| Err("the signature does not cover all that it must"))
    }

    /// The body, where the signature covers its digest.
    fn intact(rq: &RequestCx, body: &[u8]) -> Result<(), Wrong> {
        let said = field(&rq.headers, CONTENT_DIGEST).ok_or("a covered field is not there")?;
        match digest::judge(&said, body) {
            Judgement::Fits => Ok(()),
            Judgement::Differs => Err("the body does not fit its digest"),
            Judgement::Unusable => Err("the body's digest is not sha-256 or sha-512"),
        }
    }

    /// The last step: what was good once is used up.
    fn settle(&self, rq: &mut RequestCx, claim: &Claim, owner: &Arc<Consumer>) -> AuthVerdict {
        if let Some(nonce) = claim.nonce.as_ref().filter(|_| !rq.dry_run) {
            let digest = hash(&SHA256, format!("{}\n{nonce}", claim.keyid).as_bytes());
            let short = digest.as_ref()[..16].try_into().expect("SHA-256 has 32 bytes");
            match self.nonces.take(u128::from_le_bytes(short), now()) {
                Use::First => {}
                Use::Again => {
                    self.replayed.inc();
                    return AuthVerdict::Refused(invalid("the nonce was used before"));
                }
                Use::Full => return AuthVerdict::Unavailable("no more nonces can be remembered"),
            }
        }
        self.accepted.inc();
        rq.consumer = Some(owner.clone());
        AuthVerdict::Accepted
    }

    fn refuse(&self, error: AuthError) -> AuthVerdict {
        self.refused.inc();
        AuthVerdict::Refused(error)
    }

    /// The first claim that holds.
    fn judge(&self, rq: &mut RequestCx, ours: &[Claim], body: &[u8]) -> AuthVerdict {
        let mut why = "the signature is wrong";
        for claim in ours {
            let verified = self.verify(claim, rq).and_then(|owner| match claim.covers(CONTENT_DIGEST) {
                true => Self::intact(rq, body).map(|()| owner),
                false => Ok(owner),
            });
            match verified {
                Ok(owner) => return self.settle(rq, claim, owner),
                Err(wrong) => why = wrong,
            }
        }
        self.refuse(invalid(why))
    }

    /// Reads the body once a signature that covers it has turned out to be good: strangers make nobody read.
    async fn read_and_judge(&self, rq: &mut RequestCx, ours: Vec<Claim>) -> AuthVerdict {
        let mut why = None;
        if !ours.iter().any(|claim| self.verify(claim, rq).map_err(|w| why = Some(w)).is_ok()) {
            return self.refuse(invalid(why.unwrap_or("the signature is wrong")));
        }
        match rq.body.buffer(self.body_limit).await {
            Ok(Buffered::Whole(body)) => self.judge(rq, &ours, &body),
            Ok(Buffered::Partial(_)) => self.refuse(invalid("the body is too large to be compared with its digest")),
            Err(_) => self.refuse(invalid("the body broke off")),
        }
    }
}

impl Authenticator for Signature {
    fn authenticate<'a>(&'a self, rq: &'a mut RequestCx) -> AuthStep<'a> {
        let ours = match self.ours(rq) {
            Ok(None) => return AuthStep::Done(AuthVerdict::Absent),
            Ok(Some(ours)) => ours,
            Err(error) => return AuthStep::Done(self.refuse(error)),
        };
        let body = match &rq.body {
            Body::Empty => bytes::Bytes::new(),
            Body::Full(known) => known.clone().unwrap_or_default(),
            // Asked again inside the future, for nothing was done yet.
            Body::Stream(_) if ours.iter().any(|claim| claim.covers(CONTENT_DIGEST)) => {
                return AuthStep::Wait(Box::pin(self.read_and_judge(rq, ours)));
            }
            Body::Stream(_) => bytes::Bytes::new(),
        };
        AuthStep::Done(self.judge(rq, &ours, &body))
    }

    /// There is no registered scheme; the challenge says what a signature has to cover.
    fn challenge(&self, error: Option<&AuthError>) -> String {
        let mut challenge = format!("Signature realm=\"{}\", components=\"{}\"", self.name, self.required.join(" "));
        if let Some(e) = error {
            challenge.push_str(&format!(", error=\"{}\", error_description=\"{}\"", e.code, e.description));
        }
        challenge
    }
}
