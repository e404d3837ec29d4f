//! What a client likes better (RFC 9110 section 12.5.1).

use http::HeaderMap;

/// Whether the client likes HTML better than JSON (RFC 9110 section 12.5.1). `*/*` and no field at all mean that it does
/// not care: a program, not a person.
pub fn prefers_html(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(http::header::ACCEPT);
    let ranges = || lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    // The most specific range decides, wherever it stands.
    let quality =
        |names: &[&str]| names.iter().find_map(|name| ranges().find_map(|range| weight(range, name))).unwrap_or(0);
    let html = quality(&["text/html", "text/*", "*/*"]);
    let json = quality(&["application/json", "application/problem+json", "application/*", "*/*"]);
    html > json
}

/// Thousandths, if this range is of that name.
fn weight(range: &str, name: &str) -> Option<u16> {
    let mut parts = range.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(name) {
        return None;
    }
    let q = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
    match q.map(str::parse::<f32>) {
        None => Some(1000),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
        Some(Ok(q)) if (0.0..=1.0).contains(&q) => Some((q * 1000.0) as u16),
        Some(_) => Some(0),
    }
}
