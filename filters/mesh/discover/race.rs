//! Happy Eyeballs (RFC 8305) for names that have addresses of both families: which of them works from here is found out
//! once for all connections, on the control thread, so that no request ever waits for a family that does not.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::net::TcpStream;

use crate::contract::Moment;

/// Time between two attempts (RFC 8305 section 5, its recommended value).
const STAGGER: Duration = Duration::from_millis(250);
/// How long an attempt may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Attempts of one race, half of them to each family.
const ATTEMPTS: usize = 6;
/// How long a result is good while the addresses stay the same (RFC 6555 section 4.2 had this value).
const GOOD: Duration = Duration::from_secs(600);

/// Results of the names of one source.
#[derive(Default)]
pub struct Races(HashMap<(Box<str>, u16), Result>);

struct Result {
    /// Sorted.
    set: Vec<IpAddr>,
    v6: bool,
    at: Moment,
}

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    /// Whether IPv6 won.
    Winner(bool),
    /// A race is due; who won the last one.
    Nothing(Option<bool>),
}

impl Races {
    /// What is known of a name with these addresses, sorted.
    pub fn known(&self, name: &str, port: u16, set: &[IpAddr], now: Moment) -> Known {
        match self.0.get(&(name.into(), port)) {
            Some(result) if result.set == set && now.since(result.at) < GOOD => Known::Winner(result.v6),
            other => Known::Nothing(other.map(|result| result.v6)),
        }
    }

    /// A race was won.
    pub fn won(&mut self, name: &str, port: u16, set: Vec<IpAddr>, v6: bool, now: Moment) {
        self.0.insert((name.into(), port), Result { set, v6, at: now });
    }
}

/// Connects to one address after the other; whether an IPv6 address was the first to answer. `None`: nobody did.
pub async fn run(list: &[IpAddr], port: u16) -> Option<bool> {
    between(order(list), STAGGER, |ip| async move {
        matches!(tokio::time::timeout(PATIENCE, TcpStream::connect(SocketAddr::new(ip, port))).await, Ok(Ok(_)))
    })
    .await
}

/// Both families in turn, IPv6 first.
fn order(list: &[IpAddr]) -> Vec<IpAddr> {
    let (mut v6, mut v4) = (list.iter().filter(|ip| ip.is_ipv6()), list.iter().filter(|ip| ip.is_ipv4()));
    let pairs = (0..ATTEMPTS / 2).flat_map(|_| [v6.next(), v4.next()]);
    pairs.flatten().copied().collect()
}

/// Each attempt begins `stagger` after the one before, or at once when one failed.
async fn between<F: Future<Output = bool>>(
    list: Vec<IpAddr>,
    stagger: Duration,
    attempt: impl Fn(IpAddr) -> F,
) -> Option<bool> {
    let mut waiting = list.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        let next = waiting.next();
        if let Some(ip) = next {
            let attempt = attempt(ip);
            running.push(async move { attempt.await.then_some(ip.is_ipv6()) });
        }
        let pause = async {
            match next {
                Some(_) => tokio::time::sleep(stagger).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = running.next() => match ended {
                Some(Some(v6)) => return Some(v6),
                None if next.is_none() => return None,
                // The next one's turn.
                Some(None) | None => {}
            },
            () = pause => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().expect("an address")).collect()
    }

    #[test]
    fn families_take_turns() {
        let list = ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1"]);
        assert_eq!(order(&list), ips(&["fd00::1", "10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    }

    /// Runs a race in which a family answers yes or no, or (`None`) never.
    async fn raced(stagger: u64, v6: Option<bool>, v4: Option<bool>) -> Option<bool> {
        between(ips(&["fd00::1", "10.0.0.1"]), Duration::from_millis(stagger), |ip| async move {
            match if ip.is_ipv6() { v6 } else { v4 } {
                Some(outcome) => outcome,
                None => std::future::pending().await,
            }
        })
        .await
    }

    #[tokio::test]
    async fn the_first_to_answer_wins() {
        let never = 3_600_000;
        assert_eq!(raced(never, Some(true), Some(true)).await, Some(true), "IPv6 has a head start");
        assert_eq!(raced(10, None, Some(true)).await, Some(false), "which ends");
        assert_eq!(raced(never, Some(false), Some(true)).await, Some(false), "and at once with a refusal");
        assert_eq!(raced(10, Some(true), None).await, Some(true));
        assert_eq!(raced(10, Some(false), Some(false)).await, None);
    }

    #[test]
    fn a_result_is_good_for_a_while_and_for_these_addresses() {
        let mut races = Races::default();
        let (one, two) = (ips(&["10.0.0.1", "fd00::1"]), ips(&["10.0.0.2", "fd00::1"]));
        assert_eq!(races.known("a", 1, &one, Moment(5)), Known::Nothing(None));
        races.won("a", 1, one.clone(), true, Moment(5));
        assert_eq!(races.known("a", 1, &one, Moment(6)), Known::Winner(true));
        assert_eq!(races.known("a", 2, &one, Moment(6)), Known::Nothing(None), "another port is another question");
        assert_eq!(races.known("a", 1, &two, Moment(6)), Known::Nothing(Some(true)));
        assert_eq!(races.known("a", 1, &one, Moment(5) + GOOD), Known::Nothing(Some(true)));
    }

    #[tokio::test]
    async fn a_family_where_nobody_listens_loses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        assert_eq!(run(&ips(&["127.0.0.1", "::1"]), port).await, Some(false));
        drop(listener);
        assert_eq!(run(&ips(&["127.0.0.1"]), port).await, None);
    }
}
