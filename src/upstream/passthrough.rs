//! Calls to hosts that no route names (`unknownHosts: passthrough`): the authority itself says where to.
//!
//! In the clear, one try, on pooled connections. What names resolve to is remembered for a few seconds, per worker and
//! in bounded number.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::uri::Authority;
use onehop_filters::contract::mesh::{Address, Endpoint};
use onehop_filters::contract::{Conn, Fault, Moment, Reason, now, worker};
use parking_lot::Mutex;

use super::{Settings, Upstream};

/// Authorities remembered per worker; the one used longest ago makes room.
const KNOWN: usize = 1000;
/// How long an answer of the resolver holds.
const FRESH: Duration = Duration::from_secs(5);
/// For the resolver, and then for the connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Where an authority names no port.
const HTTP: u16 = 80;

/// The way to any host. Outlives configs.
pub struct Passthrough {
    upstream: Upstream,
    /// By worker, so contended by nobody.
    known: Box<[Mutex<HashMap<Box<str>, Known>>]>,
    /// Pools go by these: two names never share connections, and a name that moved leaves its old ones.
    next: AtomicU64,
}

struct Known {
    endpoint: Arc<Endpoint>,
    until: Moment,
    used: Moment,
}

impl Default for Passthrough {
    fn default() -> Self {
        let settings = Settings { connect_timeout: CONNECT, ..Settings::new("passthrough") };
        let known = (0..worker::shards()).map(|_| Mutex::default()).collect();
        Self { upstream: Upstream::new(settings), known, next: AtomicU64::new(0) }
    }
}

impl Passthrough {
    /// Connections.
    #[must_use]
    pub const fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Where a request of this connection to this authority goes.
    ///
    /// # Errors
    /// The name does not resolve, or to nothing that the caller may reach through us.
    pub async fn endpoint(&self, authority: &Authority, conn: &Conn) -> Result<Arc<Endpoint>, Fault> {
        if let Some((endpoint, address)) = self.recall(authority.as_str(), now()) {
            permit(address, conn)?;
            return Ok(endpoint);
        }
        let address = resolve(authority, conn).await?;
        Ok(self.remember(authority.as_str(), address, now()))
    }

    fn shard(&self) -> &Mutex<HashMap<Box<str>, Known>> {
        &self.known[worker::shard() % self.known.len()]
    }

    fn recall(&self, authority: &str, now: Moment) -> Option<(Arc<Endpoint>, SocketAddr)> {
        let mut known = self.shard().lock();
        let found = known.get_mut(authority).filter(|k| now < k.until)?;
        found.used = now;
        Some((found.endpoint.clone(), tcp(&found.endpoint)?))
    }

    fn remember(&self, authority: &str, address: SocketAddr, now: Moment) -> Arc<Endpoint> {
        let mut known = self.shard().lock();
        let until = now + FRESH;
        let mut gone = None;
        if let Some(same) = known.get_mut(authority) {
            if tcp(&same.endpoint) == Some(address) {
                (same.until, same.used) = (until, now);
                return same.endpoint.clone();
            }
            gone = Some(same.endpoint.id);
        } else if known.len() >= KNOWN {
            let oldest = known.iter().min_by_key(|(_, k)| k.used).map(|(name, _)| name.clone());
            gone = oldest.and_then(|name| known.remove(&name)).map(|k| k.endpoint.id);
        }
        let id = self.next.fetch_add(1, Relaxed);
        let endpoint = Arc::new(Endpoint::new(id, Address::Tcp(address), "".into(), 0, 1));
        known.insert(authority.into(), Known { endpoint: endpoint.clone(), until, used: now });
        drop(known);
        if let Some(id) = gone {
            self.upstream.forget(id);
        }
        endpoint
    }
}

const fn tcp(endpoint: &Endpoint) -> Option<SocketAddr> {
    match endpoint.address {
        Address::Tcp(address) => Some(address),
        Address::Unix(_) => None,
    }
}

/// The first address of a name that the caller may reach, of IPv4 if there is one: only one is tried. It is connected to
/// as it was judged: a name that resolves otherwise the next time gains nothing.
async fn resolve(authority: &Authority, conn: &Conn) -> Result<SocketAddr, Fault> {
    let host = authority.host().trim_matches(['[', ']']);
    let looked_up = tokio::net::lookup_host((host, authority.port_u16().unwrap_or(HTTP)));
    let unknown = |why: &'static str| Fault::never_ran(Reason::UnknownHost).detail(why).by("passthrough");
    let addresses = tokio::time::timeout(CONNECT, looked_up)
        .await
        .map_err(|_| unknown("the resolver does not answer"))?
        .map_err(|_| unknown("the name does not resolve"))?;
    let mut refused = unknown("the name has no address");
    let permitted = addresses.filter(|address| permit(*address, conn).map_err(|fault| refused = fault).is_ok());
    permitted.min_by_key(SocketAddr::is_ipv6).ok_or(refused)
}

/// What nobody reaches through us: the listener itself (a request that goes round would not end), link-local addresses,
/// where clouds keep credentials, and what is no host's address. Loopback is for callers on this host.
fn permit(address: SocketAddr, conn: &Conn) -> Result<(), Fault> {
    let forbidden = |why: &'static str| Err(Fault::never_ran(Reason::Forbidden).detail(why).by("passthrough"));
    let ip = address.ip().to_canonical();
    if address.port() == conn.local.port() && ip == conn.local.ip().to_canonical() {
        return Err(Fault::never_ran(Reason::LoopDetected).by("passthrough"));
    }
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if link_local || ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
        return forbidden("the address is not for callers of a proxy");
    }
    if ip.is_loopback() && !conn.peer.ip().to_canonical().is_loopback() {
        return forbidden("loopback is for callers on this host");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(peer: &str) -> Conn {
        Conn {
            id: 1,
            listener: "out".into(),
            peer: peer.parse().expect("an address"),
            local: "127.0.0.1:15001".parse().expect("an address"),
            client: peer.parse().expect("an address"),
            trusted: false,
            mesh: true,
            tls: None,
        }
    }

    #[test]
    fn what_may_be_reached() {
        let judge = |peer, to: &str| permit(to.parse().expect("an address"), &conn(peer)).err().map(|f| f.reason);
        let (here, there) = ("127.0.0.1:4000", "10.0.0.9:4000");
        for to in ["10.0.0.1:80", "93.184.216.34:8080", "[2001:db8::1]:80"] {
            assert_eq!((judge(here, to), judge(there, to)), (None, None), "{to}");
        }
        for to in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert_eq!((judge(here, to), judge(there, to)), (None, Some(Reason::Forbidden)), "{to}");
        }
        for to in [
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[fe80::1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "10.0.0.1:0",
        ] {
            assert_eq!(judge(here, to), Some(Reason::Forbidden), "{to}");
        }
        for to in ["127.0.0.1:15001", "[::ffff:127.0.0.1]:15001"] {
            assert_eq!(judge(here, to), Some(Reason::LoopDetected), "{to}");
        }
    }

    #[tokio::test]
    async fn addresses_need_no_resolver() {
        for (authority, to) in [("10.0.0.1", "10.0.0.1:80"), ("[2001:db8::1]:81", "[2001:db8::1]:81")] {
            let found = resolve(&authority.parse().expect("an authority"), &conn("127.0.0.1:1")).await;
            assert_eq!(found.expect("an address"), to.parse().expect("an address"));
        }
    }

    #[test]
    fn memory_is_bounded_and_follows_the_name() {
        let way = Passthrough::default();
        let at = |n: u16| SocketAddr::from(([10, 0, 0, 1], n));
        let first = way.remember("a", at(1), Moment(1));
        assert!(Arc::ptr_eq(&first, &way.recall("a", Moment(2)).expect("fresh").0));
        assert!(way.recall("a", Moment(1) + FRESH).is_none(), "asked anew");
        assert!(Arc::ptr_eq(&first, &way.remember("a", at(1), Moment(3))), "the same place, the same connections");
        let moved = way.remember("a", at(2), Moment(4));
        assert_ne!(first.id, moved.id);
        for n in 1..1000u16 {
            way.remember(&n.to_string(), at(n), Moment(10 + u64::from(n)));
        }
        assert!(way.recall("a", Moment(5000)).is_some());
        way.remember("one more", at(1), Moment(5001));
        assert_eq!(way.shard().lock().len(), KNOWN);
        assert!(way.recall("1", Moment(5002)).is_none(), "the one used longest ago");
        assert!(way.recall("a", Moment(5002)).is_some());
    }
}
