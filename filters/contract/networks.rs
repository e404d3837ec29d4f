//! Sets of addresses: sorted ranges, found by bisection, so that a long list costs no more than a short one.

use std::net::IpAddr;

use ipnet::IpNet;

use super::section::{ConfigError, Spot};

/// A set of networks of both families. An IPv4 address written as IPv6 (`::ffff:a.b.c.d`) is the IPv4 address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Networks {
    /// Of a list as a config has it.
    ///
    /// # Errors
    /// An item is neither an address nor a network.
    pub fn read(list: &[Spot<String>]) -> Result<Self, ConfigError> {
        let one = |text: &Spot<String>| {
            network(&text.value).ok_or_else(|| {
                ConfigError::at(text.span, format!("`{}` is not a network", text.value))
                    .help("write an address, or a network without host bits, such as `10.0.0.0/8` or `2001:db8::/32`")
            })
        };
        Ok(Self::new(list.iter().map(one).collect::<Result<Vec<_>, _>>()?))
    }

    /// Of networks, in any order.
    pub fn new(list: impl IntoIterator<Item = IpNet>) -> Self {
        let mut set = Self::default();
        for net in list {
            // The last address of an IPv6 network is its "broadcast", too.
            match (net.network(), net.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => set.v4.push((first.into(), last.into())),
                (IpAddr::V6(first), IpAddr::V6(last)) => match (first.to_ipv4_mapped(), last.to_ipv4_mapped()) {
                    (Some(first), Some(last)) => set.v4.push((first.into(), last.into())),
                    _ => set.v6.push((first.into(), last.into())),
                },
                // A network's ends are of one family.
                _ => {}
            }
        }
        merge(&mut set.v4);
        merge(&mut set.v6);
        set
    }

    /// Whether an address is in one of them.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => within(&self.v4, ip.into()),
            IpAddr::V6(ip) => within(&self.v6, ip.into()),
        }
    }
}

/// Sorts ranges and joins those that overlap.
fn merge<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges.drain(..) {
        match merged.last_mut() {
            Some(open) if first <= open.1 => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    *ranges = merged;
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], ip: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= ip);
    after.checked_sub(1).is_some_and(|at| ip <= ranges[at].1)
}

/// A network, or one address.
fn network(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    // `10.1.2.3/8` may mean a host or a network: nobody should have to guess.
    (net.addr() == net.network()).then_some(net)
}
