//! Whatever passes is in its one normal form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onehop::route::path::normalise_str;

fuzz_target!(|input: (bool, &str)| {
    let (reject, text) = input;
    let Ok(once) = normalise_str(text, reject) else { return };
    assert_eq!(normalise_str(&once, reject).expect("a normal path passes"), once);
    if once != "*" {
        let path = once.split('?').next().unwrap_or_default();
        assert!(path.starts_with('/') && !path.contains("//") && !path.contains('\\'));
        assert!(path.split('/').all(|segment| segment != ".." && segment != "."));
        assert!(once.parse::<http::uri::PathAndQuery>().is_ok());
    }
});
