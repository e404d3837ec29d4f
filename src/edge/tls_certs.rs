//! Certificates of a listener: read, checked, named, and found by host name.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::tls::PROVIDER;

/// A certificate as `/certs` shows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CertInfo {
    /// Name of the listener.
    pub listener: Arc<str>,
    /// What it covers: DNS names, IP addresses and URIs.
    pub names: Vec<String>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// Hexadecimal.
    pub serial: String,
    /// Where it was read.
    pub file: PathBuf,
}

/// One certificate with its key.
#[derive(Debug)]
pub(super) struct Certificate {
    key: Arc<CertifiedKey>,
    /// Lower-case DNS names, wildcards as `*.a.com`.
    dns: Vec<String>,
    ips: Vec<IpAddr>,
    info: CertInfo,
}

/// All certificates of a listener.
#[derive(Debug)]
pub(super) struct Shelf {
    certificates: Vec<Certificate>,
    /// Indices by DNS name, wildcards under their `*.` form. In file order.
    by_name: HashMap<String, Vec<usize>, foldhash::fast::RandomState>,
}

/// Those that may serve a name: indices into the shelf, or the default.
pub(super) struct Serving<'a> {
    shelf: &'a Shelf,
    found: &'a [usize],
}

impl<'a> Serving<'a> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &'a Certificate> {
        let certificates = &self.shelf.certificates;
        self.found.iter().map(|i| &certificates[*i])
    }

    pub(super) fn first(&self) -> Option<&'a Certificate> {
        self.iter().next()
    }
}

impl Shelf {
    /// Reads certificate chains and their keys.
    pub(super) fn load(listener: &Arc<str>, files: &[(&Path, &Path)]) -> Result<Self, String> {
        let certificates =
            files.iter().map(|(cert, key)| Certificate::load(listener, cert, key)).collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() {
            return Err("`tls` names no certificate".to_owned());
        }
        let mut by_name: HashMap<String, Vec<usize>, _> = HashMap::default();
        for (i, certificate) in certificates.iter().enumerate() {
            for name in &certificate.dns {
                by_name.entry(name.clone()).or_default().push(i);
            }
        }
        Ok(Self { certificates, by_name })
    }

    /// Exact before wildcard, else the first certificate of all.
    pub(super) fn serving(&self, sni: Option<&str>) -> Serving<'_> {
        let found = sni.and_then(|name| self.named(name)).unwrap_or(&[0]);
        Serving { shelf: self, found }
    }

    fn named(&self, host: &str) -> Option<&[usize]> {
        let host = host.to_ascii_lowercase();
        let found = self.by_name.get(&host).or_else(|| self.by_name.get(&wildcard_of(&host)?));
        found.map(Vec::as_slice)
    }

    /// Whether any certificate covers a host.
    pub(super) fn covers(&self, host: &str) -> bool {
        self.certificates.iter().any(|c| c.covers(host))
    }

    pub(super) fn infos(&self) -> impl Iterator<Item = &CertInfo> {
        self.certificates.iter().map(|c| &c.info)
    }
}

/// RFC 9525 section 6.3: a wildcard stands for exactly one label, the leftmost.
fn wildcard_of(host: &str) -> Option<String> {
    let (label, parent) = host.split_once('.')?;
    (!label.is_empty() && !parent.is_empty()).then(|| format!("*.{parent}"))
}

impl Certificate {
    fn load(listener: &Arc<str>, cert: &Path, key: &Path) -> Result<Self, String> {
        let pem = fs::read(cert).map_err(|e| format!("certificate file {}: {e}", cert.display()))?;
        let chain = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("certificate file {}: {e}", cert.display()))?;
        let Some(leaf) = chain.first() else {
            return Err(format!("certificate file {} holds no certificate", cert.display()));
        };
        let (dns, ips, info) =
            describe(listener, cert, leaf).map_err(|why| format!("certificate file {}: {why}", cert.display()))?;
        if info.not_after < now_unix() {
            tracing::warn!(listener = %listener, file = %cert.display(), "this certificate has expired");
        }
        let private = private_key(key)?;
        let signer =
            PROVIDER.key_provider.load_private_key(private).map_err(|e| format!("key file {}: {e}", key.display()))?;
        let certified = CertifiedKey::new(chain, signer);
        match certified.keys_match() {
            // `Unknown`: the key does not tell its public half, so it can only be tried.
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(Error::InconsistentKeys(_)) => {
                return Err(format!(
                    "key file {} does not belong to certificate file {}",
                    key.display(),
                    cert.display()
                ));
            }
            Err(e) => return Err(format!("certificate file {}: {e}", cert.display())),
        }
        Ok(Self { key: Arc::new(certified), dns, ips, info })
    }

    pub(super) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Whether a client that checks this certificate for `host` is satisfied. `host` is a name or an IP address without
    /// brackets.
    pub(super) fn covers(&self, host: &str) -> bool {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return self.ips.contains(&ip);
        }
        self.dns.iter().any(|name| match name.strip_prefix("*.") {
            None => name.eq_ignore_ascii_case(host),
            Some(parent) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
            }
        })
    }
}

fn now_unix() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("key file {}: {e}", file.display());
    let pem = fs::read(file).map_err(|e| wrong(&e))?;
    if fs::metadata(file).is_ok_and(|m| m.mode() & 0o007 != 0) {
        tracing::warn!(file = %file.display(), "a private key that every user of this machine may read");
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| wrong(&e))
}

fn describe(
    listener: &Arc<str>,
    file: &Path,
    leaf: &CertificateDer<'_>,
) -> Result<(Vec<String>, Vec<IpAddr>, CertInfo), String> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| format!("not a certificate: {e}"))?;
    let (mut dns, mut ips, mut uris) = (Vec::new(), Vec::new(), Vec::new());
    let alternatives = parsed.subject_alternative_name().map_err(|e| format!("subject alternative name: {e}"))?;
    for name in alternatives.iter().flat_map(|san| &san.value.general_names) {
        match name {
            GeneralName::DNSName(name) => dns.push(name.trim_end_matches('.').to_ascii_lowercase()),
            GeneralName::IPAddress(raw) => ips.extend(ip(raw)),
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            _ => {}
        }
    }
    let validity = parsed.validity();
    let info = CertInfo {
        listener: listener.clone(),
        names: dns.iter().cloned().chain(ips.iter().map(ToString::to_string)).chain(uris).collect(),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        serial: parsed.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
        file: file.to_owned(),
    };
    Ok((dns, ips, info))
}

fn ip(raw: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(raw).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(raw).map(IpAddr::from)).ok()
}
