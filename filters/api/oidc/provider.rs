//! What the issuer says of itself (OpenID Connect Discovery 1.0): fetched in the background, the last good answer kept.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Deserialize;
use tokio::sync::{Notify, watch};

use crate::api::jose::keys::Algorithm;
use crate::api::jose::source::{self, Source, Store, keep_fresh};
use crate::contract::client::{Bounds, Remote};
use crate::contract::metrics::Counter;

/// How often the document is read again.
const REFRESH: Duration = Duration::from_secs(3600);
/// How often the keys are.
const REFRESH_KEYS: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How long the first requests wait for the first answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of a document.
const MAX_DOCUMENT: usize = 256 << 10;

/// The issuer, as far as it is known.
pub struct Provider {
    current: ArcSwapOption<Endpoints>,
    /// Attempts that have ended, well or not.
    attempts: watch::Sender<u64>,
    /// Ends the background task when the provider is gone.
    gone: Arc<Notify>,
}

/// Where to turn for what.
pub struct Endpoints {
    pub authorization: String,
    pub token: Remote,
    pub userinfo: Option<Remote>,
    pub end_session: Option<String>,
    /// Answers to logins say who they are from (RFC 9207): one that does not is not from this issuer.
    pub names_itself: bool,
    /// The token endpoint takes the secret in the body only.
    pub only_post: bool,
    pub keys: Arc<Store>,
    jwks: String,
}

/// OpenID Connect Discovery 1.0 section 3, what we use of it.
#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
}

/// What the background task needs.
pub struct Discovery {
    pub name: String,
    pub issuer: String,
    pub remote: Remote,
    pub ca: Option<PathBuf>,
    pub plaintext: bool,
    pub algorithms: Vec<Algorithm>,
    pub fetched: Counter,
    pub failed: Counter,
    pub keys: Box<dyn Fn() -> source::Counters + Send + Sync>,
}

/// The document's place below an issuer (section 4.1: a slash at the issuer's end is not doubled).
pub fn document_of(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

impl Default for Provider {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), attempts: watch::Sender::new(0), gone: Arc::new(Notify::new()) }
    }
}

impl Provider {
    /// What is known; `None` before the first answer.
    pub fn endpoints(&self) -> Option<Arc<Endpoints>> {
        self.current.load_full()
    }

    /// Waits for the first attempt, if none has ended yet.
    pub async fn settled(&self) {
        let mut attempts = self.attempts.subscribe();
        let _ = tokio::time::timeout(PATIENCE, attempts.wait_for(|n| *n > 0)).await;
    }

    /// Whether waiting makes sense.
    pub fn is_starting(&self) -> bool {
        *self.attempts.borrow() == 0
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.gone.notify_one();
    }
}

/// Keeps a provider known until it is gone.
pub async fn keep_known(provider: Weak<Provider>, discovery: Discovery) {
    let Some(gone) = provider.upgrade().map(|p| p.gone.clone()) else { return };
    let bounds = Bounds { body: MAX_DOCUMENT, ..Bounds::default() };
    let mut failures = 0u32;
    loop {
        let result = discovery.remote.get("application/json", bounds).await;
        let Some(living) = provider.upgrade() else { return };
        match result.and_then(|text| discovery.read(&text, living.endpoints())) {
            Ok(endpoints) => {
                failures = 0;
                discovery.fetched.inc();
                living.current.store(Some(Arc::new(endpoints)));
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                discovery.failed.inc();
                tracing::warn!(
                    identity = discovery.name,
                    error,
                    "the issuer does not say what it is; what was known stays in use"
                );
            }
        }
        living.attempts.send_modify(|n| *n += 1);
        drop(living);
        let pause = if failures == 0 { REFRESH } else { (FIRST_PAUSE * (1 << (failures - 1).min(6))).min(MAX_PAUSE) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = gone.notified() => return,
        }
    }
}

impl Discovery {
    /// Reads a document. The issuer must call itself what the configuration calls it (section 4.3), or whoever controls
    /// that URL could have us believe another's tokens.
    fn read(&self, text: &[u8], known: Option<Arc<Endpoints>>) -> Result<Endpoints, String> {
        let document: Document = serde_json::from_slice(text).map_err(|e| format!("not a discovery document: {e}"))?;
        if document.issuer != self.issuer {
            return Err("the document is another issuer's: `issuer` differs from the configuration".to_owned());
        }
        if document.code_challenge_methods_supported.as_ref().is_some_and(|m| !m.iter().any(|m| m == "S256")) {
            return Err("the issuer does not support PKCE with S256".to_owned());
        }
        let remote = |url: &str| Remote::new(url, self.ca.as_deref(), self.plaintext);
        // Browsers go there: checked in the same way, called by nobody here.
        remote(&document.authorization_endpoint)?;
        document.end_session_endpoint.as_deref().map(remote).transpose()?;
        let methods = document.token_endpoint_auth_methods_supported.unwrap_or_default();
        let takes = |method: &str| methods.iter().any(|m| m == method);
        let keys = match known.filter(|k| k.jwks == document.jwks_uri) {
            Some(known) => known.keys.clone(),
            None => self.keys_at(remote(&document.jwks_uri)?),
        };
        Ok(Endpoints {
            token: remote(&document.token_endpoint)?,
            userinfo: document.userinfo_endpoint.as_deref().map(remote).transpose()?,
            authorization: document.authorization_endpoint,
            end_session: document.end_session_endpoint,
            names_itself: document.authorization_response_iss_parameter_supported,
            only_post: takes("client_secret_post") && !takes("client_secret_basic"),
            keys,
            jwks: document.jwks_uri,
        })
    }

    fn keys_at(&self, remote: Remote) -> Arc<Store> {
        let store = Arc::new(Store::new(self.algorithms.clone(), true));
        let source = Source::Remote { remote, refresh: REFRESH_KEYS };
        // Ends by itself with the store.
        tokio::spawn(keep_fresh(Arc::downgrade(&store), source, self.name.clone(), (self.keys)()));
        store
    }
}
