//! The end of a session: by the user (RP-Initiated Logout 1.0), or by the issuer (Back-Channel Logout 1.0).

use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::{Method, StatusCode};
use percent_encoding::percent_decode;
use serde_json::json;

use super::browser::{Site, blank, go_to, html, is_script, json, origin, page, site};
use super::revoked::Which;
use super::tokens::{Failure, form};
use super::{Core, id_token, seconds};
use crate::contract::filter::AuthVerdict;
use crate::contract::{Buffered, RequestCx};

/// Bytes of a logout token's form.
const MAX_FORM: usize = 64 << 10;
/// How long a logout token's id is remembered, in seconds: beyond the life such tokens have.
const REMEMBERED: u64 = 3600;

impl Core {
    /// Ends the session here and, unless told not to, at the issuer. Another site's page can neither do it by itself nor
    /// by a link: then the user is asked.
    pub(super) fn logout(&self, rq: &mut RequestCx) -> AuthVerdict {
        let reply = match (&rq.method, site(rq)) {
            (&Method::GET, Site::Own) => None,
            (&Method::GET, _) => Some(self.confirm()),
            (&Method::POST, Site::Own) => None,
            // Without a word from the browser, the cookie itself came only from one of our own pages.
            (&Method::POST, Site::Unknown) if self.jar.same_site != "None" => None,
            (&Method::POST, _) => return super::invalid("a logout comes from a page of this site"),
            _ => Some(blank(StatusCode::METHOD_NOT_ALLOWED)),
        };
        if let Some(reply) = reply {
            return AuthVerdict::Reply(Box::new(reply));
        }
        let text = self.jar.find(&rq.headers);
        let opened = text.and_then(|text| self.lately.find(self, &text));
        let lines = self.jar.forget(&rq.headers);
        rq.reply_headers.extend(lines.into_iter().map(|line| (SET_COOKIE, line)));
        let mut location = self.after_logout.clone();
        if let Some(opened) = opened.filter(|o| !o.is_revoked(&self.memory.revoked)) {
            // A copy of the cookie, wherever it may be, is worth nothing from now on.
            let session = Which::Session(opened.session.id.clone());
            self.memory.revoked.add(session, seconds(), self.limits.max_age);
            self.counters.logged_out.inc();
            let newest = self.memory.newer(self, &opened).unwrap_or(opened);
            let endpoints = self.provider.endpoints().filter(|_| !self.local_logout);
            if let Some(end) = endpoints.and_then(|e| e.end_session.clone()) {
                let back = format!("{}{}", origin(rq), self.after_logout);
                let query = form([
                    ("id_token_hint", newest.session.id_token.as_str()),
                    ("client_id", &self.client.id),
                    ("post_logout_redirect_uri", &back),
                ]);
                location = format!("{end}{}{query}", if end.contains('?') { '&' } else { '?' });
            }
        }
        AuthVerdict::Reply(Box::new(match is_script(rq) {
            // A script cannot follow to the issuer; its page can.
            true => json(StatusCode::OK, &json!({ "location": location })),
            false => go_to(StatusCode::SEE_OTHER, &location),
        }))
    }

    fn confirm(&self) -> http::Response<crate::contract::Body> {
        let path = html(&self.logout_path);
        page(format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>Log out</title>\
             <form method=post action=\"{path}\"><p>Do you want to log out?</p><button>Log out</button></form>"
        ))
    }

    /// A message of the issuer that sessions are over (Back-Channel Logout 1.0 section 2.5).
    pub(super) async fn backchannel(&self, rq: &mut RequestCx) -> AuthVerdict {
        let refused = |why: &'static str| {
            tracing::info!(identity = &*self.name, why, "a logout token was refused");
            let problem = json!({ "error": "invalid_request", "error_description": why });
            AuthVerdict::Reply(Box::new(json(StatusCode::BAD_REQUEST, &problem)))
        };
        let is_form = rq
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().to_ascii_lowercase().starts_with(b"application/x-www-form-urlencoded"));
        if rq.method != Method::POST || !is_form {
            return refused("a logout token comes by POST, as a form");
        }
        let Some(endpoints) = self.provider.endpoints() else {
            return AuthVerdict::Unavailable("the issuer has not been reached yet");
        };
        let body = match rq.body.buffer(MAX_FORM).await {
            Ok(Buffered::Whole(body)) => body,
            _ => return refused("the form is too long or broke off"),
        };
        let Some(text) = only(&body, b"logout_token") else { return refused("there is not one logout token") };
        let logout = match self.signed(&endpoints, &text).await {
            Ok(token) => id_token::logout(&token),
            Err(Failure::Denied(why)) => Err(why),
            Err(Failure::Unreachable(error)) => {
                tracing::warn!(identity = &*self.name, error, "a logout token could not be judged");
                return AuthVerdict::Unavailable("the issuer's keys have not been fetched yet");
            }
        };
        let logout = match logout {
            Ok(logout) => logout,
            Err(why) => return refused(why),
        };
        let now = seconds();
        // Contended by logouts only.
        if !self.memory.logouts.lock().is_new(&logout.jti, now, REMEMBERED) {
            return refused("the logout token was used before");
        }
        // A session if it is named, else all of the user's.
        let which = match (logout.sid, logout.subject) {
            (Some(sid), _) => Which::Sid(sid),
            (None, subject) => Which::Subject(subject.unwrap_or_default()),
        };
        self.memory.revoked.add(which, now, self.limits.max_age);
        self.counters.logged_out_by_issuer.inc();
        AuthVerdict::Reply(Box::new(blank(StatusCode::OK)))
    }
}

/// The value of a field of a form that stands there once.
fn only(form: &[u8], name: &[u8]) -> Option<String> {
    let mut found = form.split(|b| *b == b'&').filter_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="));
    let value = found.next().filter(|_| found.next().is_none())?;
    percent_decode(value).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}
