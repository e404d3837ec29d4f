//! What lies under HTTP: the PROXY protocol, and sockets of this machine.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::common::{Answer, Client, Endpoint, Onehop, exchange, simple};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

fn forwarded_for(up: &Endpoint) -> String {
    up.last().lines().find_map(|l| l.strip_prefix("x-forwarded-for: ")).unwrap_or_default().to_owned()
}

fn listener(options: &str, up: &Endpoint) -> Onehop {
    Onehop::start(
        &simple(up).replace("bind: \"127.0.0.1:0\" }\nroutes", &format!("bind: \"127.0.0.1:0\", {options} }}\nroutes")),
    )
}

/// PROXY protocol version 2: signature, PROXY over TCP4, addresses.
fn v2() -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    bytes.extend_from_slice(&[192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80]);
    bytes
}

#[test]
fn proxy_headers_name_the_client() {
    let up = Endpoint::ok();
    let hop = listener("trustedProxies: [127.0.0.0/8], proxyProtocol: required", &up);
    let v1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 80\r\n".to_vec();
    for header in [v1.clone(), v2()] {
        let answer = exchange(hop.at("edge"), &[&header[..], GET].concat());
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert!(forwarded_for(&up).starts_with("192.0.2.7"), "{}", up.last());
    }
    crate::common::eventually("the client in the log", || hop.log().contains("\"client_ip\":\"192.0.2.7\""));
    let seen = up.seen();
    for broken in [
        GET.to_vec(),
        b"PROXY TCP4 192.0.2.7\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.777 10.0.0.1 1 2\r\n".to_vec(),
        [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat(),
        v2()[..20].to_vec(),
    ] {
        let answer = exchange_and_end(&hop, &[&broken[..], GET].concat());
        assert!(answer.0.is_empty() || answer.status() == 400, "{}: {}", broken.escape_ascii(), answer.text());
    }
    assert_eq!(up.seen(), seen);
    let hop = listener("trustedProxies: [127.0.0.0/8], proxyProtocol: optional", &up);
    assert_eq!(exchange(hop.at("edge"), GET).status(), 200);
    assert_eq!(forwarded_for(&up), "127.0.0.1");
    assert_eq!(exchange(hop.at("edge"), &[&v1[..], GET].concat()).status(), 200);
    assert!(forwarded_for(&up).starts_with("192.0.2.7"));
    // Whom we do not trust, we do not serve here: anybody could name any client.
    let hop = listener("trustedProxies: [10.0.0.0/8], proxyProtocol: required", &up);
    let seen = up.seen();
    let answer = exchange_and_end(&hop, &[&v1[..], GET].concat());
    assert!(answer.0.is_empty(), "{}", answer.text());
    assert_eq!(up.seen(), seen);
}

/// As `exchange`, but the client says that it has ended.
fn exchange_and_end(hop: &Onehop, bytes: &[u8]) -> Answer {
    let stream = std::net::TcpStream::connect(hop.at("edge")).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let mut client = Client::over(stream.try_clone().unwrap());
    client.send(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    Answer(client.rest())
}

#[test]
fn unix_sockets_in_and_out() {
    let dir = tempfile::tempdir().unwrap();
    let (front, back) = (dir.path().join("front.sock"), dir.path().join("back.sock"));
    let listener = UnixListener::bind(&back).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut one = [0; 1];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut one).is_ok_and(|n| n > 0) {
                head.push(one[0]);
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nunix");
        }
    });
    let config = crate::common::before(format!("unix://{}", back.display()))
        .replace("bind: \"127.0.0.1:0\" }\nroutes", &format!("bind: \"unix://{}\" }}\nroutes", front.display()));
    let mut hop = Onehop::start(&config);
    for _ in 0..2 {
        let mut client = Client::over(UnixStream::connect(&front).unwrap());
        client.send(GET);
        let answer = client.answer();
        assert_eq!((answer.status(), answer.body().as_str()), (200, "unix"), "{}", answer.text());
    }
    hop.signal("TERM");
    assert_eq!(hop.wait(std::time::Duration::from_secs(10)), Some(0));
    assert!(!front.exists(), "the socket file goes with its listener");
}
