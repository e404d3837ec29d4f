use std::sync::Arc;

use proptest::prelude::*;
use rustls_pki_types::ServerName;

use super::*;

/// The first flight of a real client.
fn real(host: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from(host).expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("memory");
    bytes
}

/// A hello of these extensions, as one record.
fn with(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, data) in extensions {
        list.extend(kind.to_be_bytes());
        list.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
        list.extend(*data);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 2, 0x13, 1, 1, 0]);
    body.extend(u16::try_from(list.len()).expect("short").to_be_bytes());
    body.extend(list);
    records(&message(&body), usize::MAX)
}

fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    [&[CLIENT_HELLO], &length[1..], body].concat()
}

/// A handshake message in records of at most so many bytes.
fn records(message: &[u8], each: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in message.chunks(each.min(RECORD_LIMIT)) {
        out.extend([HANDSHAKE, 3, 1]);
        out.extend(u16::try_from(part.len()).expect("short").to_be_bytes());
        out.extend(part);
    }
    out
}

fn sni(names: &[(u8, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, name) in names {
        list.push(*kind);
        list.extend(u16::try_from(name.len()).expect("short").to_be_bytes());
        list.extend(*name);
    }
    [&u16::try_from(list.len()).expect("short").to_be_bytes()[..], &list].concat()
}

fn read(bytes: &[u8]) -> Result<Option<Option<String>>, HelloError> {
    Hello::default().feed(bytes).map(|found| found.map(|g| g.server_name))
}

fn named(name: &str) -> Result<Option<Option<String>>, HelloError> {
    Ok(Some(Some(name.to_owned())))
}

#[test]
fn a_real_client_is_understood() {
    assert_eq!(read(&real("db.example.com")), named("db.example.com"));
    // RFC 6066 section 3: addresses are no names, and are not sent.
    assert_eq!(read(&real("192.0.2.7")), Ok(Some(None)));
}

#[test]
fn names_are_compared_without_case_and_final_dot() {
    assert_eq!(read(&with(&[(0, &sni(&[(0, b"DB.Example.com.")]))])), named("db.example.com"));
}

#[test]
fn what_is_unknown_is_skipped() {
    let name = sni(&[(0, b"a.example")]);
    // GREASE (RFC 8701) before and after, and ECH.
    let hello = with(&[(0x0a0a, b""), (0xfe0d, &[1; 300]), (0, &name), (0xfafa, b"\0")]);
    assert_eq!(read(&hello), named("a.example"));
    assert_eq!(read(&with(&[(0x1a1a, b"x")])), Ok(Some(None)));
}

#[test]
fn a_client_without_extensions_has_no_name() {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    assert_eq!(read(&records(&message(&body), usize::MAX)), Ok(Some(None)));
}

#[test]
fn another_protocol_is_known_by_its_first_byte() {
    for bytes in [&b"G"[..], b"SSH-2.0-", b"\x80\x2e\x01", b"\x16\x02", b"\x15\x03\x01\0\x02"] {
        assert_eq!(read(bytes), Err(HelloError::NotTls), "{bytes:?}");
    }
}

#[test]
fn contradictions_are_refused() {
    let name = sni(&[(0, b"a.example")]);
    let two = sni(&[(0, b"a.example"), (0, b"b.example")]);
    for (why, extensions) in [
        ("the extension twice", vec![(0, &name[..]), (0, &name)]),
        ("two names", vec![(0, &two[..])]),
        ("another kind of name", vec![(0, &sni(&[(1, b"a")])[..])]),
        ("an empty extension", vec![(0, &b""[..])]),
        ("a list that is shorter than it says", vec![(0, &name[..name.len() - 1])]),
        ("a list that is longer than it says", vec![(0, &[&name[..], b"x"].concat()[..])]),
    ] {
        assert_eq!(read(&with(&extensions)), Err(HelloError::Malformed), "{why}");
    }
    for bad in [&b""[..], b".", b"a b", b"a\0b", b"\xffa", &[b'a'; 254]] {
        assert_eq!(read(&with(&[(0, &sni(&[(0, bad)]))])), Err(HelloError::Name), "{bad:?}");
    }
    // An empty record, and something else in the middle of a hello.
    assert_eq!(read(&[HANDSHAKE, 3, 1, 0, 0]), Err(HelloError::Malformed));
    let hello = records(&with(&[(0, &name)])[RECORD_HEAD..], 20);
    let mut mixed = hello[..25].to_vec();
    mixed.extend([21, 3, 3, 0, 2, 1, 0]);
    assert_eq!(read(&mixed), Err(HelloError::Malformed));
    // A message that is no hello.
    assert_eq!(read(&records(&[2, 0, 0, 1, 0], usize::MAX)), Err(HelloError::Malformed));
}

#[test]
fn size_is_bounded() {
    let huge = records(&[CLIENT_HELLO, 0xff, 0xff, 0xff, 0], usize::MAX);
    assert_eq!(read(&huge), Err(HelloError::TooLong), "announced");
    let filler = vec![0; LIMIT];
    let long = with(&[(0xfe0d, &filler[..LIMIT - 200])]);
    // The smallest records there are: their heads count too.
    assert_eq!(read(&records(&long[RECORD_HEAD..], 1)), Err(HelloError::TooLong), "arrived");
}

proptest! {
    #[test]
    fn it_does_not_matter_how_it_comes(segment in 1usize..700, record in 1usize..700) {
        let message = real("split.example.com")[RECORD_HEAD..].to_vec();
        let bytes = records(&message, record.max(40));
        let mut hello = Hello::default();
        let mut found = None;
        let mut used = 0;
        for part in bytes.chunks(segment) {
            used += part.len();
            found = hello.feed(part).expect("a good hello");
            if found.is_some() {
                break;
            }
        }
        prop_assert_eq!(found.map(|g| g.server_name), Some(Some("split.example.com".to_owned())));
        prop_assert!(used + segment > bytes.len(), "nothing is decided before the end");
    }

    #[test]
    fn strangers_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400) {
        let mut whole = Hello::default();
        let once = whole.feed(&bytes);
        let mut parts = Hello::default();
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        let twice = match parts.feed(a) {
            Ok(None) => parts.feed(b),
            settled => settled,
        };
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn a_bent_hello_never_panics(at in 0usize..200, to in any::<u8>()) {
        let mut bytes = with(&[(0, &sni(&[(0, b"a.example")])), (16, b"\0\x03\x02h2")]);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        let _ = read(&bytes);
    }
}
