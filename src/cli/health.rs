//! `onehop health`: one GET /readyz, for container health checks. Plain blocking I/O: it must be small and quick.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use onehop::config::plan::Bind;
use onehop::config::{self, Source};
use onehop_filters::BUILTIN;

use super::{BAD, usage};

/// For each step. Container health checks give a second or more in all.
const PATIENCE: Duration = Duration::from_secs(1);
const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
const REQUEST: &[u8] = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

pub fn health(admin: Option<&str>, sources: &[Source]) -> ExitCode {
    let bind = match (admin, sources) {
        (Some(text), _) => match parse(text) {
            Some(bind) => bind,
            None => return usage("`--admin` takes `ip:port` or `unix:///path`"),
        },
        (None, []) => Bind::Tcp(DEFAULT),
        (None, sources) => match config::load(sources, BUILTIN).map(|plan| plan.admin.bind) {
            Ok(Some(bind)) => bind,
            Ok(None) => return fail("the configuration has `admin: { bind: none }`: there is nothing to ask"),
            Err(report) => return fail(&report.to_string()),
        },
    };
    match ask(&bind) {
        Ok(200) => ExitCode::SUCCESS,
        Ok(status) => fail(&format!("/readyz answered {status}")),
        Err(e) => fail(&format!("/readyz: {e}")),
    }
}

fn parse(text: &str) -> Option<Bind> {
    match text.strip_prefix("unix://") {
        Some(path) => path.starts_with('/').then(|| Bind::Unix(PathBuf::from(path))),
        None => text.parse().ok().map(Bind::Tcp),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("onehop: {}", message.trim_end());
    ExitCode::from(BAD)
}

fn ask(bind: &Bind) -> std::io::Result<u16> {
    match bind {
        Bind::Tcp(addr) => {
            let stream = TcpStream::connect_timeout(&reachable(*addr), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream)
        }
        Bind::Unix(path) => {
            let stream = std::os::unix::net::UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream)
        }
    }
}

/// A socket bound to "any address" is asked on loopback.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    addr
}

fn exchange(mut stream: impl Read + Write) -> std::io::Result<u16> {
    stream.write_all(REQUEST)?;
    // `HTTP/1.1 200`: RFC 9112 section 4.
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    let status = std::str::from_utf8(&line).ok().and_then(|l| l.strip_prefix("HTTP/1.")).and_then(|l| l.get(2..));
    status
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "the answer is not HTTP/1.1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn answered(answer: &'static [u8]) -> std::io::Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = vec![0; REQUEST.len()];
            stream.read_exact(&mut request).expect("a request");
            stream.write_all(answer).expect("an answer");
            request
        });
        let status = ask(&Bind::Tcp(addr));
        assert_eq!(server.join().expect("the server ends"), REQUEST);
        status
    }

    #[test]
    fn the_status_of_readyz_decides() {
        assert_eq!(answered(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok(), Some(200));
        assert_eq!(answered(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").ok(), Some(503));
        assert!(answered(b"SSH-2.0-OpenSSH_9.0\r\n").is_err());
        assert!(answered(b"").is_err());
    }

    #[test]
    fn a_unix_socket_is_asked_too() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("admin.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = vec![0; REQUEST.len()];
            stream.read_exact(&mut request).expect("a request");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("an answer");
        });
        let bind = parse(&format!("unix://{}", path.display())).expect("an address");
        assert_eq!(ask(&bind).ok(), Some(200));
        server.join().expect("the server ends");
    }

    #[test]
    fn any_address_is_asked_on_loopback() {
        assert_eq!(reachable("0.0.0.0:1".parse().expect("address")).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().expect("address")).to_string(), "[::1]:1");
        assert!(parse("localhost").is_none() && parse("unix://x").is_none());
    }
}
