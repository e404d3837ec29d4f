use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, decided, request, section};
use crate::contract::{Directory, Verdict};

fn made(json: serde_json::Value) -> Result<Arc<dyn Filter>, ConfigError> {
    build(Some(&section(json)), &mut Estate::default().build("routes.orders", &Directory::default()))
}

fn passes(json: &serde_json::Value, ip: &str) -> bool {
    let filter = made(json.clone()).unwrap_or_else(|e| panic!("{json}: {e}"));
    let mut rq = request("GET", "/");
    rq.client_ip = ip.parse().expect("an address");
    match decided(filter.on_request(&mut rq)) {
        Verdict::Next => true,
        Verdict::Fail(fault) => {
            assert_eq!((fault.reason, fault.by), (Reason::Forbidden, NAME));
            false
        }
        Verdict::Reply(_) => panic!("never answers"),
    }
}

#[test]
fn deny_wins_and_families_are_kept_apart() {
    let both = json!({"allow": ["192.0.2.0/24", "2001:db8::/32"], "deny": ["192.0.2.128/25"]});
    let mapped = json!({"deny": ["::ffff:192.0.2.0/120", "::ffff:198.51.100.7"]});
    for (section, ip, passed) in [
        (&both, "192.0.2.1", true),
        (&both, "192.0.2.128", false),
        (&both, "192.0.3.1", false),
        (&both, "2001:db8:1::1", true),
        (&both, "2001:db9::1", false),
        (&both, "::ffff:192.0.2.1", true),
        (&both, "::ffff:192.0.2.200", false),
        (&mapped, "192.0.2.9", false),
        (&mapped, "198.51.100.7", false),
        (&mapped, "198.51.100.8", true),
        (&json!({"allow": []}), "192.0.2.1", false),
        (&json!({"allow": ["0.0.0.0/0"]}), "2001:db8::1", false),
        (&json!({"allow": ["::/0"]}), "192.0.2.1", false),
        (&json!({"allow": ["::/0"]}), "2001:db8::1", true),
        (&json!({"deny": ["192.0.2.1"]}), "192.0.2.2", true),
        (&json!({"deny": ["192.0.2.1"]}), "192.0.2.1", false),
        (&json!({"deny": ["192.0.2.1"], "audit": true}), "192.0.2.1", true),
    ] {
        assert_eq!(passes(section, ip), passed, "{section} {ip}");
    }
}

#[test]
fn bad_sections_name_their_cure() {
    for (bad, says) in [
        (json!({}), "checks nothing"),
        (json!({"deny": []}), "checks nothing"),
        (json!({"deny": ["10.0.0.0/33"]}), "not a network"),
        (json!({"deny": ["10.1.2.3/8"]}), "without host bits"),
        (json!({"allow": ["example.com"]}), "not a network"),
        (json!({"allows": []}), "did you mean `allow`"),
    ] {
        let e = made(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}

fn networks_4() -> impl Strategy<Value = Vec<IpNet>> {
    // Few bits, so that networks overlap and addresses hit.
    let one = (0u32..64, 26u8..=32)
        .prop_map(|(bits, prefix)| IpNet::V4(Ipv4Net::new(Ipv4Addr::from(bits), prefix).expect("a prefix").trunc()));
    proptest::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn ranges_hold_what_the_networks_hold(nets in networks_4(), ip in 0u32..80) {
        let ip = IpAddr::V4(Ipv4Addr::from(ip));
        prop_assert_eq!(Networks::new(nets.clone()).contains(ip), nets.iter().any(|n| n.contains(&ip)));
    }
    #[test]
    fn so_do_those_of_ipv6(list in proptest::collection::vec((0u128..64, 122u8..=128), 0..12), low in 0u128..80) {
        // Beside the mapped addresses.
        let base = 0x2001_0db8u128 << 96;
        let net = |(bits, prefix)| Ipv6Net::new(Ipv6Addr::from(base | bits), prefix).expect("a prefix").trunc();
        let nets: Vec<IpNet> = list.into_iter().map(net).map(IpNet::V6).collect();
        let ip = IpAddr::V6(Ipv6Addr::from(base | low));
        prop_assert_eq!(Networks::new(nets.clone()).contains(ip), nets.iter().any(|n| n.contains(&ip)));
    }
}
