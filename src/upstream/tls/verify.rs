//! Verifiers besides the usual one: by allow-list of exact names, and none at all.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Chain, validity and key usage are verified as ever; instead of the host name, one subject alternative name must be
/// exactly one of a list. An empty list takes every certificate of these roots (a mesh's own CA).
#[derive(Debug)]
pub(super) struct Listed {
    roots: RootCertStore,
    allow: Box<[String]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Listed {
    pub fn new(roots: RootCertStore, allow: &[String], provider: &Arc<CryptoProvider>) -> Self {
        Self { roots, allow: allow.into(), algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Listed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)?;
        if self.allow.is_empty() || allowed(end_entity, &self.allow)? {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A SPIFFE id counts only if it is the certificate's one URI (X509-SVID section 2). A name with a NUL or any other
/// control byte spoils the whole certificate: somebody tries to be read in two ways.
fn allowed(cert: &CertificateDer<'_>, allow: &[String]) -> Result<bool, Error> {
    let bad = || Error::from(CertificateError::BadEncoding);
    let (_, cert) = X509Certificate::from_der(cert).map_err(|_| bad())?;
    let Some(names) = cert.subject_alternative_name().map_err(|_| bad())? else { return Ok(false) };
    let (mut uris, mut hosts) = (Vec::new(), Vec::new());
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(host) => hosts.push(*host),
            _ => {}
        }
    }
    if uris.iter().chain(&hosts).any(|n| n.bytes().any(|b| b < 0x20 || b == 0x7f)) {
        return Err(bad());
    }
    Ok(allow.iter().any(|want| {
        if want.starts_with("spiffe://") {
            matches!(uris.as_slice(), [only] if only == want)
        } else {
            uris.contains(&want.as_str()) || hosts.iter().any(|h| h.eq_ignore_ascii_case(want))
        }
    }))
}

/// `insecureSkipVerify: true`. Signatures are still checked, identity is not.
#[derive(Debug)]
pub(super) struct Anyone(WebPkiSupportedAlgorithms);

impl Anyone {
    pub fn new(provider: &Arc<CryptoProvider>) -> Self {
        Self(provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
