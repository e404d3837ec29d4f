//! Finding the end of a field section, byte by byte: every line ends in CRLF, or it is refused (RFC 9112 section 2.2
//! lets a recipient take a bare LF; we do not, because the next hop may not).

/// A line that ends in LF alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BareLf;

/// Length of the section including its empty line, `None` while that has not arrived. `from` is what [`resume`] said
/// about a shorter buffer, else 0.
pub(super) fn section_end(buf: &[u8], from: usize) -> Result<Option<usize>, BareLf> {
    for at in memchr::memchr_iter(b'\n', &buf[from..]).map(|i| i + from) {
        match buf[..at] {
            // The empty line: at the very start (no fields at all) or after another line.
            [b'\r'] | [.., b'\n', b'\r'] => return Ok(Some(at + 1)),
            [.., b'\r'] => {}
            _ => return Err(BareLf),
        }
    }
    Ok(None)
}

/// Where to go on looking once more bytes have arrived.
pub(super) const fn resume(buf: &[u8]) -> usize {
    buf.len()
}
