//! The demo's own caller: plain HTTP/1.1, one connection per request.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Outcome;

/// What came back, and the decision trail that came with it.
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Body as text.
    pub body: String,
    /// One line per decision.
    pub trail: Vec<String>,
}

/// GETs a path, asking for the trail.
pub async fn get(to: SocketAddr, host: &str, path: &str, token: Option<&str>) -> Outcome<Answer> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(TcpStream::connect(to).await?)).await?;
    tokio::spawn(connection);
    let mut rq = Request::get(path).header(header::HOST, host).header("x-onehop-debug", "1");
    if let Some(token) = token {
        rq = rq.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let answer = sender.send_request(rq.body(Empty::<Bytes>::new())?).await?;
    let status = answer.status().as_u16();
    let trail =
        answer.headers().get_all("server-timing").iter().filter_map(|v| v.to_str().ok()).flat_map(lines).collect();
    let body = String::from_utf8_lossy(&answer.into_body().collect().await?.to_bytes()).into_owned();
    Ok(Answer { status, body, trail })
}

/// `name;dur=0.012;desc="pass"` as a column each.
fn lines(value: &str) -> Vec<String> {
    value.split(", ").map(entry).collect()
}

fn entry(text: &str) -> String {
    let mut parts = text.split(';');
    let name = parts.next().unwrap_or_default();
    let (mut took, mut said) = ("", "");
    for part in parts {
        match part.trim().split_once('=') {
            Some(("dur", ms)) => took = ms,
            Some(("desc", words)) => said = words.trim_matches('"'),
            _ => {}
        }
    }
    let took = took.parse::<f64>().map_or_else(|_| String::new(), |ms| format!("{:8.1} us", ms * 1000.0));
    format!("{name:<14} {took:>12}  {said}")
}

/// One line per endpoint of a service, out of `/endpoints`.
pub fn endpoints(body: &str, service: &str) -> Vec<String> {
    let all: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let Some(list) = all["services"][service]["endpoints"].as_array() else { return Vec::new() };
    list.iter()
        .map(|e| {
            let state = match e["ejected_for_ms"].as_u64() {
                Some(ms) if ms > 0 => format!("ejected for {} s", ms.div_ceil(1000)),
                _ => "available".to_owned(),
            };
            format!(
                "{:<22} {state:<20} {} tries, {} failed",
                e["address"].as_str().unwrap_or("?"),
                e["tries"],
                e["failed"]
            )
        })
        .collect()
}
