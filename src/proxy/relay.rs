//! Bytes both ways between two connections, each direction for itself: what one side has to say is passed on, its end
//! too (a half-close), while the other may still speak.
//!
//! What is read is written at once from a buffer that all connections of a worker share. Only what a peer does not take
//! yet is kept, at most one buffer for each direction, and until it is gone nothing more is read: a connection that is
//! idle holds no buffer, and a slow peer slows the other.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use onehop_filters::contract::metrics::Counter;
use onehop_filters::contract::now;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::runtime::wheel::deadline;

/// One read. The kernel gives no more at a time than fits its own buffers.
const ROOM: usize = 64 << 10;

thread_local! {
    /// Taken out while it is used.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What passed in one direction.
#[derive(Default)]
pub struct Flow {
    /// Bytes read.
    pub bytes: u64,
    /// Counts them as they pass: a connection may live for days.
    pub counter: Option<Counter>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides have said everything.
    Closed,
    /// The client's connection broke.
    ClientBroke,
    /// The endpoint's connection broke.
    UpstreamBroke,
    /// Nothing moved for too long.
    Idle,
}

/// Copies until both sides are done, one of them breaks, or nothing moved for `idle`. `into` is what the client says.
pub async fn relay<C, U>(
    client: &mut C,
    upstream: &mut U,
    idle: Option<Duration>,
    (into, out): (&mut Flow, &mut Flow),
) -> Ended
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut clock = idle.map(|idle| (idle, deadline(now() + idle)));
    poll_fn(move |cx| {
        let mut scratch = SCRATCH.take();
        if scratch.is_empty() {
            scratch = vec![0; ROOM];
        }
        let mut moved = false;
        let sent = up.poll(cx, Pin::new(client), Pin::new(upstream), &mut scratch, into, &mut moved);
        let got = down.poll(cx, Pin::new(upstream), Pin::new(client), &mut scratch, out, &mut moved);
        SCRATCH.set(scratch);
        match (sent, got) {
            (Poll::Ready(Err(_)), _) => return Poll::Ready(Ended::ClientBroke),
            (_, Poll::Ready(Err(_))) => return Poll::Ready(Ended::UpstreamBroke),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::Closed),
            _ => {}
        }
        let Some((idle, clock)) = &mut clock else { return Poll::Pending };
        if moved {
            clock.reset(now() + *idle);
        }
        Pin::new(clock).poll(cx).map(|()| Ended::Idle)
    })
    .await
}

/// One direction.
#[derive(Default)]
struct Way {
    /// What the sink has not taken yet, from `at` on.
    kept: Vec<u8>,
    at: usize,
    unflushed: bool,
    /// The source has said everything.
    ended: bool,
    /// So was the sink told; or it wants nothing more.
    done: bool,
}

impl Way {
    /// Ready: nothing more goes this way. An error is the source's. A sink that is gone ends its own direction only:
    /// what it said before may still be on its way to the other side.
    fn poll<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
        scratch: &mut [u8],
        flow: &mut Flow,
        moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        while !self.done {
            while self.at < self.kept.len() {
                match ready!(to.as_mut().poll_write(cx, &self.kept[self.at..])) {
                    Ok(n) if n > 0 => {
                        self.at += n;
                        (self.unflushed, *moved) = (true, true);
                    }
                    _ => return self.finish(),
                }
            }
            (self.kept, self.at) = (Vec::new(), 0);
            if self.ended {
                // An error here means that the sink is closed already.
                let _ = ready!(to.as_mut().poll_shutdown(cx));
                return self.finish();
            }
            let mut buffer = ReadBuf::new(scratch);
            match from.as_mut().poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let data = buffer.filled();
                    flow.add(data.len());
                    *moved = true;
                    if !self.pass(cx, to.as_mut(), data) {
                        return self.finish();
                    }
                }
                Poll::Ready(Ok(())) => self.ended = true,
                // TLS without its farewell. Many programs end so, and what came before it is theirs all the same.
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => self.ended = true,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    if self.unflushed {
                        match to.as_mut().poll_flush(cx) {
                            Poll::Ready(Ok(())) => self.unflushed = false,
                            Poll::Ready(Err(_)) => return self.finish(),
                            Poll::Pending => {}
                        }
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was read, and keeps what is not taken. False: the sink is gone.
    fn pass<W: AsyncWrite>(&mut self, cx: &mut Context<'_>, mut to: Pin<&mut W>, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            match to.as_mut().poll_write(cx, data) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    data = &data[n..];
                    self.unflushed = true;
                }
                Poll::Ready(_) => return false,
                Poll::Pending => {
                    self.kept = data.to_vec();
                    return true;
                }
            }
        }
        true
    }

    fn finish(&mut self) -> Poll<io::Result<()>> {
        self.done = true;
        self.kept = Vec::new();
        Poll::Ready(Ok(()))
    }
}

impl Flow {
    fn add(&mut self, n: usize) {
        self.bytes += n as u64;
        if let Some(counter) = &self.counter {
            counter.add(n as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    type Outcome = (Ended, u64, u64);

    /// A relay between two pipes that hold this much; their far ends.
    fn between(room: usize, idle: Option<Duration>) -> (DuplexStream, DuplexStream, JoinHandle<Outcome>) {
        let ((client, mut near), (mut far, server)) = (duplex(room), duplex(room));
        let task = tokio::spawn(async move {
            let (mut into, mut out) = (Flow::default(), Flow::default());
            let ended = relay(&mut near, &mut far, idle, (&mut into, &mut out)).await;
            (ended, into.bytes, out.bytes)
        });
        (client, server, task)
    }

    #[tokio::test]
    async fn whoever_speaks_first_is_heard() {
        let (mut client, mut server, task) = between(64, None);
        server.write_all(b"220 ready").await.unwrap();
        let mut seen = [0; 9];
        client.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"220 ready");
        drop((client, server));
        assert_eq!(task.await.unwrap(), (Ended::Closed, 0, 9));
    }

    #[tokio::test]
    async fn an_end_is_passed_on_and_the_other_way_goes_on() {
        let (mut client, mut server, task) = between(64, None);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        server.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"question");
        server.write_all(b"a long answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"a long answer");
        assert_eq!(task.await.unwrap(), (Ended::Closed, 8, 13));
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything_in_order() {
        let (mut client, mut server, task) = between(7, None);
        let sent: Vec<u8> = (0..200_000u32).flat_map(u32::to_be_bytes).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&copy).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == sent, "{} of {}", got.len(), sent.len());
        drop((server, writer.await.unwrap()));
        assert_eq!(task.await.unwrap(), (Ended::Closed, 800_000, 0));
    }

    #[tokio::test]
    async fn standing_still_ends_it_and_moving_does_not() {
        let idle = Duration::from_millis(150);
        let (mut client, mut server, task) = between(64, Some(idle));
        for _ in 0..6 {
            tokio::time::sleep(idle / 3).await;
            client.write_all(b".").await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
        }
        assert!(!task.is_finished());
        assert_eq!(task.await.unwrap(), (Ended::Idle, 6, 0));
    }

    #[tokio::test]
    async fn a_reset_is_told_with_its_side() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(connect, listener.accept());
        let (client, mut near) = (client.unwrap(), accepted.unwrap().0);
        let (mut far, server) = duplex(64);
        client.set_zero_linger().unwrap();
        drop(client);
        let (mut into, mut out) = (Flow::default(), Flow::default());
        assert_eq!(relay(&mut near, &mut far, None, (&mut into, &mut out)).await, Ended::ClientBroke);
        drop(server);
    }
}
