use std::time::Duration;

use onehop_filters::contract::Span;
use rustls::ClientConfig;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::plan::{Bind, Limits, Paths, ProxyProtocol};
use crate::edge::tls_testing::{Authority, connect, leaf};

fn listener() -> Listener {
    Listener {
        name: "public".into(),
        span: Span { file: 0, line: 3, column: 5 },
        bind: Bind::Tcp("127.0.0.1:0".parse().unwrap()),
        h1: true,
        h2: true,
        tcp: None,
        tls: None,
        trusted: Arc::from([]),
        proxy_protocol: ProxyProtocol::None,
        mesh: false,
        capture: None,
        passthrough: false,
        clients: None,
        limits: Limits {
            head: 0,
            uri: 0,
            fields: 0,
            body: None,
            streams: 0,
            connections: 0,
            per_client: None,
            head_timeout: Duration::ZERO,
            body_idle_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            tls_timeout: Duration::ZERO,
            requests: None,
        },
        paths: Paths { reject_escaped_slashes: true, reject_underscores: true },
        via: false,
        accept_balance: false,
    }
}

fn tls(certificates: Vec<(PathBuf, PathBuf)>) -> ListenerTls {
    ListenerTls { mesh: false, certificates, only_13: false, client_ca: None, crl: Vec::new(), client_required: true }
}

fn build(tls: &ListenerTls) -> Result<Acceptor, ConfigError> {
    Acceptor::build(&listener(), tls, None, &Tickets::new().unwrap())
}

fn refusal(tls: &ListenerTls) -> String {
    let error = build(tls).err().expect("refused");
    assert_eq!(error.span, Some(listener().span));
    error.message
}

/// The certificate a client gets, and what ALPN agreed on.
async fn served(acceptor: &Acceptor, config: ClientConfig, name: &str) -> (CertificateDer<'static>, Option<Vec<u8>>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let server = TlsAcceptor::from(acceptor.config().clone()).accept(far);
    let config = Arc::new(config);
    let (client, server) = tokio::join!(connect(&config, name, near), server);
    let (client, _server) = (client.unwrap(), server.unwrap());
    let session = client.get_ref().1;
    (session.peer_certificates().unwrap()[0].clone(), session.alpn_protocol().map(<[u8]>::to_vec))
}

#[tokio::test]
async fn sni_chooses_exact_before_wildcard_before_the_first() {
    let authority = Authority::new();
    let first = authority.issue("first", &["first.test", "192.0.2.1"]);
    let wild = authority.issue("wild", &["*.shop.test"]);
    let exact = authority.issue("exact", &["API.shop.test"]);
    let acceptor = build(&tls(vec![first.clone(), wild.clone(), exact.clone()])).unwrap();
    for (name, files) in
        [("first.test", &first), ("web.shop.test", &wild), ("api.shop.test", &exact), ("192.0.2.1", &first)]
    {
        assert_eq!(served(&acceptor, authority.client(None), name).await.0, leaf(&files.0), "{name}");
    }
    for (sni, default) in
        [(None, true), (Some("shop.test"), true), (Some("a.b.shop.test"), true), (Some("x.shop.test"), false)]
    {
        let got = acceptor.shelf.serving(sni).first().unwrap().key().cert[0].clone();
        assert_eq!(got == leaf(&first.0), default, "{sni:?}");
    }
}

#[tokio::test]
async fn alpn_follows_the_protocols_of_the_listener() {
    let authority = Authority::new();
    let files = tls(vec![authority.issue("a", &["a.test"])]);
    for (h1, h2, wants, gets) in [
        (true, true, vec!["http/1.1", "h2"], Some("h2")),
        (true, false, vec!["h2", "http/1.1"], Some("http/1.1")),
        (true, true, vec![], None),
    ] {
        let listener = Listener { h1, h2, ..listener() };
        let acceptor = Acceptor::build(&listener, &files, None, &Tickets::new().unwrap()).unwrap();
        let mut config = authority.client(None);
        config.alpn_protocols = wants.iter().map(|p| p.as_bytes().to_vec()).collect();
        assert_eq!(served(&acceptor, config, "a.test").await.1.as_deref(), gets.map(str::as_bytes));
    }
}

#[tokio::test]
async fn min_version_13_refuses_12() {
    let authority = Authority::new();
    let mut files = tls(vec![authority.issue("a", &["a.test"])]);
    for only_13 in [false, true] {
        files.only_13 = only_13;
        let acceptor = build(&files).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.root.clone()).unwrap();
        let old = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = TlsAcceptor::from(acceptor.config().clone()).accept(far);
        let old = Arc::new(old);
        let (client, server) = tokio::join!(connect(&old, "a.test", near), server);
        assert_eq!((client.is_err(), server.is_err()), (only_13, only_13));
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let (a, b) = (authority.issue("a", &["a.test"]), authority.issue("b", &["b.test"]));
    let mixed = refusal(&tls(vec![(a.0.clone(), b.1.clone())]));
    assert!(mixed.contains("b.key does not belong to") && mixed.contains("a.pem"), "{mixed}");
    let missing = refusal(&tls(vec![(authority.path("none.pem"), a.1.clone())]));
    assert!(missing.contains("none.pem") && missing.contains("No such file"), "{missing}");
    let swapped = refusal(&tls(vec![(a.1.clone(), a.0.clone())]));
    assert!(swapped.contains("a.key holds no certificate"), "{swapped}");
    let no_key = refusal(&tls(vec![(a.0.clone(), b.0.clone())]));
    assert!(no_key.contains("key file") && no_key.contains("b.pem"), "{no_key}");
    fs::write(authority.path("junk"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let junk = refusal(&tls(vec![(authority.path("junk"), a.1.clone())]));
    assert!(junk.contains("junk: not a certificate"), "{junk}");
    let ca = refusal(&ListenerTls { client_ca: Some(authority.path("a.key")), ..tls(vec![a.clone()]) });
    assert!(ca.contains("client CA file") && ca.contains("a.key"), "{ca}");
    assert!(refusal(&tls(vec![])).contains("no certificate"));
    assert!(refusal(&ListenerTls { mesh: true, ..tls(vec![]) }).contains("identity"));
}

#[tokio::test]
async fn mesh_mode_uses_the_workload_and_requires_one() {
    let authority = Authority::new();
    let (cert, key) = authority.issue("me", &["spiffe://test/me", "me.test"]);
    let identity = TlsIdentity { name: "me".into(), cert, key, ca: authority.ca() };
    let mesh = ListenerTls { mesh: true, client_required: false, ..tls(vec![]) };
    let acceptor = Acceptor::build(&listener(), &mesh, Some(&identity), &Tickets::new().unwrap()).unwrap();
    let peer = authority.issue("peer", &["spiffe://test/peer"]);
    served(&acceptor, authority.client(Some(&peer)), "me.test").await;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let anonymous = Arc::new(authority.client(None));
    let server = TlsAcceptor::from(acceptor.config().clone()).accept(far);
    let (_client, server) = tokio::join!(connect(&anonymous, "me.test", near), server);
    assert!(server.is_err(), "a mesh peer without a certificate is refused");
    assert!(!acceptor.misdirected(Some("me.test"), "orders.shop"));
}

#[test]
fn misdirected_is_what_another_certificate_here_covers() {
    let authority = Authority::new();
    let acceptor = build(&tls(vec![
        authority.issue("a", &["a.test", "*.a.test", "192.0.2.1", "2001:db8::1"]),
        authority.issue("b", &["b.test"]),
    ]))
    .unwrap();
    for (sni, host, wrong) in [
        (Some("a.test"), "a.test", false),
        (Some("a.test"), "A.TEST.", false),
        (Some("a.test"), "x.a.test", false),
        (Some("x.a.test"), "y.a.test", false),
        (Some("a.test"), "b.test", true),
        (Some("b.test"), "x.a.test", true),
        (Some("b.test"), "b.test", false),
        (None, "a.test", false),
        (None, "b.test", true),
        (None, "192.0.2.1", false),
        (Some("b.test"), "[2001:db8::1]", true),
        (Some("b.test"), "nobody.test", false),
        (Some("unknown.test"), "b.test", true),
    ] {
        assert_eq!(acceptor.misdirected(sni, host), wrong, "{sni:?} {host}");
    }
}

#[test]
fn certificates_are_shown_with_names_and_dates() {
    let authority = Authority::new();
    let files = authority.issue("a", &["A.test", "192.0.2.1", "spiffe://test/a"]);
    let acceptor = build(&tls(vec![files.clone()])).unwrap();
    let [info] = acceptor.certificates().cloned().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((&*info.listener, &info.file), ("public", &files.0));
    assert_eq!(info.names, ["a.test", "192.0.2.1", "spiffe://test/a"]);
    assert!(info.not_before < info.not_after && !info.serial.is_empty());
}

#[test]
fn a_replaced_file_makes_it_stale() {
    let authority = Authority::new();
    let files = authority.issue("a", &["a.test"]);
    let acceptor = build(&tls(vec![files.clone()])).unwrap();
    assert!(!acceptor.stale());
    // As a secret store does it: a new file, renamed over the old one, of the same length.
    let copy = authority.path("copy");
    fs::copy(&files.0, &copy).unwrap();
    fs::rename(&copy, &files.0).unwrap();
    assert!(acceptor.stale());
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_the_list_is_read_again() {
    let authority = Authority::new();
    let (good, bad) = (authority.issue("good", &["good.test"]), authority.issue("bad", &["bad.test"]));
    let list = authority.path("list.crl");
    let files = ListenerTls {
        client_ca: Some(authority.ca()),
        crl: vec![list.clone()],
        ..tls(vec![authority.issue("own", &["a.test"])])
    };
    let admits = async |acceptor: &Acceptor, client: &(PathBuf, PathBuf)| {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let config = Arc::new(authority.client(Some(client)));
        let server = TlsAcceptor::from(acceptor.config().clone()).accept(far);
        tokio::join!(connect(&config, "a.test", near), server).1.is_ok()
    };
    assert!(refusal(&files).contains("list.crl"), "a list that is missing is named");
    fs::write(&list, "no list").unwrap();
    assert!(refusal(&files).contains("holds no revocation list"));

    fs::write(&list, authority.revoke(&[], 2090).pem().unwrap()).unwrap();
    let before = build(&files).unwrap();
    assert!(admits(&before, &good).await && admits(&before, &bad).await);
    assert!(!before.stale());
    // In DER, as authorities publish them.
    fs::write(authority.path("new"), authority.revoke(&[&bad.0], 2090).der()).unwrap();
    fs::rename(authority.path("new"), &list).unwrap();
    assert!(before.stale(), "the listener will read it again");
    let after = build(&files).unwrap();
    assert_eq!((admits(&after, &good).await, admits(&after, &bad).await), (true, false));

    fs::write(&list, authority.revoke(&[], 2021).pem().unwrap()).unwrap();
    assert!(!admits(&build(&files).unwrap(), &good).await, "a list that is out of date says nothing");
    let other = Authority::new();
    fs::write(&list, other.revoke(&[], 2090).pem().unwrap()).unwrap();
    assert!(!admits(&build(&files).unwrap(), &good).await, "a list of another authority says nothing");
}
