//! The parts of a client's TLS that files say: its certificate, whom it trusts, and what it remembers of sessions. They
//! are replaced in place when the files change, so that everything built on one rustls configuration (dialling, health
//! checks) follows: new handshakes see the new files, connections that stand keep what they have.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, ResolvesClientCert, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, NamedGroup, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Sessions remembered, as rustls has it by default.
const SESSIONS: usize = 256;

/// What a reading of the files came to.
pub(super) struct Parts {
    /// The certificate to show.
    pub key: Option<Arc<CertifiedKey>>,
    /// Whom to trust.
    pub verifier: Arc<dyn ServerCertVerifier>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Live {
    key: ArcSwapOption<CertifiedKey>,
    verifier: ArcSwap<Arc<dyn ServerCertVerifier>>,
    sessions: ArcSwap<ClientSessionMemoryCache>,
}

impl Live {
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            key: ArcSwapOption::new(parts.key),
            verifier: ArcSwap::from_pointee(parts.verifier),
            sessions: ArcSwap::from_pointee(ClientSessionMemoryCache::new(SESSIONS)),
        })
    }

    /// Takes another reading over. A resumed session is not verified again, so what was remembered under the old roots
    /// is forgotten.
    pub fn replace(&self, parts: Parts) {
        self.key.store(parts.key);
        self.verifier.store(Arc::new(parts.verifier));
        self.sessions.store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.key.load_full()
    }
    fn has_certs(&self) -> bool {
        self.key.load().is_some()
    }
}

impl ServerCertVerifier for Live {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier.load().verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.load().supported_verify_schemes()
    }
}

impl ClientSessionStore for Live {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.sessions.load().set_kx_hint(server, group);
    }
    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.load().kx_hint(server)
    }
    fn set_tls12_session(&self, server: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.sessions.load().set_tls12_session(server, value);
    }
    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions.load().tls12_session(server)
    }
    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.sessions.load().remove_tls12_session(server);
    }
    fn insert_tls13_ticket(&self, server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.sessions.load().insert_tls13_ticket(server, value);
    }
    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.sessions.load().take_tls13_ticket(server)
    }
}
