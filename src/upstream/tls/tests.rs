//! Handshakes with a rustls server: who is trusted, who is not, and what a cut connection looks like.

use std::path::PathBuf;
use std::sync::Arc;

use http::Version;
use onehop_filters::contract::{Proof, Reason};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::upstream::tests::{Ask, Peer, channel, peer, read_head, settings, text};
use crate::upstream::{Settings, Upstream};

const SPIFFE: &str = "spiffe://corp/ns/shop/sa/stock";

/// A certificate authority and its folder of files.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Certificate and key files for these names; URIs by their scheme.
    fn issue(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) if name.contains("://") => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let name = names.join("+").replace(['/', ':', '\0'], "_");
        let (cert, secret) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        std::fs::write(&cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&secret, key.serialize_pem()).unwrap();
        (cert, secret)
    }

    /// An HTTP/1 server with a certificate for these names.
    async fn server(&self, names: &[&str]) -> Peer {
        self.serving(&self.issue(names, |_| {}), false, &[], b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await
    }

    fn acceptor(&self, pair: &(PathBuf, PathBuf), mutual: bool, alpn: &[&[u8]]) -> TlsAcceptor {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let roots = Arc::new(roots_of(&self.path("ca.pem")).unwrap());
        let builder = if mutual {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config =
            builder.with_single_cert(certificates(&pair.0).unwrap(), private_key(&pair.1).unwrap()).unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    async fn serving(&self, pair: &(PathBuf, PathBuf), mutual: bool, alpn: &[&[u8]], answer: &'static [u8]) -> Peer {
        let acceptor = self.acceptor(pair, mutual, alpn);
        peer(move |_, socket| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(socket).await else { return };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        respond.send_response(http::Response::new(()), true).unwrap();
                    }
                    return;
                }
                while read_head(&mut stream).await.is_some() {
                    if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                    if !answer.windows(14).any(|w| w == b"content-length") {
                        // Cut: the socket closes without close_notify.
                        return;
                    }
                }
            }
        })
        .await
    }

    fn plan(&self) -> UpstreamTls {
        UpstreamTls {
            mesh: false,
            ca: Some(self.path("ca.pem")),
            sni: Some("stock.shop.svc".into()),
            cert: None,
            allow: Vec::new(),
            insecure: false,
        }
    }
}

fn client(plan: &UpstreamTls) -> Upstream {
    Upstream::new(Settings { tls: Some(Arc::new(ClientTls::build(plan, None).unwrap())), ..settings() })
}

async fn verdict(plan: &UpstreamTls, peer: &Peer) -> Result<(), (Reason, Proof)> {
    Ask::post().send(&client(plan), peer).await.map(drop).map_err(|f| (f.reason, f.proof))
}

const REFUSED: Result<(), (Reason, Proof)> = Err((Reason::TlsFailed, Proof::NeverRan));

#[tokio::test]
async fn the_name_is_verified() {
    let ca = Authority::new();
    let peer = ca.server(&["stock.shop.svc"]).await;
    assert_eq!(verdict(&ca.plan(), &peer).await, Ok(()));
    let other = UpstreamTls { sni: Some("orders.shop.svc".into()), ..ca.plan() };
    assert_eq!(verdict(&other, &peer).await, REFUSED);
    assert_eq!(verdict(&UpstreamTls { insecure: true, ..other }, &peer).await, Ok(()));
}

#[tokio::test]
async fn without_a_name_discovery_or_the_address_gives_one() {
    let ca = Authority::new();
    let plan = UpstreamTls { sni: None, ..ca.plan() };
    assert_eq!(verdict(&plan, &ca.server(&["127.0.0.1"]).await).await, Ok(()));
    let peer = ca.server(&["stock.shop.svc"]).await;
    assert_eq!(verdict(&plan, &peer).await, REFUSED);
    let up = Upstream::new(Settings {
        tls: Some(Arc::new(ClientTls::build(&plan, None).unwrap())),
        default_name: Some("stock.shop.svc".try_into().unwrap()),
        ..settings()
    });
    Ask::get().send(&up, &peer).await.unwrap();
}

#[tokio::test]
async fn another_authority_is_not_trusted() {
    let (ca, other) = (Authority::new(), Authority::new());
    let peer = ca.server(&["stock.shop.svc"]).await;
    assert_eq!(verdict(&other.plan(), &peer).await, REFUSED);
    let allow = UpstreamTls { allow: vec!["stock.shop.svc".into()], ..other.plan() };
    assert_eq!(verdict(&allow, &peer).await, REFUSED);
}

#[tokio::test]
async fn expired_and_misused_certificates_are_refused() {
    let ca = Authority::new();
    let expired = ca.issue(&["stock.shop.svc"], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let peer = ca.serving(&expired, false, &[], b"").await;
    let allow = UpstreamTls { allow: vec!["stock.shop.svc".into()], ..ca.plan() };
    assert_eq!(verdict(&ca.plan(), &peer).await, REFUSED);
    assert_eq!(verdict(&allow, &peer).await, REFUSED);
    let misused = ca.issue(&["stock.shop.svc"], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let peer = ca.serving(&misused, false, &[], b"").await;
    assert_eq!(verdict(&allow, &peer).await, REFUSED);
}

#[tokio::test]
async fn an_allow_list_takes_exactly_its_names() {
    let ca = Authority::new();
    let allow = |name: &str| UpstreamTls { allow: vec![name.into()], ..ca.plan() };
    let peer = ca.server(&[SPIFFE]).await;
    assert_eq!(verdict(&allow(SPIFFE), &peer).await, Ok(()));
    for other in
        ["spiffe://corp/ns/shop/sa/stoc", "spiffe://corp/ns/shop/sa/stock2", "spiffe://CORP/ns/shop/sa/stock", "stock"]
    {
        assert_eq!(verdict(&allow(other), &peer).await, REFUSED, "{other}");
    }
    let two = ca.server(&[SPIFFE, "spiffe://corp/ns/shop/sa/orders"]).await;
    assert_eq!(verdict(&allow(SPIFFE), &two).await, REFUSED, "a SPIFFE identity is the only URI");
    let dns = ca.server(&["a.stock.svc"]).await;
    assert_eq!(verdict(&allow("A.stock.svc"), &dns).await, Ok(()));
    assert_eq!(verdict(&allow("stock.svc"), &dns).await, REFUSED);
}

#[test]
fn a_name_with_a_nul_spoils_the_certificate() {
    let ca = Authority::new();
    let listed = |names: &[&str]| {
        let cert = certificates(&ca.issue(names, |_| {}).0).unwrap().remove(0);
        let roots = roots_of(&ca.path("ca.pem")).unwrap();
        let listed = Listed::new(roots, &["stock.shop.svc".into()], &Arc::new(aws_lc_rs::default_provider()));
        let name = ServerName::try_from("stock.shop.svc").unwrap();
        listed.verify_server_cert(&cert, &[], &name, &[], rustls_pki_types::UnixTime::now())
    };
    assert!(listed(&["stock.shop.svc", "xy.svc"]).is_ok());
    assert!(listed(&["stock.shop.svc", "x\0y.svc"]).is_err());
    assert!(listed(&["stock.shop.svc", "spiffe://a\0b"]).is_err());
}

#[tokio::test]
async fn a_mesh_shows_and_wants_certificates() {
    let ca = Authority::new();
    let stock = ca.issue(&[SPIFFE], |_| {});
    let peer = ca.serving(&stock, true, &[], b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let (cert, key) = ca.issue(&["spiffe://corp/ns/shop/sa/orders"], |_| {});
    let workload = TlsIdentity { name: "orders".into(), cert, key, ca: ca.path("ca.pem") };
    let plan = UpstreamTls { mesh: true, ca: None, sni: None, allow: vec![SPIFFE.into()], ..ca.plan() };
    let tls = Arc::new(ClientTls::build(&plan, Some(&workload)).unwrap());
    let up = Upstream::new(Settings { tls: Some(tls), ..settings() });
    let reply = Ask::get().send(&up, &peer).await.unwrap();
    assert_eq!(text(reply).await.unwrap(), "ok");
    assert!(Ask::get().send(&up, &peer).await.unwrap().reused);
    assert!(matches!(ClientTls::build(&plan, None), Err(TlsError::NoWorkload)));

    // Without a certificate the server ends the connection; in TLS 1.3 only after our request went out.
    let bare = UpstreamTls { allow: vec![SPIFFE.into()], ..ca.plan() };
    let fault = Ask::post().send(&client(&bare), &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::TlsFailed, Proof::MayHaveRun));
}

#[tokio::test]
async fn alpn_chooses_and_is_remembered() {
    let ca = Authority::new();
    let pair = ca.issue(&["stock.shop.svc"], |_| {});
    let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for (alpn, version) in [
        (&[&b"h2"[..], b"http/1.1"][..], Version::HTTP_2),
        (&[&b"http/1.1"[..]], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let peer = ca.serving(&pair, false, alpn, ok).await;
        let up = client(&ca.plan());
        for reused in [false, true] {
            let reply = Ask::get().send(&up, &peer).await.unwrap();
            assert_eq!((reply.protocol, reply.reused), (version, reused), "{alpn:?}");
        }
    }
    let peer = ca.serving(&pair, false, &[b"http/1.1"], ok).await;
    let grpc = Ask { grpc: true, ..Ask::post() };
    assert_eq!(grpc.send(&client(&ca.plan()), &peer).await.err().unwrap().reason, Reason::TlsFailed);
}

#[tokio::test]
async fn a_connection_cut_without_close_notify_is_truncated() {
    let ca = Authority::new();
    let pair = ca.issue(&["stock.shop.svc"], |_| {});
    let peer = ca.serving(&pair, false, &[], b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
    let reply = Ask::get().send(&client(&ca.plan()), &peer).await.unwrap();
    assert_eq!(text(reply).await.err().unwrap().reason, Reason::Truncated);
}

#[tokio::test]
async fn an_early_answer_does_not_deadlock_a_large_upload() {
    const SIZE: usize = 4 << 20;
    let ca = Authority::new();
    let acceptor = ca.acceptor(&ca.issue(&["stock.shop.svc"], |_| {}), false, &[]);
    let peer = peer(move |_, socket| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(socket).await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n").as_bytes()).await.unwrap();
            stream.write_all(&vec![b'd'; SIZE - 1]).await.unwrap();
            stream.flush().await.unwrap();
            stream.read_exact(&mut vec![0; SIZE]).await.unwrap();
            stream.write_all(b"d").await.unwrap();
            stream.flush().await.unwrap();
            read_head(&mut stream).await;
        }
    })
    .await;
    let up = client(&ca.plan());
    // Chunked, so that gathered writes are cut at every kind of place.
    let (feed, body) = channel();
    tokio::spawn(async move {
        for _ in 0..SIZE / 4096 {
            feed.send(http_body::Frame::data(vec![b'u'; 4096].into())).await.unwrap();
        }
    });
    let reply = Ask::post().with(&up, &peer, body).await.unwrap();
    assert_eq!(text(reply).await.unwrap().len(), SIZE);
}

#[tokio::test]
async fn a_closed_idle_connection_is_seen_before_it_is_used() {
    let ca = Authority::new();
    let acceptor = ca.acceptor(&ca.issue(&["stock.shop.svc"], |_| {}), false, &[]);
    let peer = peer(move |_, socket| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(socket).await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    })
    .await;
    let up = client(&ca.plan());
    for _ in 0..3 {
        // A POST would not be repeated: it must not meet the closed connection at all.
        Ask::post().send(&up, &peer).await.unwrap();
        Ask::get().send(&client(&ca.plan()), &ca.server(&["stock.shop.svc"]).await).await.unwrap();
    }
    assert_eq!(peer.accepted.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_silent_server_runs_into_the_connect_timeout() {
    let ca = Authority::new();
    let peer = peer(|_, socket| async move {
        std::future::pending::<()>().await;
        drop(socket);
    })
    .await;
    let tls = Some(Arc::new(ClientTls::build(&ca.plan(), None).unwrap()));
    let up = Upstream::new(Settings { tls, connect_timeout: std::time::Duration::from_millis(50), ..settings() });
    let fault = Ask::post().send(&up, &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::ConnectTimeout, Proof::NeverRan));
}

#[test]
fn the_shape_follows_the_files() {
    let ca = Authority::new();
    let before = shape(&ca.plan(), None).unwrap();
    assert_eq!(shape(&ca.plan(), None).unwrap(), before);
    std::fs::copy(Authority::new().path("ca.pem"), ca.path("ca.pem")).unwrap();
    assert_ne!(shape(&ca.plan(), None).unwrap(), before);
}

#[test]
fn errors_name_the_file() {
    let ca = Authority::new();
    let missing = UpstreamTls { ca: Some(ca.path("none.pem")), ..ca.plan() };
    assert!(ClientTls::build(&missing, None).err().unwrap().to_string().contains("none.pem"));
    std::fs::write(ca.path("empty.pem"), "nothing").unwrap();
    let empty = UpstreamTls { ca: Some(ca.path("empty.pem")), ..ca.plan() };
    assert!(matches!(ClientTls::build(&empty, None), Err(TlsError::NoCertificate(_))));
    let bad = UpstreamTls { sni: Some("not a name".into()), ..ca.plan() };
    assert!(matches!(ClientTls::build(&bad, None), Err(TlsError::BadName(_))));
}

#[tokio::test]
async fn changed_files_are_used_for_new_handshakes() {
    let (old, new) = (Authority::new(), Authority::new());
    let peer =
        new.serving(&new.issue(&[SPIFFE], |_| {}), true, &[], b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let (cert, key) = old.issue(&["spiffe://corp/ns/shop/sa/orders"], |_| {});
    let workload = TlsIdentity { name: "orders".into(), cert: cert.clone(), key: key.clone(), ca: old.path("ca.pem") };
    let plan = UpstreamTls { mesh: true, ca: None, sni: None, allow: vec![SPIFFE.into()], ..old.plan() };
    let tls = Arc::new(ClientTls::build(&plan, Some(&workload)).unwrap());
    let health = tls.config();
    let up = Upstream::new(Settings { tls: Some(tls.clone()), ..settings() });
    assert_eq!(Ask::post().send(&up, &peer).await.map(drop).map_err(|f| (f.reason, f.proof)), REFUSED);
    assert!(!tls.refresh().unwrap(), "nothing changed");

    // The CA first: the server is trusted, and does not trust us yet.
    std::fs::copy(new.path("ca.pem"), &workload.ca).unwrap();
    assert!(tls.refresh().unwrap());
    let fault = Ask::post().send(&up, &peer).await.err().unwrap();
    assert_eq!((fault.reason, fault.proof), (Reason::TlsFailed, Proof::MayHaveRun));
    // Half of the pair: refused once, and what was stays.
    let (new_cert, new_key) = new.issue(&["spiffe://corp/ns/shop/sa/orders"], |_| {});
    std::fs::copy(&new_cert, &cert).unwrap();
    assert!(tls.refresh().is_err() && !tls.refresh().unwrap());
    std::fs::copy(&new_key, &key).unwrap();
    assert!(tls.refresh().unwrap());
    assert_eq!(text(Ask::get().send(&up, &peer).await.unwrap()).await.unwrap(), "ok");
    // A connection that stands is not touched by files that cannot be used.
    std::fs::write(&workload.ca, "").unwrap();
    assert!(tls.refresh().is_err());
    assert!(Ask::get().send(&up, &peer).await.unwrap().reused);
    assert!(health.client_auth_cert_resolver.has_certs(), "health checks go by the same files");
}
