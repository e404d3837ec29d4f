//! Credentials that other software made: passwords hashed by Apache's `htpasswd`, and requests signed by a Python library
//! that speaks RFC 9421.

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::common::{Endpoint, Onehop, get_with};
use super::kit::{eventually, python, succeed, tool};

fn config(identity: &str, more: &str, up: &Endpoint) -> String {
    format!(
        "version: 1\nadmin: {{ bind: '127.0.0.1:0' }}\nlisteners: {{ web: {{ bind: '127.0.0.1:0' }} }}\n\
         identities: {{ them: {{ {identity} }} }}\n{more}routes: [{{ name: all, auth: {{ require: them }}, to: up }}]\n\
         services: {{ up: {{ discover: {{ static: ['{}'] }} }} }}\n",
        up.address
    )
}

#[test]
fn passwords_hashed_by_htpasswd_are_good_and_a_changed_file_is_read() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("users");
    let path = file.to_str().expect("a path");
    succeed(tool("htpasswd").args(["-cbB", "-C", "8", path, "ann", "correct horse"]));
    succeed(tool("htpasswd").args(["-bB", "-C", "5", path, "j\u{fc}rgen", "gr\u{fc}n:blau"]));
    let up = Endpoint::ok();
    let hop = Onehop::start(&config(&format!("basic: {{ htpasswd: '{path}' }}"), "", &up));
    let ask = |credential: &str| {
        let field = format!("authorization: Basic {}\r\n", STANDARD.encode(credential));
        get_with(hop.at("web"), "a.example", "/", &field).status()
    };
    assert_eq!((ask("ann:correct horse"), ask("j\u{fc}rgen:gr\u{fc}n:blau")), (200, 200));
    assert_eq!((ask("ann:correct hors"), ask("bob:correct horse")), (401, 401));
    succeed(tool("htpasswd").args(["-bB", "-C", "8", path, "ann", "battery staple"]));
    eventually("the changed file is read", || ask("ann:battery staple") == 200);
    assert_eq!(ask("ann:correct horse"), 401, "what was remembered of the old one is void");
    // Hashes that are guessed too fast are refused where they stand.
    succeed(tool("htpasswd").args(["-cbs", path, "ann", "correct horse"]));
    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, config(&format!("basic: {{ htpasswd: '{path}' }}"), "", &up)).expect("written");
    let check = Command::new(super::common::binary()).arg("check").arg("-c").arg(&bad).output().expect("runs");
    let said = String::from_utf8_lossy(&check.stderr).into_owned() + &String::from_utf8_lossy(&check.stdout);
    assert!(!check.status.success() && said.contains("unsalted SHA-1"), "{said}");
}

#[test]
fn requests_signed_by_another_library_verify_once() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (up, mut keys, mut clients) = (Endpoint::ok(), String::new(), Vec::new());
    for (name, algorithm, registered, kind) in [
        ("ed", "ED25519", "ed25519", &["-algorithm", "ED25519"][..]),
        (
            "p256",
            "ECDSA_P256_SHA256",
            "ecdsa-p256-sha256",
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        ),
        (
            "p384",
            "ECDSA_P384_SHA384",
            "ecdsa-p384-sha384",
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        ),
        ("pss", "RSA_PSS_SHA512", "rsa-pss-sha512", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("v15", "RSA_V1_5_SHA256", "rsa-v1_5-sha256", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
    ] {
        let (private, public) = (dir.path().join(format!("{name}.key")), dir.path().join(format!("{name}.pub")));
        succeed(tool("openssl").arg("genpkey").args(kind).arg("-out").arg(&private));
        succeed(tool("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(&public));
        keys += &format!("{{ id: {name}, algorithm: {registered}, publicKeyFile: '{}' }}, ", public.display());
        clients.push((algorithm, name, private));
    }
    let secret = dir.path().join("shared");
    std::fs::write(&secret, "a shared secret of thirty-two bytes or more").expect("written");
    keys += &format!("{{ id: shared, algorithm: hmac-sha256, secret: {{ file: '{}' }} }}", secret.display());
    clients.push(("HMAC_SHA256", "shared", secret));
    let consumers = format!("consumers: {{ acme: {{ signatureKeys: [{keys}] }} }}\n");
    let hop = Onehop::start(&config("signature: { nonceRequired: true }", &consumers, &up));
    let url = format!("http://{}/v1/orders?a=b%20c&d", hop.at("web"));
    for (algorithm, name, key) in clients {
        let said = succeed(python("signing_client.py").args([url.as_str(), algorithm, name]).arg(&key));
        assert_eq!(said.trim(), "200 401 401", "{algorithm}: good, replayed, changed");
    }
    assert_eq!(up.seen(), 6);
}
