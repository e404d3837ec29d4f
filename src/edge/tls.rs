//! TLS towards callers: one [`Acceptor`] per listener and state of its files.
//!
//! An acceptor never changes. A reload, or files that changed, make a new one for new handshakes; connections that stand
//! keep what they have. rustls brings TLS 1.2 and 1.3 with AEAD and ECDHE only, no renegotiation, no compression; 0-RTT
//! stays off.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use onehop_filters::contract::ConfigError;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::tls_certs::{CertInfo, Shelf};
use crate::config::Stamps;
use crate::config::plan::{Listener, ListenerTls, TlsIdentity};

/// Where the cryptography comes from: aws-lc, with X25519MLKEM768 preferred.
pub static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// The keys that session tickets are sealed with: new every six hours, old ones accepted for six more. One per listener,
/// shared by its workers and kept across reloads, so that clients resume after both.
#[derive(Clone, Debug)]
pub struct Tickets(Arc<dyn ProducesTickets>);

impl Tickets {
    /// Fresh keys.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new() -> Result<Self, rustls::Error> {
        rustls::crypto::aws_lc_rs::Ticketer::new().map(Self)
    }
}

/// Everything a handshake of one listener needs.
pub struct Acceptor {
    config: Arc<ServerConfig>,
    shelf: Arc<Shelf>,
    /// `mode: mesh`: peers check a workload identity, and hosts have no part in it.
    mesh: bool,
    files: Stamps,
}

impl Acceptor {
    /// Reads the files of a listener's `tls`. `identity` is the workload's, for `mode: mesh`.
    ///
    /// # Errors
    /// A file is missing, unreadable, not what it should be, or a key does not belong to its certificate: names the file.
    pub fn build(
        listener: &Listener,
        tls: &ListenerTls,
        identity: Option<&TlsIdentity>,
        tickets: &Tickets,
    ) -> Result<Self, ConfigError> {
        let wrong =
            |message: String| ConfigError::at(listener.span, format!("listener `{}`: {message}", listener.name));
        let source = Source::of(tls, identity).ok_or_else(|| {
            wrong("`tls.mode: mesh` needs this process's own identity".to_owned())
                .help("name `cert`, `key` and `ca` under `workload`")
        })?;
        // Taken before the files are read: what is written meanwhile is then seen as a change, never missed.
        let files = Stamps::of(source.files());
        let shelf = Arc::new(Shelf::load(&listener.name, &source.certificates).map_err(&wrong)?);

        let versions: &[&SupportedProtocolVersion] =
            if tls.only_13 { &[&rustls::version::TLS13] } else { rustls::ALL_VERSIONS };
        let builder = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(versions)
            .map_err(|e| wrong(format!("tls: {e}")))?;
        let builder = match source.client_ca {
            Some(ca) => {
                builder.with_client_cert_verifier(verifier(ca, source.crl, source.client_required).map_err(&wrong)?)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName(shelf.clone())));
        config.alpn_protocols = alpn(listener);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if source.client_ca.is_some() {
            // A resumed session takes the client's chain from the ticket and does not verify it again: neither against
            // the CA of today nor by the clock, and a required certificate would not be required. So none is resumed.
            config.send_tls13_tickets = 0;
        } else {
            config.ticketer = tickets.0.clone();
            // One is enough for a client that comes back: sealed with rotating keys, it may be used twice.
            config.send_tls13_tickets = 1;
        }
        Ok(Self { config: Arc::new(config), shelf, mesh: tls.mesh, files })
    }

    /// For a handshake.
    #[must_use]
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// The certificates, for `/certs`.
    pub fn certificates(&self) -> impl Iterator<Item = &CertInfo> {
        self.shelf.infos()
    }

    /// Whether a request for `host` came to the wrong place and must be answered 421 (RFC 9110 section 15.5.20): the
    /// certificate this connection was given does not cover the host, but another one here does. HTTP/2 clients reuse
    /// connections as far as a certificate reaches (RFC 9113 section 9.1.1), so a right client does not get here.
    ///
    /// A host that no certificate covers is not misdirected: there is no better place for it, and routing decides. Other
    /// listeners do not count: they have another port, hence another origin.
    #[must_use]
    pub fn misdirected(&self, sni: Option<&str>, host: &str) -> bool {
        if self.mesh {
            return false;
        }
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        !self.shelf.serving(sni).iter().any(|c| c.covers(host)) && self.shelf.covers(host)
    }

    /// Whether its files changed since they were read.
    #[must_use]
    pub fn stale(&self) -> bool {
        !self.files.current()
    }

    /// How its files look now, to try a broken change only once.
    #[must_use]
    pub(super) fn files_now(&self) -> Stamps {
        self.files.again()
    }
}

/// What `tls` and `workload` come to.
struct Source<'a> {
    certificates: Vec<(&'a Path, &'a Path)>,
    client_ca: Option<&'a Path>,
    crl: &'a [PathBuf],
    client_required: bool,
}

impl<'a> Source<'a> {
    fn of(tls: &'a ListenerTls, identity: Option<&'a TlsIdentity>) -> Option<Self> {
        if tls.mesh {
            // In a mesh both sides show who they are; a listener that asked for less would not be `mode: mesh`.
            let own = identity?;
            return Some(Self {
                certificates: vec![(&own.cert, &own.key)],
                client_ca: Some(&own.ca),
                crl: &tls.crl,
                client_required: true,
            });
        }
        Some(Self {
            certificates: tls.certificates.iter().map(|(cert, key)| (cert.as_path(), key.as_path())).collect(),
            client_ca: tls.client_ca.as_deref(),
            crl: &tls.crl,
            client_required: tls.client_required,
        })
    }

    fn files(&self) -> impl Iterator<Item = &'a Path> {
        let certificates = self.certificates.iter().flat_map(|(cert, key)| [*cert, *key]);
        certificates.chain(self.client_ca).chain(self.crl.iter().map(PathBuf::as_path))
    }
}

fn alpn(listener: &Listener) -> Vec<Vec<u8>> {
    let offered = [(listener.h2, &b"h2"[..]), (listener.h1, b"http/1.1")];
    offered.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_vec()).collect()
}

fn verifier(ca: &Path, crl: &[PathBuf], required: bool) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let pem = fs::read(ca).map_err(|e| format!("client CA file {}: {e}", ca.display()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate
            .map_err(|e| e.to_string())
            .and_then(|c| roots.add(c).map_err(|e| e.to_string()))
            .map_err(|e| format!("client CA file {}: {e}", ca.display()))?;
    }
    if roots.is_empty() {
        return Err(format!("client CA file {} holds no certificate", ca.display()));
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), PROVIDER.clone());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    if crl.is_empty() {
        return builder.build().map_err(|e| format!("client CA file {}: {e}", ca.display()));
    }
    let mut lists = Vec::new();
    for file in crl {
        lists.extend(revocations(file)?);
    }
    // The whole chain is checked, and what no list speaks of is refused: rustls's defaults. A list that is out of date
    // says nothing of today (RFC 5280 section 6.3.3).
    let builder = builder.with_crls(lists).enforce_revocation_expiration();
    builder.build().map_err(|e| format!("crl: {e}"))
}

/// The revocation lists of a file: PEM sections, or one list in DER as certificate authorities publish it.
fn revocations(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("crl file {}: {why}", file.display());
    let bytes = fs::read(file).map_err(|e| wrong(&e))?;
    // A DER SEQUENCE.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![bytes.into()]);
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err(wrong(&"it holds no revocation list")),
        Ok(lists) => Ok(lists),
        Err(e) => Err(wrong(&e)),
    }
}

/// Chooses by SNI.
#[derive(Debug)]
struct ByName(Arc<Shelf>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let serving = self.0.serving(hello.server_name());
        // A name may have an RSA and an ECDSA certificate: the first that this client can check.
        let fit = serving.iter().find(|c| c.key().key.choose_scheme(hello.signature_schemes()).is_some());
        fit.or(serving.first()).map(|c| c.key().clone())
    }
}

#[cfg(test)]
mod tests;
