use proptest::prelude::*;

use super::*;

fn header(bytes: &[u8]) -> Option<Proxied> {
    match parse(bytes) {
        Ok(Parsed::Header { consumed, proxied }) => {
            assert_eq!(consumed, bytes.len());
            proxied
        }
        other => panic!("{other:?}"),
    }
}

pub fn v2_bytes(version_command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = V2_START.to_vec();
    bytes.extend([version_command, family]);
    bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn proxied(source: &str, destination: &str) -> Option<Proxied> {
    Some(Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
}

#[test]
fn version_1_lines() {
    assert_eq!(
        header(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"),
        proxied("192.0.2.7:56324", "198.51.100.1:443")
    );
    assert_eq!(header(b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"), proxied("[2001:db8::1]:1", "[::1]:65535"));
    assert_eq!(
        header(b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.8 1 2\r\n"),
        proxied("192.0.2.7:1", "192.0.2.8:2"),
        "one address has one form"
    );
    assert_eq!(header(b"PROXY UNKNOWN\r\n"), None);
    assert_eq!(header(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), None);
    // The longest line that PP names, 107 bytes.
    let longest =
        "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(longest.len(), V1_LIMIT);
    assert_eq!(header(longest.as_bytes()), None);
}

#[test]
fn version_1_lines_that_are_none() {
    use ProxyError::{Address, Fields, Line};
    let overlong = format!("PROXY UNKNOWN {}", "x".repeat(100));
    let table: &[(&str, ProxyError)] = &[
        ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n", Line),
        (&overlong, Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n", Address),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 \r\n", Fields),
        ("PROXY TCP4  192.0.2.7 198.51.100.1 56324 443\r\n", Fields),
        ("PROXY TCP5 192.0.2.7 198.51.100.1 56324 443\r\n", Fields),
        ("PROXY tcp4 192.0.2.7 198.51.100.1 56324 443\r\n", Fields),
        ("PROXY UNKNOWNX\r\n", Fields),
        ("PROXY TCP4 2001:db8::1 ::1 1 2\r\n", Address),
        ("PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n", Address),
        ("PROXY TCP4 192.0.2.007 198.51.100.1 1 2\r\n", Address),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n", Address),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n", Address),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n", Address),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\r\n", Address),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2\0\r\n", Address),
        ("PROXY \r\n", Fields),
    ];
    for (line, error) in table {
        assert_eq!(parse(line.as_bytes()), Err(*error), "{line:?}");
    }
}

#[test]
fn version_2_headers() {
    let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 1, 187];
    let expected = proxied("192.0.2.7:56324", "198.51.100.1:443");
    assert_eq!(header(&v2_bytes(0x21, 0x11, &v4)), expected);
    let with_tlvs = [&v4[..], &[0x04, 0, 2, 9, 9, 0xea, 0, 0]].concat();
    assert_eq!(header(&v2_bytes(0x21, 0x11, &with_tlvs)), expected);

    let mut v6 = [0; 36];
    (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 80, 81);
    assert_eq!(header(&v2_bytes(0x21, 0x21, &v6)), proxied("[::1]:80", "[::2]:81"));

    assert_eq!(header(&v2_bytes(0x20, 0x00, b"")), None, "LOCAL");
    assert_eq!(header(&v2_bytes(0x20, 0x77, b"any")), None, "LOCAL discards the block, whatever it is");
    assert_eq!(header(&v2_bytes(0x21, 0x00, b"any")), None, "UNSPEC, with addresses of unknown size");
    assert_eq!(header(&v2_bytes(0x21, 0x31, &[0; 216])), None, "unix");
    assert_eq!(header(&v2_bytes(0x21, 0x12, &v4)), None, "UDP falls back to UNSPEC");
}

#[test]
fn version_2_headers_that_are_none() {
    use ProxyError::{Long, Short, Unknown};
    let v4 = [0; 12];
    let cut_tlv = [&v4[..], &[4, 0]].concat();
    let long_tlv = [&v4[..], &[4, 0, 9, 1]].concat();
    for (bytes, error) in [
        (v2_bytes(0x11, 0x11, &v4), Unknown),
        (v2_bytes(0x22, 0x11, &v4), Unknown),
        (v2_bytes(0x21, 0x41, &v4), Unknown),
        (v2_bytes(0x21, 0x13, &v4), Unknown),
        (v2_bytes(0x21, 0x10, &v4), Unknown),
        (v2_bytes(0x21, 0x11, &v4[..11]), Short),
        (v2_bytes(0x21, 0x21, &v4), Short),
        (v2_bytes(0x21, 0x31, &[0; 215]), Short),
        (v2_bytes(0x21, 0x11, &cut_tlv), Short),
        (v2_bytes(0x21, 0x11, &long_tlv), Short),
        (v2_bytes(0x21, 0x11, &vec![0; LIMIT]), Long),
    ] {
        assert_eq!(parse(&bytes), Err(error), "{:x?}", &bytes[12..bytes.len().min(32)]);
    }
}

#[test]
fn what_else_a_connection_starts_with_is_told_apart_at_the_first_byte_that_differs() {
    for other in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0",
        b"PROPFIND / HTTP/1.1",
        b"PROXIES",
        b"\x16\x03\x01",
        b"\r\n\r\nGET",
    ] {
        assert_eq!(parse(other), Ok(Parsed::Absent), "{other:?}");
    }
    for open in [&b""[..], b"P", b"PRO", b"PROXY", b"PROXY ", b"\r\n", b"\r\n\r\n\0\r\nQUIT"] {
        assert!(matches!(parse(open), Ok(Parsed::More(n)) if n > 0), "{open:?}");
    }
}

prop_compose! {
    fn any_header()(
        one in any::<[u8; 4]>(), two in any::<[u8; 16]>(), ports in any::<(u16, u16)>(), form in 0..4, tlv in prop::collection::vec(any::<u8>(), 0..300),
    ) -> (Vec<u8>, Proxied) {
        let ip: IpAddr = if form % 2 == 0 { one.into() } else { two.into() };
        // Version 1 writes an IPv4-mapped address as TCP6; both forms mean the same socket address here.
        let proxied = Proxied { source: socket(ip, ports.0), destination: socket(ip, ports.1) };
        let bytes = match form {
            0 => format!("PROXY TCP4 {ip} {ip} {} {}\r\n", ports.0, ports.1).into_bytes(),
            1 => format!("PROXY TCP6 {ip} {ip} {} {}\r\n", ports.0, ports.1).into_bytes(),
            _ => {
                let raw: &[u8] = if form == 2 { &one } else { &two };
                let mut payload = [raw, raw, &ports.0.to_be_bytes(), &ports.1.to_be_bytes(), &[0xe0]].concat();
                payload.extend(u16::try_from(tlv.len()).unwrap().to_be_bytes());
                payload.extend(&tlv);
                v2_bytes(0x21, if form == 2 { 0x11 } else { 0x21 }, &payload)
            }
        };
        (bytes, proxied)
    }
}

proptest! {
    /// However it is cut and whatever follows: the same header, the same length, and never too much asked for.
    #[test]
    fn every_cut_asks_for_more_and_the_tail_does_not_matter((bytes, expected) in any_header(), tail in prop::collection::vec(any::<u8>(), 0..40)) {
        for cut in 0..bytes.len() {
            match parse(&bytes[..cut]) {
                Ok(Parsed::More(n)) => prop_assert!(n > 0 && cut + n <= bytes.len()),
                other => prop_assert!(false, "{other:?} at {cut}"),
            }
        }
        let whole = [&bytes[..], &tail].concat();
        prop_assert_eq!(parse(&whole), Ok(Parsed::Header { consumed: bytes.len(), proxied: Some(expected) }));
    }

    /// No bytes make it panic, its answer keeps its bounds, and more bytes do not change it.
    #[test]
    fn any_bytes(start in prop_oneof![Just(&b""[..]), Just(V1_START), Just(&V2_START[..])], rest in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = [start, &rest].concat();
        let whole = parse(&bytes);
        for cut in 0..bytes.len() {
            match parse(&bytes[..cut]) {
                Ok(Parsed::More(n)) => prop_assert!(n > 0 && cut + n <= LIMIT),
                settled => prop_assert_eq!(settled, whole, "settled at {}, then something else", cut),
            }
        }
        if let Ok(Parsed::Header { consumed, .. }) = whole {
            prop_assert!(consumed <= bytes.len() && consumed <= LIMIT);
        }
    }
}
