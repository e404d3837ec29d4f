//! Where an issuer's keys are, by its own word (OpenID Connect Discovery 1.0 section 4).

use std::path::PathBuf;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::contract::client::{Bounds, Remote};

/// Bytes of a discovery document.
const MAX_DOCUMENT: usize = 256 << 10;

/// The document, and where it led last.
pub struct Discovery {
    issuer: String,
    document: Remote,
    ca: Option<PathBuf>,
    plaintext: bool,
    /// The key set's URL and the way there. Held by the one background task only.
    keys: Mutex<Option<(String, Remote)>>,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

impl Discovery {
    /// The document of an issuer.
    ///
    /// # Errors
    /// A sentence about what is wrong with the issuer as a URL, or with the CA file.
    pub fn new(issuer: &str, ca: Option<PathBuf>, plaintext: bool) -> Result<Self, String> {
        if issuer.contains(['?', '#']) {
            return Err(format!("`{issuer}` has a query or a fragment and is no issuer with a document"));
        }
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let document = Remote::new(&url, ca.as_deref(), plaintext)?;
        Ok(Self { issuer: issuer.to_owned(), document, ca, plaintext, keys: Mutex::default() })
    }

    /// The key set as it is now. The document is read each time: keys may move.
    pub async fn fetch(&self, accept: &'static str, bounds: Bounds) -> Result<Bytes, String> {
        let read = self.document.get("application/json", Bounds { body: MAX_DOCUMENT, ..bounds }).await;
        let text = read.map_err(|e| format!("discovery: {e}"))?;
        let document: Document = serde_json::from_slice(&text).map_err(|e| format!("discovery: {e}"))?;
        // Section 4.3: else any document that we can be led to would speak for this issuer.
        if document.issuer != self.issuer {
            return Err("discovery: the document is of another issuer".to_owned());
        }
        let mut keys = self.keys.lock().await;
        if keys.as_ref().is_none_or(|(url, _)| *url != document.jwks_uri) {
            let remote = Remote::new(&document.jwks_uri, self.ca.as_deref(), self.plaintext);
            *keys = Some((document.jwks_uri, remote.map_err(|e| format!("discovery: jwks_uri: {e}"))?));
        }
        match &*keys {
            Some((_, remote)) => remote.get(accept, bounds).await,
            None => Err("discovery: no key set".to_owned()),
        }
    }
}
