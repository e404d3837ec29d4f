//! Who a verified client certificate says its holder is.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use onehop_filters::contract::principal::Workload;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// A certificate whose names cannot be taken at their word; the connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client certificate's names are malformed")]
pub struct BadNames;

/// The holder of a chain that was verified in this connection's handshake; `None` if there is no chain.
///
/// The id is the SPIFFE id if the certificate has exactly one URI name and that is one (X509-SVID section 2: more than one
/// URI makes it no SVID), else its first DNS name, else its subject.
///
/// # Errors
/// A name holds NUL or another control character, or is not text: software that cuts there would see another name.
pub fn workload(chain: Option<&[CertificateDer<'_>]>) -> Result<Option<Workload>, BadNames> {
    let Some(leaf) = chain.and_then(<[_]>::first) else { return Ok(None) };
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| BadNames)?;
    let (mut uris, mut dns): (Vec<Arc<str>>, Vec<Arc<str>>) = (Vec::new(), Vec::new());
    let alternatives = parsed.subject_alternative_name().map_err(|_| BadNames)?;
    for name in alternatives.iter().flat_map(|san| &san.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(clean(uri)?.into()),
            // A host has one spelling here, as authorities have.
            GeneralName::DNSName(name) => dns.push(clean(name)?.to_ascii_lowercase().into()),
            GeneralName::Invalid(..) => return Err(BadNames),
            _ => {}
        }
    }
    let subject: Arc<str> = clean(&parsed.subject().to_string())?.into();
    let id = match (&uris[..], dns.first()) {
        ([uri], _) if uri.starts_with("spiffe://") => uri.clone(),
        (_, Some(name)) => name.clone(),
        (_, None) => subject.clone(),
    };
    let thumbprint = digest(&SHA256, leaf).as_ref().try_into().expect("SHA-256 has 32 bytes");
    Ok(Some(Workload { id, names: uris.into_iter().chain(dns).collect(), subject, thumbprint }))
}

fn clean(name: &str) -> Result<&str, BadNames> {
    if name.chars().any(char::is_control) { Err(BadNames) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(sans: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "batch");
        params.subject_alt_names = sans;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }
    fn uri(text: &str) -> SanType {
        SanType::URI(Ia5String::try_from(text).unwrap())
    }
    fn dns(text: &str) -> SanType {
        SanType::DnsName(Ia5String::try_from(text).unwrap())
    }
    fn id(sans: Vec<SanType>) -> Result<String, BadNames> {
        workload(Some(&[certificate(sans)])).map(|w| w.unwrap().id.to_string())
    }

    #[test]
    fn one_spiffe_uri_then_dns_then_subject() {
        const A: &str = "spiffe://example.org/ns/shop/sa/orders";
        assert_eq!(id(vec![dns("orders.shop"), uri(A)]), Ok(A.into()));
        assert_eq!(id(vec![uri(A), uri("spiffe://example.org/b"), dns("Orders.Shop")]), Ok("orders.shop".into()));
        assert!(id(vec![uri(A), uri("https://example.org")]).unwrap().contains("CN=batch"));
        assert_eq!(id(vec![uri("https://example.org/x"), dns("a.shop")]), Ok("a.shop".into()));
        assert!(id(vec![]).unwrap().contains("CN=batch"));
    }

    #[test]
    fn every_name_is_listed() {
        let found = workload(Some(&[certificate(vec![dns("a.shop"), uri("spiffe://x/y")])])).unwrap().unwrap();
        assert_eq!(found.names, ["spiffe://x/y", "a.shop"].map(Arc::from));
        assert!(found.subject.contains("CN=batch"), "{}", found.subject);
        assert_ne!(found.thumbprint, [0; 32]);
    }

    #[test]
    fn a_name_with_nul_is_refused() {
        assert_eq!(id(vec![dns("admin.shop\0.evil.example")]), Err(BadNames));
        assert_eq!(id(vec![uri("spiffe://example.org/admin\0/x")]), Err(BadNames));
        assert_eq!(id(vec![dns("a.shop"), uri("spiffe://example.org/a\nb")]), Err(BadNames));
    }

    #[test]
    fn no_chain_is_nobody() {
        assert_eq!(workload(None), Ok(None));
        assert_eq!(workload(Some(&[])), Ok(None));
        assert_eq!(workload(Some(&[CertificateDer::from(vec![1, 2, 3])])), Err(BadNames));
    }
}
