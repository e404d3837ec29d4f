//! `listeners.NAME`.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use onehop_filters::contract::networks::Networks;
use onehop_filters::contract::section::Value;
use onehop_filters::contract::{Node, Span, Spot};

use super::super::plan::{Bind, Capture, Clients, Limits, Listener, ListenerTls, Paths, ProxyProtocol, Tcp};
use super::super::raw;
use super::Lower;

/// Keys that do nothing on a listener that takes connections instead of requests.
const HTTP_ONLY: [&str; 4] = ["exposure", "unknownHosts", "paths", "via"];
/// Limits that act on one.
const TCP_LIMITS: [&str; 3] = ["connections", "connectionsPerClient", "tlsTimeout"];

impl Lower<'_> {
    pub(super) fn listener(&mut self, name: &str, span: Span, node: &Node) -> Option<Arc<Listener>> {
        let mut raw: raw::Listener = self.read(node)?;
        let passthrough = raw.tls.as_ref().is_some_and(|tls| tls.mode == Some(raw::ListenerTlsMode::Passthrough));
        if passthrough && node.get("protocols").is_none() {
            raw.protocols = vec![raw::Http::Tcp];
        }
        raw.settle();
        self.fill_at("listeners", name, &raw);
        let tcp = raw.protocols.contains(&raw::Http::Tcp);
        if tcp {
            self.without_requests(name, node, raw.protocols.len());
        } else if passthrough {
            let at = node.get("protocols").map_or(span, |n| n.span);
            self.error(at, "what is not decrypted cannot be read as HTTP", "write `protocols: [tcp]`");
        }
        if let Some(list) = node.get("protocols").filter(|n| n.value == Value::Seq(Vec::new())) {
            self.error(list.span, "the listener speaks no protocol", "write `[h1, h2]`, or one of them");
        }
        let tls = match &raw.tls {
            Some(_) if passthrough => {
                self.not_decrypted(name, node.get("tls"));
                None
            }
            Some(tls) => Some(self.listener_tls(tls, node.get("tls").unwrap_or(node))?),
            None => None,
        };
        let bind = self.bind(&raw.bind);
        let trusted: Vec<IpNet> = raw.trusted_proxies.iter().filter_map(|text| self.network(text)).collect();
        if raw.proxy_protocol != raw::ProxyProtocol::None && raw.trusted_proxies.is_empty() {
            let at = node.get("proxyProtocol").map_or(span, |n| n.span);
            self.error(
                at,
                "PROXY headers would be believed from nobody",
                "name the networks of the balancers in `trustedProxies`",
            );
        }
        if raw.capture == Some(raw::Capture::Inbound) && raw.unknown_hosts == Some(raw::UnknownHosts::Passthrough) {
            let at = node.get("unknownHosts").map_or(span, |n| n.span);
            self.error(at, "an inbound listener cannot pass unknown hosts through", "remove `unknownHosts`");
        }
        if raw.unknown_hosts == Some(raw::UnknownHosts::Passthrough) {
            let at = node.get("unknownHosts").map_or(span, |n| n.span);
            // Whoever reaches such a listener reaches whatever this host does.
            if matches!(&bind, Some(Bind::Tcp(address)) if !address.ip().is_loopback()) {
                let message = "a listener that passes unknown hosts through is open to every host that reaches it";
                self.error(at, message, "bind it to 127.0.0.1, or write `unknownHosts: deny`");
            }
            if raw.exposure == Some(raw::Exposure::Edge) {
                let message = "an edge listener cannot pass unknown hosts through";
                self.error(at, message, "write `exposure: mesh`, or `unknownHosts: deny`");
            }
        }
        Some(Arc::new(Listener {
            name: Arc::from(name),
            span,
            bind: bind?,
            h1: raw.protocols.contains(&raw::Http::H1),
            h2: raw.protocols.contains(&raw::Http::H2),
            tls,
            tcp: tcp.then_some(if passthrough { Tcp::Passthrough } else { Tcp::Bytes }),
            trusted: trusted.into(),
            proxy_protocol: match raw.proxy_protocol {
                raw::ProxyProtocol::None => ProxyProtocol::None,
                raw::ProxyProtocol::Optional => ProxyProtocol::Optional,
                raw::ProxyProtocol::Required => ProxyProtocol::Required,
            },
            mesh: raw.exposure == Some(raw::Exposure::Mesh),
            capture: raw.capture.map(|c| match c {
                raw::Capture::Inbound => Capture::Inbound,
                raw::Capture::Outbound => Capture::Outbound,
            }),
            passthrough: raw.unknown_hosts == Some(raw::UnknownHosts::Passthrough),
            clients: self.clients(raw.ip_rules.as_ref()),
            limits: self.limits(&raw.limits),
            paths: Paths {
                reject_escaped_slashes: raw.paths.escaped_slashes == Some(raw::Rule::Reject),
                reject_underscores: raw.paths.underscores == Some(raw::Rule::Reject),
            },
            via: raw.via,
            accept_balance: raw.accept_balance,
        }))
    }

    /// A TCP listener: keys about requests would do nothing.
    fn without_requests(&mut self, name: &str, node: &Node, protocols: usize) {
        if protocols > 1 {
            let at = node.get("protocols").map_or(node.span, |n| n.span);
            self.error(at, "`tcp` stands alone", "write `[tcp]`, and give HTTP a listener of its own");
        }
        let dead = |key: &str| HTTP_ONLY.contains(&key);
        let dead_limit = |key: &str| !TCP_LIMITS.contains(&key);
        let limits = node.get("limits").map(Node::entries).unwrap_or_default();
        let found = node.entries().iter().filter(|(k, _)| dead(&k.name));
        for (key, _) in found.chain(limits.iter().filter(|(k, _)| dead_limit(&k.name))) {
            let help = format!("remove `{}`", key.name);
            self.error(key.span, format!("`{}` is about requests, and this listener takes none", key.name), help);
        }
        let filled = self.filled.as_mut().and_then(|f| f.get_mut("listeners")?.get_mut(name)?.as_object_mut());
        if let Some(filled) = filled {
            filled.retain(|key, _| !dead(key));
            if let Some(limits) = filled.get_mut("limits").and_then(|l| l.as_object_mut()) {
                limits.retain(|key, _| !dead_limit(key));
            }
        }
    }

    /// `tls.mode: passthrough`: nothing else of `tls` would act. Its defaults are not shown either.
    fn not_decrypted(&mut self, name: &str, tls: Option<&Node>) {
        for (key, _) in tls.map(Node::entries).unwrap_or_default().iter().filter(|(k, _)| k.name != "mode") {
            let help = format!("remove `{}`, or remove `mode` to end TLS here", key.name);
            self.error(key.span, "TLS is passed through, not ended here", help);
        }
        let filled = self.filled.as_mut().and_then(|f| f.get_mut("listeners")?.get_mut(name)?.get_mut("tls"));
        if let Some(filled) = filled.and_then(|tls| tls.as_object_mut()) {
            filled.retain(|key, _| key == "mode");
        }
    }

    fn listener_tls(&mut self, tls: &Spot<raw::ListenerTls>, node: &Node) -> Option<ListenerTls> {
        let mesh = tls.mode.is_some();
        if mesh {
            self.must_have_workload(tls.span);
        }
        let none = node.get("certificates").is_none_or(|n| n.value == Value::Seq(Vec::new()));
        match (mesh, none) {
            (true, false) => {
                let at = node.get("certificates").map_or(tls.span, |n| n.span);
                let help = "remove `certificates`, or remove `mode`";
                self.error(at, "`mode: mesh` brings the workload's own certificate", help);
            }
            (false, true) => {
                let help = "add `certificates: [{ cert: FILE, key: FILE }]`, or `mode: mesh`";
                self.error(tls.span, "`tls` has no certificate", help);
            }
            _ => {}
        }
        if let (Some(auth), None) = (&tls.client_auth, &tls.client_ca) {
            let help = "add `clientCa: FILE`, the bundle that client certificates are checked against";
            self.error(auth.span, "`clientAuth` needs `clientCa`", help);
        }
        if mesh && tls.client_ca.is_some() {
            let at = node.get("clientCa").map_or(tls.span, |n| n.span);
            self.error(at, "`mode: mesh` checks clients against the workload's `ca`", "remove `clientCa`");
        }
        if let (Some(first), false, None) = (tls.crl.first(), mesh, &tls.client_ca) {
            let help = "add `clientCa: FILE`, the bundle that client certificates are checked against";
            self.error(first.span, "`crl` needs `clientCa`", help);
        }
        let path = |p: &std::path::Path| self.dir.join(p);
        Some(ListenerTls {
            mesh,
            certificates: tls.certificates.iter().map(|c| (path(&c.cert), path(&c.key))).collect(),
            only_13: tls.min_version == raw::TlsVersion::Tls13,
            client_ca: tls.client_ca.as_deref().map(path),
            crl: tls.crl.iter().map(|file| path(&file.value)).collect(),
            client_required: tls.client_auth.as_ref().is_none_or(|a| a.value == raw::ClientAuth::Required),
        })
    }

    fn clients(&mut self, raw: Option<&Spot<raw::Clients>>) -> Option<Arc<Clients>> {
        let raw = raw?;
        if raw.allow.is_none() && raw.deny.is_empty() {
            self.error(raw.span, "`ipRules` checks nothing", "name networks in `allow` or `deny`");
        }
        let allow = raw.allow.as_deref().map(Networks::read).transpose();
        let deny = Networks::read(&raw.deny);
        match (allow, deny) {
            (Ok(allow), Ok(deny)) => Some(Arc::new(Clients { allow, deny })),
            (allow, deny) => {
                self.errors.extend(allow.err());
                self.errors.extend(deny.err());
                None
            }
        }
    }

    fn network(&mut self, text: &Spot<String>) -> Option<IpNet> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        if net.is_err() {
            let help = "write an address and a prefix length, such as `10.0.0.0/8` or `fd00::/8`";
            self.error(text.span, format!("`{}` is not a network", text.value), help);
        }
        net.ok()
    }

    fn limits(&mut self, raw: &raw::Limits) -> Limits {
        Limits {
            head: self.bytes(&raw.head, 1 << 10, 1 << 20),
            uri: self.bytes(&raw.uri, 64, 1 << 16),
            fields: self.count(&raw.fields, 1000),
            body: Some(raw.body.unwrap_or_default().0).filter(|n| *n > 0),
            streams: self.count(&raw.streams, 1 << 16),
            connections: self.count(&raw.connections, 1 << 24),
            per_client: raw.connections_per_client.as_ref().map(|n| self.count(n, 1 << 24)),
            head_timeout: raw.head_timeout.0,
            body_idle_timeout: raw.body_idle_timeout.0,
            idle_timeout: raw.idle_timeout.0,
            tls_timeout: raw.tls_timeout.0,
            requests: raw.requests.as_ref().map(|n| self.count(n, u64::MAX)),
        }
    }

    fn bytes(&mut self, size: &Spot<onehop_filters::contract::units::Size>, low: u64, high: u64) -> usize {
        use onehop_filters::contract::units::Size;
        if !(low..=high).contains(&size.value.0) {
            let help = format!("from {} to {}", Size(low), Size(high));
            self.error(size.span, format!("{} is out of range", size.value), help);
        }
        usize::try_from(size.value.0).unwrap_or(usize::MAX)
    }

    /// A count from 1; zero would refuse everything and is never meant.
    pub(super) fn count<T: TryFrom<u64> + Default>(&mut self, n: &Spot<u64>, high: u64) -> T {
        if !(1..=high).contains(&n.value) {
            self.error(n.span, format!("{} is out of range", n.value), format!("from 1 to {high}"));
        }
        T::try_from(n.value).unwrap_or_default()
    }
}

/// Zero means no limit where a key says so.
pub(super) fn limit(d: Duration) -> Option<Duration> {
    Some(d).filter(|d| !d.is_zero())
}
