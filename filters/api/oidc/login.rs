//! The authorization code flow (OpenID Connect Core 1.0 section 3.1) with PKCE (RFC 7636): out to the issuer and back.

use std::sync::Arc;

use http::header::SET_COOKIE;
use http::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::browser::{go_to, html, is_loopback, is_navigation, origin, page, safe_return};
use super::cookies::{Jar, pairs};
use super::id_token::{self, Expected, same};
use super::provider::Endpoints;
use super::session::Session;
use super::tokens::{Failure, Tokens, escape, form, userinfo};
use super::{Core, invalid, seconds};
use crate::api::jose::keys::Signature;
use crate::api::jose::token::Token;
use crate::api::jose::unix;
use crate::contract::filter::AuthVerdict;
use crate::contract::seal::word;
use crate::contract::{Body, Fault, Reason, RequestCx, now};

/// How long somebody may take at the issuer's login page, in seconds.
const PATIENCE: u64 = 600;
/// Logins begun in one browser at once, such as tabs that were restored together.
const TABS: usize = 5;
/// Letters of the state that name its cookie.
const TAG: usize = 12;

/// A login that was begun, as the browser keeps it.
#[derive(Serialize, Deserialize)]
struct Begun {
    state: String,
    nonce: String,
    verifier: String,
    target: String,
    redirect: String,
    at: u64,
}

impl Core {
    /// The way to the login page, for a browser that opens a page. What comes back must fit the cookie that goes along.
    pub(super) fn begin(&self, rq: &mut RequestCx) -> Option<Result<Response<Body>, Fault>> {
        if self.is_own(rq.path()) || !is_navigation(rq) {
            return None;
        }
        let Some(endpoints) = self.provider.endpoints() else {
            return Some(Err(Fault::new(Reason::IdentityUnavailable)
                .detail("the issuer has not been reached yet")
                .header(http::header::RETRY_AFTER, http::HeaderValue::from_static("5"))));
        };
        if self.jar.secure && !rq.https {
            return Some(Err(Fault::new(Reason::Forbidden).detail("a login needs https")));
        }
        if !self.jar.secure && !is_loopback(rq) {
            return Some(
                Err(Fault::new(Reason::Forbidden).detail("without secure cookies only loopback hosts log in")),
            );
        }
        let begun = Begun {
            state: word(),
            nonce: word(),
            verifier: word(),
            target: safe_return(rq.target.as_str()).to_owned(),
            redirect: format!("{}{}", origin(rq), self.redirect_path),
            at: seconds(),
        };
        self.forget_logins(rq, TABS);
        let sealed = serde_json::to_vec(&begun).expect("text is JSON");
        let sealed = self.keys.seal(&self.login_purpose, &sealed);
        let lines = self.login_jar(&begun.state).keep(&rq.headers, &sealed, PATIENCE)?;
        self.counters.begun.inc();
        let mut reply = go_to(StatusCode::FOUND, &self.login_url(&endpoints, &begun));
        reply.headers_mut().extend(lines.into_iter().map(|line| (SET_COOKIE, line)));
        Some(Ok(reply))
    }

    fn login_url(&self, endpoints: &Endpoints, begun: &Begun) -> String {
        use base64::Engine as _;
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, begun.verifier.as_bytes());
        let challenge = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(hash.as_ref());
        let mut url = endpoints.authorization.clone();
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&form([
            ("response_type", "code"),
            ("client_id", &self.client.id),
            ("redirect_uri", &begun.redirect),
            ("scope", &self.scope),
            ("state", &begun.state),
            ("nonce", &begun.nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]));
        if let Some(most) = self.max_auth_age {
            url.push_str(&format!("&max_age={most}"));
        }
        for (name, value) in &self.parameters {
            url.push_str(&format!("&{}={}", escape(name), escape(value)));
        }
        url
    }

    /// A cookie for each login that was begun, so that several tabs do not spoil each other's.
    fn login_jar(&self, state: &str) -> Jar {
        let tag = state.get(..TAG).unwrap_or(state);
        // Always Lax: the browser comes back from another site.
        Jar { name: format!("{}.login.{tag}", self.jar.name).into(), secure: self.jar.secure, same_site: "Lax" }
    }

    /// Makes the browser forget logins that it never finished, once there are this many.
    fn forget_logins(&self, rq: &mut RequestCx, most: usize) {
        let prefix = format!("{}.login.", self.jar.name);
        let states: Vec<String> =
            pairs(&rq.headers).filter_map(|(name, _)| name.strip_prefix(&prefix)).map(ToOwned::to_owned).collect();
        if states.len() >= most {
            for state in states.iter().filter(|s| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))) {
                let lines = self.login_jar(state).forget(&rq.headers);
                rq.reply_headers.extend(lines.into_iter().map(|line| (SET_COOKIE, line)));
            }
        }
    }

    /// The browser is back from the issuer.
    pub(super) async fn finish(&self, rq: &mut RequestCx) -> AuthVerdict {
        let verdict = self.callback(rq).await;
        match &verdict {
            AuthVerdict::Reply(_) => self.counters.completed.inc(),
            _ => self.counters.failed.inc(),
        }
        verdict
    }

    async fn callback(&self, rq: &mut RequestCx) -> AuthVerdict {
        let Some(endpoints) = self.provider.endpoints() else {
            return AuthVerdict::Unavailable("the issuer has not been reached yet");
        };
        let code = match self.answer(rq, &endpoints) {
            Ok((code, begun)) => self.exchange(&endpoints, &code, &begun).await.map(|session| (session, begun.target)),
            Err(error) => Err(Failure::Denied(error)),
        };
        let (session, target) = match code {
            Ok(done) => done,
            Err(Failure::Denied(why)) => {
                tracing::info!(identity = &*self.name, why, "a login failed");
                return invalid(why);
            }
            Err(Failure::Unreachable(error)) => {
                tracing::warn!(identity = &*self.name, error, "the issuer did not answer; a login failed");
                return AuthVerdict::Unavailable("the issuer did not answer");
            }
        };
        if !self.write(rq, &session) {
            tracing::warn!(identity = &*self.name, "a session does not fit into cookies");
            return invalid("the session does not fit into cookies");
        }
        AuthVerdict::Reply(Box::new(match self.strict {
            false => go_to(StatusCode::FOUND, &target),
            // The browser still counts this as a visit from the issuer's site and would not show the new cookie to a
            // redirect; a page that goes on by itself is ours.
            true => page(format!("<!doctype html><meta http-equiv=refresh content=\"0;url={}\">", html(&target))),
        }))
    }

    /// What came back, held against what was begun. Each state counts once.
    fn answer(&self, rq: &mut RequestCx, endpoints: &Endpoints) -> Result<(String, Begun), &'static str> {
        if rq.method != Method::GET {
            return Err("the issuer's answer comes by GET");
        }
        let query = Answer::read(rq.target.query().unwrap_or_default())?;
        let state = query.state.ok_or("the answer has no state")?;
        let jar = self.login_jar(&state);
        let begun = jar
            .find(&rq.headers)
            .and_then(|sealed| self.keys.open(&self.login_purpose, &sealed))
            .and_then(|plain| serde_json::from_slice::<Begun>(&plain).ok());
        rq.reply_headers.extend(jar.forget(&rq.headers).into_iter().map(|line| (SET_COOKIE, line)));
        let now = seconds();
        let begun = begun
            .filter(|begun| same(&begun.state, &state) && now < begun.at + PATIENCE)
            .ok_or("this login was not begun in this browser, or too long ago; open the page again")?;
        // Contended by logins only.
        if !self.memory.states.lock().is_new(&state, now, PATIENCE) {
            return Err("this answer of the issuer was used before");
        }
        // RFC 9207: an answer from another issuer must never meet this one's token endpoint.
        match &query.iss {
            Some(iss) if *iss != self.rules.issuer => return Err("the answer comes from another issuer"),
            None if endpoints.names_itself => return Err("the answer does not say which issuer it comes from"),
            _ => {}
        }
        if let Some(error) = query.error {
            return Err(match error.as_str() {
                "access_denied" => "the issuer did not let the user in (access_denied)",
                "login_required" | "interaction_required" | "consent_required" => "the issuer wants to see the user",
                "temporarily_unavailable" | "server_error" => "the issuer failed",
                _ => "the issuer refused the login",
            });
        }
        Ok((query.code.ok_or("the answer has no code")?, begun))
    }

    async fn exchange(&self, endpoints: &Arc<Endpoints>, code: &str, begun: &Begun) -> Result<Session, Failure> {
        let grant = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &begun.redirect),
            ("code_verifier", &begun.verifier),
        ];
        let tokens = self.client.ask(endpoints, &grant).await?;
        let text = tokens.id_token.as_deref().ok_or(Failure::Denied("the issuer gave no ID token"))?;
        let expected = Expected { nonce: Some(&begun.nonce), ..self.expected(&tokens) };
        let subject = self.verify(endpoints, text, &expected).await?;
        let claims = match &endpoints.userinfo {
            Some(remote) if self.userinfo => Some(userinfo(remote, &tokens.access_token, &subject).await?),
            _ => None,
        };
        let now = seconds();
        let life = tokens.expires_in.as_ref().and_then(|s| s.whole()).map(|life| (now, now + life));
        Ok(Session {
            id: word(),
            renewed: 0,
            since: now,
            seen: now,
            id_token: text.to_owned(),
            userinfo: claims,
            access: self.forward.then_some(tokens.access_token),
            life,
            refresh: tokens.refresh_token,
            scope: tokens.scope,
        })
    }

    /// What is the same for every ID token.
    pub(super) fn expected<'t>(&'t self, tokens: &'t Tokens) -> Expected<'t> {
        Expected {
            client: &self.client.id,
            access: Some(&tokens.access_token),
            max_auth_age: self.max_auth_age.map(|most| most as f64),
            leeway: self.rules.leeway,
            ..Expected::default()
        }
    }

    /// Verifies an ID token; gives its subject.
    pub(super) async fn verify(
        &self,
        endpoints: &Endpoints,
        text: &str,
        expected: &Expected<'_>,
    ) -> Result<String, Failure> {
        let token = self.signed(endpoints, text).await?;
        id_token::check(&token, expected, unix()).map_err(Failure::Denied)?;
        Ok(token.claims.get("sub").and_then(Json::as_str).unwrap_or_default().to_owned())
    }

    /// A token of the issuer for us, with a good signature. A key that is not known may be a new one.
    pub(super) async fn signed<'t>(&self, endpoints: &Endpoints, text: &'t str) -> Result<Token<'t>, Failure> {
        let token = Token::parse(text).map_err(|e| Failure::Denied(e.description))?;
        if !self.algorithms.contains(&token.algorithm) {
            return Err(Failure::Denied("the algorithm is not accepted"));
        }
        token.check(&self.rules, unix()).map_err(|e| Failure::Denied(e.description))?;
        let store = &endpoints.keys;
        let judge = || match store.generation() {
            0 => Signature::UnknownKey,
            _ => store.keys().verify(token.kid.as_deref(), token.algorithm, token.signed, &token.signature),
        };
        let mut judged = judge();
        if judged == Signature::UnknownKey && store.may_refetch(now()) {
            store.refetch().await;
            judged = judge();
        }
        match judged {
            Signature::Good => Ok(token),
            Signature::Bad => Err(Failure::Denied("the signature is wrong")),
            Signature::WrongAlgorithm => Err(Failure::Denied("the algorithm does not fit the key")),
            Signature::UnknownKey if store.generation() == 0 => {
                Err(Failure::Unreachable("the issuer's keys have not been fetched yet".to_owned()))
            }
            Signature::UnknownKey => Err(Failure::Denied("the key is not known")),
        }
    }
}

/// Parameters of the issuer's answer (RFC 6749 section 4.1.2).
#[derive(Default)]
struct Answer {
    code: Option<String>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

impl Answer {
    /// A parameter that stands twice is not guessed between (RFC 6749 section 3.1).
    fn read(query: &str) -> Result<Self, &'static str> {
        let mut answer = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match name {
                "code" => &mut answer.code,
                "state" => &mut answer.state,
                "iss" => &mut answer.iss,
                "error" => &mut answer.error,
                _ => continue,
            };
            let text = percent_decode_str(&value.replace('+', " ")).decode_utf8().map(std::borrow::Cow::into_owned);
            if place.replace(text.map_err(|_| "the answer is malformed")?).is_some() {
                return Err("a parameter of the answer stands twice");
            }
        }
        Ok(answer)
    }
}
