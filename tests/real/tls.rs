//! openssl's client: versions, certificate by SNI, client certificates, resumption.

use std::io::Write;
use std::process::{Command, Stdio};

use super::common::Onehop;
use super::kit::{Authority, texts, tool};

struct Bed {
    onehop: Onehop,
    authority: Authority,
    caller: (String, String),
}

fn bed() -> Bed {
    let authority = Authority::new();
    let shop = authority.issue(&["shop.example"]);
    let other = authority.issue(&["other.example", "*.wild.example"]);
    let caller = authority.issue(&["caller.example"]);
    let certificates =
        format!("certificates: [{{ cert: {}, key: {} }}, {{ cert: {}, key: {} }}]", shop.0, shop.1, other.0, other.1);
    let onehop = Onehop::start(&format!(
        "version: 1\n\
         admin: {{ bind: '127.0.0.1:0' }}\n\
         listeners:\n\
         \x20 both: {{ bind: '127.0.0.1:0', tls: {{ {certificates} }} }}\n\
         \x20 new: {{ bind: '127.0.0.1:0', tls: {{ minVersion: '1.3', {certificates} }} }}\n\
         \x20 mutual: {{ bind: '127.0.0.1:0', tls: {{ clientCa: {}, {certificates} }} }}\n\
         routes: [{{ name: all, respond: {{ status: 200, body: 'hello' }} }}]\n",
        authority.ca()
    ));
    Bed { onehop, authority, caller }
}

impl Bed {
    /// Connects, sends one request, and returns everything that openssl prints.
    fn client(&self, listener: &str, name: &str, options: &[&str]) -> String {
        let mut client: Command = tool("openssl");
        client
            .args(["s_client", "-connect", &self.onehop.at(listener).to_string(), "-servername", name])
            .args(["-CAfile", &self.authority.ca(), "-ign_eof", "-verify_hostname", name])
            .args(options);
        let mut child =
            client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("openssl");
        let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
        // A refused handshake closes its input.
        let _ = child.stdin.take().expect("stdin is piped").write_all(request.as_bytes());
        let (out, err) = texts(&child.wait_with_output().expect("openssl ends"));
        out + &err
    }
}

const SERVED: &str = "HTTP/1.1 200 OK";

#[test]
fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let bed = bed();
    for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let text = bed.client("both", "shop.example", &[option]);
        assert!(text.contains("Verify return code: 0 (ok)") && text.contains(SERVED), "{text}");
        assert!(text.contains(&format!("New, {version}, Cipher is")), "{text}");
    }
    let old = bed.client("both", "shop.example", &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(old.contains("alert") && !old.contains(SERVED), "{old}");
    let refused = bed.client("new", "shop.example", &["-tls1_2"]);
    assert!(refused.contains("alert protocol version") && !refused.contains(SERVED), "{refused}");
    assert!(bed.client("new", "shop.example", &["-tls1_3"]).contains(SERVED));
}

#[test]
fn the_certificate_is_chosen_by_name() {
    let bed = bed();
    for (name, subject) in
        [("shop.example", "shop.example"), ("other.example", "other.example"), ("a.wild.example", "other.example")]
    {
        let text = bed.client("both", name, &["-alpn", "http/1.1"]);
        assert!(text.contains(&format!("subject=CN = {subject}")), "{name}: {text}");
        assert!(
            text.contains("Verify return code: 0 (ok)") && text.contains("ALPN protocol: http/1.1"),
            "{name}: {text}"
        );
    }
}

#[test]
fn a_client_certificate_is_wanted_and_checked() {
    let bed = bed();
    let (cert, key) = &bed.caller;
    let known = bed.client("mutual", "shop.example", &["-cert", cert, "-key", key]);
    assert!(known.contains(SERVED), "{known}");
    let none = bed.client("mutual", "shop.example", &[]);
    assert!(none.contains("certificate required") && !none.contains(SERVED), "{none}");
    let foreign = Authority::new();
    let (cert, key) = foreign.issue(&["caller.example"]);
    let stranger = bed.client("mutual", "shop.example", &["-cert", &cert, "-key", &key]);
    assert!(!stranger.contains(SERVED), "{stranger}");
    assert!(stranger.contains("alert"), "{stranger}");
}

#[test]
fn sessions_are_resumed() {
    let bed = bed();
    let dir = tempfile::tempdir().expect("a temporary folder");
    for version in ["-tls1_2", "-tls1_3"] {
        let session = dir.path().join(version).display().to_string();
        let first = bed.client("both", "shop.example", &[version, "-sess_out", &session]);
        assert!(first.contains("New, ") && first.contains(SERVED), "{first}");
        let second = bed.client("both", "shop.example", &[version, "-sess_in", &session]);
        assert!(second.contains("Reused, ") && second.contains(SERVED), "{version}: {second}");
    }
}
