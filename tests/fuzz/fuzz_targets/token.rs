//! Tokens and key sets of strangers: nothing panics, and what is taken apart is what was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onehop_filters::api::jose::keys::{Algorithm, KeySet};
use onehop_filters::api::jose::token::{Rules, Token};

fuzz_target!(|input: (&str, &[u8])| {
    let (text, set) = input;
    let _ = KeySet::parse(set, &[Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA, Algorithm::HS256], 1);
    let Ok(token) = Token::parse(text) else { return };
    assert!(text.as_bytes().starts_with(token.signed));
    let rules = Rules { issuer: "i".into(), audiences: vec!["a".into()], leeway: 60.0, typ: Some("at+jwt".into()) };
    let _ = token.check(&rules, 1e9);
});
