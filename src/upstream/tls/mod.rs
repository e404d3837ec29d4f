//! TLS towards endpoints: whom to trust, which certificate to show, which name to verify.

mod live;
mod verify;

#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onehop_filters::contract::mesh::Address;
use onehop_filters::contract::{Fault, Reason};
use parking_lot::Mutex;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsConnector;

use crate::config::Stamps;
use crate::config::plan::{TlsIdentity, UpstreamTls};
use live::{Live, Parts};
use verify::{Anyone, Listed};

/// Why a TLS section cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or unreadable.
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A file holds no certificate.
    #[error("{} holds no PEM certificate", .0.display())]
    NoCertificate(PathBuf),
    /// A file holds no private key.
    #[error("{} holds no PEM private key", .0.display())]
    NoKey(PathBuf),
    /// Certificate and key do not belong together, or a root is unusable.
    #[error("{}: {source}", path.display())]
    Unusable { path: PathBuf, source: rustls::Error },
    /// `mode: mesh` without a workload.
    #[error("`mode: mesh` needs the `workload` section: it names the certificate to show and the CA to trust")]
    NoWorkload,
    /// `sni` is neither a DNS name nor an address.
    #[error("`{0}` is not a DNS name or an IP address")]
    BadName(String),
    /// The verifier could not be built.
    #[error("cannot verify with these roots: {0}")]
    Verifier(String),
}

/// Protocols offered by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// HTTP/2, else HTTP/1.1.
    Both,
    /// Only HTTP/1.1.
    H1,
    /// Only HTTP/2.
    H2,
    /// No protocol: the bytes are not ours to know.
    Bytes,
}

/// Client side of TLS as one service wants it. Holds the session cache: keep the value across reloads that leave
/// [`shape`] alone, and never share it between services, because a resumed session is not verified again.
pub struct ClientTls {
    both: TlsConnector,
    h1: TlsConnector,
    h2: TlsConnector,
    bytes: TlsConnector,
    sni: Option<ServerName<'static>>,
    /// Names are not compared (an allow-list is, or nothing): any name serves for SNI.
    nameless: bool,
    /// What the files said.
    live: Arc<Live>,
    source: (UpstreamTls, Option<TlsIdentity>),
    /// How the files looked when they were last read, used or not. Control thread only.
    seen: Mutex<Stamps>,
}

impl ClientTls {
    /// Reads the files and builds the client side.
    ///
    /// # Errors
    /// Says which file or value is at fault.
    pub fn build(tls: &UpstreamTls, workload: Option<&TlsIdentity>) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let seen = Stamps::of(files(tls, workload).into_iter());
        let live = Live::new(read_parts(tls, workload, &provider)?);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Verifier(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(live.clone())
            .with_client_cert_resolver(live.clone());
        config.resumption = Resumption::store(live.clone());
        let offering = |protocols: &[&[u8]]| {
            // The clones share one session store.
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        let sni = match &tls.sni {
            Some(name) => {
                Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::BadName(name.clone()))?.to_owned())
            }
            None => None,
        };
        Ok(Self {
            both: offering(&[b"h2", b"http/1.1"]),
            h1: offering(&[b"http/1.1"]),
            h2: offering(&[b"h2"]),
            bytes: offering(&[]),
            sni,
            nameless: tls.insecure || listed(tls),
            live,
            source: (tls.clone(), workload.cloned()),
            seen: Mutex::new(seen),
        })
    }

    /// Reads the files again if they changed; new handshakes then go by them. True if they were taken into use.
    ///
    /// # Errors
    /// The changed files cannot be used, and those before them stay. Told once for each change.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let mut seen = self.seen.lock();
        if seen.current() {
            return Ok(false);
        }
        *seen = seen.again();
        let (tls, workload) = &self.source;
        let provider = Arc::new(aws_lc_rs::default_provider());
        self.live.replace(read_parts(tls, workload.as_ref(), &provider)?);
        Ok(true)
    }

    /// The configuration itself, for health checks. Offers no protocol by ALPN.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        self.bytes.config().clone()
    }

    /// Name to ask for: `sni`, else the host as written in discovery, else the endpoint's own address.
    ///
    /// # Errors
    /// A unix socket has no name of its own.
    pub fn server_name(
        &self,
        default: Option<&ServerName<'static>>,
        to: &Address,
    ) -> Result<ServerName<'static>, Fault> {
        if let Some(name) = self.sni.as_ref().or(default) {
            return Ok(name.clone());
        }
        match to {
            Address::Tcp(a) => Ok(ServerName::IpAddress(a.ip().into())),
            Address::Unix(_) if self.nameless => Ok(ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())),
            Address::Unix(_) => Err(Fault::never_ran(Reason::TlsFailed)
                .detail("a unix socket has no name to verify: set `sni`")
                .by("upstream")),
        }
    }

    pub(super) const fn connector(&self, offer: Offer) -> &TlsConnector {
        match offer {
            Offer::Both => &self.both,
            Offer::H1 => &self.h1,
            Offer::H2 => &self.h2,
            Offer::Bytes => &self.bytes,
        }
    }
}

/// The certificate to show and the roots to trust, from their files.
fn read_parts(
    tls: &UpstreamTls,
    workload: Option<&TlsIdentity>,
    provider: &Arc<CryptoProvider>,
) -> Result<Parts, TlsError> {
    let workload = if tls.mesh { Some(workload.ok_or(TlsError::NoWorkload)?) } else { None };
    let ca = tls.ca.as_deref().or(workload.map(|w| w.ca.as_path()));
    let pair = match (&tls.cert, workload) {
        (Some((cert, key)), _) => Some((cert.as_path(), key.as_path())),
        (None, Some(w)) => Some((w.cert.as_path(), w.key.as_path())),
        (None, None) => None,
    };
    let key = match pair {
        Some((cert, key)) => {
            let certified = CertifiedKey::from_der(certificates(cert)?, private_key(key)?, provider);
            Some(Arc::new(certified.map_err(|source| TlsError::Unusable { path: cert.to_owned(), source })?))
        }
        None => None,
    };
    Ok(Parts { key, verifier: verifier(tls, ca, provider)? })
}

/// Every file that the client side is read from.
fn files<'a>(tls: &'a UpstreamTls, workload: Option<&'a TlsIdentity>) -> Vec<&'a Path> {
    let mut files: Vec<&Path> = Vec::new();
    files.extend(tls.ca.as_deref());
    files.extend(tls.cert.iter().flat_map(|(c, k)| [c.as_path(), k.as_path()]));
    if let (true, Some(w)) = (tls.mesh, workload) {
        files.extend([w.cert.as_path(), w.key.as_path(), w.ca.as_path()]);
    }
    files
}

/// Everything the client side depends on, files by content: equal shapes may share one [`ClientTls`].
///
/// # Errors
/// A file cannot be read.
pub fn shape(tls: &UpstreamTls, workload: Option<&TlsIdentity>) -> Result<String, TlsError> {
    let mut shape = format!("mesh={} sni={:?} allow={:?} insecure={}", tls.mesh, tls.sni, tls.allow, tls.insecure);
    for path in files(tls, workload) {
        let mut hash = DefaultHasher::new();
        read(path)?.hash(&mut hash);
        shape.push_str(&format!(" {}={:016x}", path.display(), hash.finish()));
    }
    Ok(shape)
}

fn verifier(
    tls: &UpstreamTls,
    ca: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    if tls.insecure {
        return Ok(Arc::new(Anyone::new(provider)));
    }
    let roots = match ca {
        Some(path) => roots_of(path)?,
        None => system_roots(),
    };
    if listed(tls) {
        return Ok(Arc::new(Listed::new(roots, &tls.allow, provider)));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| TlsError::Verifier(e.to_string()))?;
    Ok(verifier)
}

/// Whether names come from the allow-list instead of the host. In a mesh the CA is the mesh: without a list and without
/// a name asked for, any of its workloads is a peer.
fn listed(tls: &UpstreamTls) -> bool {
    !tls.allow.is_empty() || (tls.mesh && tls.sni.is_none())
}

fn roots_of(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(path)? {
        roots.add(cert).map_err(|source| TlsError::Unusable { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

/// The system's roots; where there are none (a scratch image), the ones built in.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    list.ok().filter(|l| !l.is_empty()).ok_or_else(|| TlsError::NoCertificate(path.to_owned()))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| TlsError::NoKey(path.to_owned()))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}
