//! JSON strings by hand, into a buffer that is there already.

/// Appends `bytes` as a JSON string (RFC 8259 section 7), quotes included.
///
/// Bytes that are not UTF-8 become U+FFFD, so that a line is always valid JSON whatever a peer sent. DEL and the C1
/// controls are escaped too: a terminal that shows the line would act on them.
pub fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    escape(out, bytes);
    out.push(b'"');
}

/// [`string`] without the quotes.
pub fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nearly every field is plain ASCII and goes in one copy. No early exit: so the compiler can look at many bytes at once.
    if bytes.iter().fold(true, |all, b| all & plain(*b)) {
        out.extend_from_slice(bytes);
        return;
    }
    for chunk in bytes.utf8_chunks() {
        let text = chunk.valid();
        let mut from = 0;
        for (at, c) in text.char_indices() {
            if c.is_ascii() && plain(c as u8) || c > '\u{9f}' {
                continue;
            }
            out.extend_from_slice(&text.as_bytes()[from..at]);
            from = at + c.len_utf8();
            special(out, c);
        }
        out.extend_from_slice(&text.as_bytes()[from..]);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

const fn plain(b: u8) -> bool {
    matches!(b, b' '..=b'~') && b != b'"' && b != b'\\'
}

fn special(out: &mut Vec<u8>, c: char) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match c {
        '"' => out.extend_from_slice(br#"\""#),
        '\\' => out.extend_from_slice(br"\\"),
        '\n' => out.extend_from_slice(br"\n"),
        '\r' => out.extend_from_slice(br"\r"),
        '\t' => out.extend_from_slice(br"\t"),
        c => {
            // Only controls come here, all below U+00A0.
            let n = c as usize;
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[n >> 4 & 15], HEX[n & 15]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        string(&mut out, bytes);
        String::from_utf8(out).expect("always UTF-8")
    }

    #[test]
    fn escapes() {
        assert_eq!(of(b"plain/path?x=1"), r#""plain/path?x=1""#);
        assert_eq!(of(b"a\"b\\c\n\r\t\x00\x1b[0m"), r#""a\"b\\c\n\r\t\u0000\u001b[0m""#);
        assert_eq!(of("gr\u{fc}n \u{85}\u{7f}".as_bytes()), "\"gr\u{fc}n \\u0085\\u007f\"");
        assert_eq!(of(b"a\xffb\xc3"), "\"a\u{fffd}b\u{fffd}\"");
    }

    proptest! {
        #[test]
        fn text_survives(text in any::<String>()) {
            prop_assert_eq!(serde_json::from_str::<String>(&of(text.as_bytes())).expect("JSON"), text);
        }

        #[test]
        fn bytes_are_what_lossy_says(bytes in any::<Vec<u8>>()) {
            let line = of(&bytes);
            prop_assert!(!line.bytes().any(|b| b < b' '));
            prop_assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), String::from_utf8_lossy(&bytes));
        }
    }
}
