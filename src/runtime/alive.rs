//! Connections that may be quiet for hours: is anybody still there?

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Quiet for this long, a peer is asked.
const QUIET: Duration = Duration::from_secs(60);
/// And again, so often; then the connection is dead.
const AGAIN: Duration = Duration::from_secs(15);
const TIMES: u32 = 4;

/// Lets the kernel ask a quiet peer (RFC 9293 section 3.8.4): one that vanished without a word is found out after two
/// minutes, and devices on the way do not forget the connection.
pub fn keep_alive(tcp: &TcpStream) {
    let how = TcpKeepalive::new().with_time(QUIET).with_interval(AGAIN).with_retries(TIMES);
    // Without it the connection works as well, and ends with its idle time-out.
    drop(SockRef::from(tcp).set_tcp_keepalive(&how));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let tcp = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a connection");
        keep_alive(&tcp);
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), QUIET);
    }
}
