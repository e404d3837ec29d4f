//! How many connections each client holds on a listener that limits them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// The clients of one listener that hold connections. Outlives settings, so that a reload forgets nobody.
#[derive(Default)]
pub(super) struct Clients {
    /// Contended by the workers of a listener that limits its clients, once when a connection begins and once when it ends.
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's place among those of its client.
pub(super) struct Place {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    /// A place, unless the client holds `limit` of them.
    pub(super) fn enter(self: &Arc<Self>, ip: IpAddr, limit: usize) -> Option<Place> {
        let client = client(ip);
        let mut held = self.held.lock();
        let count = held.entry(client).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place { clients: self.clone(), client })
    }

    #[cfg(test)]
    fn known(&self) -> usize {
        self.held.lock().len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.clients.held.lock();
        if let Some(count) = held.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.client);
            }
        }
    }
}

/// Who an address stands for. Of IPv6 whoever has one address has its whole network (RFC 6177, RFC 4291 section 2.5.1).
fn client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_client_has_its_own_places_and_gives_them_back() {
        let clients = Arc::new(Clients::default());
        let one = clients.enter(ip("192.0.2.1"), 2).expect("the first");
        let two = clients.enter(ip("::ffff:192.0.2.1"), 2).expect("the second, of the same client");
        assert!(clients.enter(ip("192.0.2.1"), 2).is_none());
        assert!(clients.enter(ip("192.0.2.1"), 3).is_some(), "the limit is that of now");
        assert!(clients.enter(ip("192.0.2.2"), 2).is_some(), "another client");
        drop(one);
        assert!(clients.enter(ip("192.0.2.1"), 2).is_some());
        drop(two);
        assert_eq!(clients.known(), 0, "nobody is remembered for nothing");
    }

    #[test]
    fn a_network_of_version_6_is_one_client() {
        let clients = Arc::new(Clients::default());
        let _held = clients.enter(ip("2001:db8:1:2::1"), 1).expect("the first");
        assert!(clients.enter(ip("2001:db8:1:2:ffff::9"), 1).is_none());
        assert!(clients.enter(ip("2001:db8:1:3::1"), 1).is_some());
    }
}
