//! TLS on both sides: certificates by name, ALPN, client certificates, and endpoints that must prove who they are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::common::h2::{Fate, Frames, plain};
use crate::common::{Client, Endpoint, Onehop, before, scripted, simple};

/// A certificate authority in a folder.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

type Files = (PathBuf, PathBuf);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), dir }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn issue(&self, file: &str, name: &str) -> Files {
        let mut params = CertificateParams::default();
        let text = Ia5String::try_from(name).unwrap();
        params.subject_alt_names = vec![if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) }];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = (self.dir.path().join(format!("{file}.pem")), self.dir.path().join(format!("{file}.key")));
        std::fs::write(&files.0, certificate.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).unwrap()).unwrap();
        roots
    }

    /// A client that trusts this authority and offers these protocols.
    fn client(&self, alpn: &[&str], identity: Option<&Files>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(files) => {
                builder.with_client_auth_cert(chain(files), PrivateKeyDer::from_pem_file(&files.1).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn chain(files: &Files) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_file(&files.0).unwrap()]
}

type Secured = StreamOwned<ClientConnection, TcpStream>;

/// A finished handshake, or why there is none.
fn connect(to: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<Secured> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    let connection = ClientConnection::new(config.clone(), ServerName::try_from(name.to_owned()).unwrap());
    let mut secured = StreamOwned::new(connection.map_err(std::io::Error::other)?, stream);
    while secured.conn.is_handshaking() {
        secured.conn.complete_io(&mut secured.sock)?;
    }
    Ok(secured)
}

fn names(secured: &Secured) -> &[u8] {
    &secured.conn.peer_certificates().unwrap()[0]
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

fn secured(up: &Endpoint, tls: &str) -> Onehop {
    Onehop::start(
        &simple(up)
            .replace("bind: \"127.0.0.1:0\" }\nroutes", &format!("bind: \"127.0.0.1:0\", tls: {{ {tls} }} }}\nroutes")),
    )
}

fn pair(files: &Files) -> String {
    format!("{{ cert: {}, key: {} }}", files.0.display(), files.1.display())
}

#[test]
fn names_choose_certificates_and_bind_requests() {
    let authority = Authority::new();
    let (a, b) = (authority.issue("a", "a.example"), authority.issue("b", "*.b.example"));
    let up = Endpoint::ok();
    let hop = secured(&up, &format!("certificates: [{}, {}]", pair(&a), pair(&b)));
    let client = authority.client(&[], None);
    for (name, files) in [("a.example", &a), ("x.b.example", &b)] {
        let secured = connect(hop.at("edge"), &client, name).unwrap();
        assert_eq!(names(&secured), &*chain(files)[0], "{name}");
        let mut client = Client::over(secured);
        client.send(get(name).as_bytes());
        let answer = client.answer();
        assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
        assert!(up.last().contains("x-forwarded-proto: https\r\n"), "{}", up.last());
    }
    // The connection is for a.example; a request for another certificate's host goes elsewhere.
    let seen = up.seen();
    let mut one = Client::over(connect(hop.at("edge"), &client, "a.example").unwrap());
    one.send(get("x.b.example").as_bytes());
    let answer = one.answer();
    assert_eq!(answer.status(), 421, "{}", answer.text());
    assert!(answer.body().contains("\"reason\":\"misdirected\""), "{}", answer.text());
    assert_eq!(up.seen(), seen);
    // In the clear there is nothing to see, and the process goes on.
    let plain = crate::common::exchange(hop.at("edge"), get("a.example").as_bytes());
    assert!(plain.status() != 200, "{}", plain.text());
    assert!(connect(hop.at("edge"), &client, "a.example").is_ok());
}

#[test]
fn alpn_chooses_the_protocol() {
    let authority = Authority::new();
    let up = Endpoint::ok();
    let hop = secured(&up, &format!("certificates: [{}]", pair(&authority.issue("a", "a.example"))));
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        let secured = connect(hop.at("edge"), &authority.client(offered, None), "a.example").unwrap();
        assert_eq!(secured.conn.alpn_protocol(), chosen.map(str::as_bytes), "{offered:?}");
        if chosen == Some("h2") {
            let mut fields = plain("GET", "/");
            fields[1].1 = b"https";
            assert!(matches!(Frames::over(secured).ask(1, &fields), Fate::Answered(200, _)));
        } else {
            let mut client = Client::over(secured);
            client.send(get("a.example").as_bytes());
            assert_eq!(client.answer().status(), 200, "{offered:?}");
        }
    }
    assert!(connect(hop.at("edge"), &authority.client(&["spdy/3"], None), "a.example").is_err());
}

#[test]
fn clients_show_certificates_where_they_must() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = pair(&authority.issue("a", "a.example"));
    let known = authority.issue("me", "spiffe://corp/ns/web/sa/shop");
    let unknown = stranger.issue("me", "spiffe://corp/ns/web/sa/shop");
    let up = Endpoint::ok();
    let ask = |hop: &Onehop, identity: Option<&Files>| -> u16 {
        let Ok(secured) = connect(hop.at("edge"), &authority.client(&[], identity), "a.example") else { return 0 };
        let mut client = Client::over(secured);
        client.send(get("a.example").as_bytes());
        client.answer().status()
    };
    let ca = authority.ca();
    let required = secured(&up, &format!("certificates: [{server}], clientCa: {}", ca.display()));
    assert_eq!((ask(&required, Some(&known)), ask(&required, Some(&unknown)), ask(&required, None)), (200, 0, 0));
    let optional = secured(&up, &format!("certificates: [{server}], clientCa: {}, clientAuth: optional", ca.display()));
    assert_eq!((ask(&optional, Some(&known)), ask(&optional, Some(&unknown)), ask(&optional, None)), (200, 0, 200));
}

#[test]
fn a_certificate_names_a_consumer() {
    let authority = Authority::new();
    let server = pair(&authority.issue("a", "a.example"));
    let (ours, unknown) = (authority.issue("me", "spiffe://corp/ns/web/sa/shop"), authority.issue("x", "x.example"));
    let up = Endpoint::ok();
    let config = simple(&up)
        .replace(
            "bind: \"127.0.0.1:0\" }\nroutes",
            &format!(
                "bind: \"127.0.0.1:0\", tls: {{ certificates: [{server}], clientCa: {}, clientAuth: optional }} }}\n\
                 identities: {{ machines: {{ mtls: {{}} }} }}\n\
                 consumers: {{ shop: {{ certificates: [\"spiffe://corp/ns/web/sa/shop\"] }} }}\nroutes",
                authority.ca().display()
            ),
        )
        .replace("name: all,", "name: all, auth: { require: machines, consumers: shop },");
    let hop = Onehop::start(&config);
    for (identity, status) in [(Some(&ours), 200), (Some(&unknown), 401), (None, 401)] {
        let mut client = Client::over(connect(hop.at("edge"), &authority.client(&[], identity), "a.example").unwrap());
        // What another proxy would say about a certificate is nobody's word here.
        let claims = "x-forwarded-client-cert: URI=spiffe://corp/ns/web/sa/shop\r\nclient-cert: :MIIB:\r\n";
        client.send(get("a.example").replacen("\r\n\r\n", &format!("\r\n{claims}\r\n"), 1).as_bytes());
        let answer = client.answer();
        assert_eq!(answer.status(), status, "{}", answer.text());
    }
    assert_eq!(up.seen(), 1);
    assert!(!up.last().contains("client-cert"), "{}", up.last());
}

/// A TLS server that wants a certificate of this authority.
fn mutual(authority: &Authority, files: &Files) -> SocketAddr {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(files), PrivateKeyDer::from_pem_file(&files.1).unwrap())
        .unwrap();
    let config = Arc::new(config);
    scripted(move |stream| {
        let mut secured = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
        let mut head = Vec::new();
        let mut one = [0; 1];
        loop {
            match secured.read(&mut one) {
                Ok(1) => head.push(one[0]),
                _ => return,
            }
            if head.ends_with(b"\r\n\r\n") {
                head.clear();
                if secured.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nmutual").is_err() {
                    return;
                }
            }
        }
    })
}

#[test]
fn endpoints_prove_who_they_are() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let stock = authority.issue("stock", "spiffe://corp/ns/shop/sa/stock");
    let me = authority.issue("me", "spiffe://corp/ns/shop/sa/web");
    let up = mutual(&authority, &stock);
    let ask = |ca: &Authority, allow: &str, identity: Option<&Files>| {
        let identity =
            identity.map_or_else(String::new, |f| format!(", cert: {}, key: {}", f.0.display(), f.1.display()));
        let tls = format!("up: {{ tls: {{ ca: {}, allow: [\"{allow}\"]{identity} }}, discover", ca.ca().display());
        let hop = Onehop::start(&before(up).replace("up: { discover", &tls));
        let answer = crate::common::get(hop.at("edge"), "a.example", "/");
        (answer.status(), answer.body())
    };
    let id = "spiffe://corp/ns/shop/sa/stock";
    assert_eq!(ask(&authority, id, Some(&me)), (200, "mutual".to_owned()));
    for (case, (status, body)) in [
        ("another name is allowed", ask(&authority, "spiffe://corp/ns/shop/sa/stoc", Some(&me))),
        ("a longer name is allowed", ask(&authority, "spiffe://corp/ns/shop/sa/stock2", Some(&me))),
        ("another authority", ask(&stranger, id, Some(&me))),
        ("no certificate of ours", ask(&authority, id, None)),
    ] {
        assert_eq!(status, 502, "{case}: {body}");
        assert!(
            ["tls-failed", "reset"].iter().any(|r| body.contains(&format!("\"reason\":\"{r}\""))),
            "{case}: {body}"
        );
    }
}
