//! `services.NAME`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use onehop_filters::contract::section::{Value, suggest};
use onehop_filters::contract::{Node, Span, Spot};

use super::super::plan::{Connections, Fallback, Protocol, SendProxy, Service, UpstreamTls};
use super::super::raw;
use super::listener::limit;
use super::section::{keys, without};
use super::{Lower, Slot};

/// Keys of a service that name entries rather than hold engine settings.
const BY_ENTRY: [&str; 2] = ["discover", "loadBalancer"];
/// The policy of a service that names none.
pub const POLICY: &str = "peak-ewma";

impl Lower<'_> {
    pub(super) fn service(&mut self, name: &str, span: Span, node: &Node) -> Option<Service> {
        let mut engine = keys::<raw::Service>();
        engine.extend(BY_ENTRY.map(str::to_owned));
        let filters = self.names(Slot::Service);
        let (own, others) = self.split(node, &engine, &filters)?;
        let discover = match own.get("discover") {
            Some(discover) => self.kind(discover, Slot::Discover, "`discover`"),
            None => {
                let help = format!("add `discover`, with one of: {}", self.names(Slot::Discover).join(", "));
                self.error(span, format!("service `{name}` has no endpoints"), help);
                None
            }
        };
        let balance = self.balance(own.get("loadBalancer"));
        let rest = BY_ENTRY.iter().fold(own.clone(), |node, key| without(&node, key));
        let raw: raw::Service = self.read(&rest)?;
        self.fill_at("services", name, &raw);
        if let (Some(filled), Some((policy, _))) = (&mut self.filled, &balance) {
            filled["services"][name]["loadBalancer"] = serde_json::json!({ "policy": policy });
        }
        if raw.connect_timeout.value.0.is_zero() {
            self.error(raw.connect_timeout.span, "a connect timeout of 0 never connects", "write it such as `1s`");
        }
        let connections = self.connections(&raw.connections);
        if let Some(subsets) = rest.get("subsets") {
            self.labels_are_asked_for(subsets);
        }
        let tls = raw.tls.as_ref().map(|tls| self.service_tls(tls, rest.get("tls").unwrap_or(&rest)));
        let fallback = match &raw.fallback {
            Some(raw::Fallback::Respond(respond)) => Some(Fallback::Respond(Arc::new(self.canned(respond)?))),
            Some(raw::Fallback::Service(service)) => {
                self.must_know_service(&service.value, service.span);
                Some(Fallback::Service(service.value.clone()))
            }
            None => None,
        };
        Some(Service {
            name: Arc::from(name),
            span,
            discover: discover?,
            protocol: match raw.protocol {
                raw::Protocol::Auto => Protocol::Auto,
                raw::Protocol::H1 => Protocol::H1,
                raw::Protocol::H2 | raw::Protocol::Grpc => Protocol::H2,
            },
            balance: balance?,
            roles: others.into_iter().map(|(k, n)| (k.name, n)).collect(),
            tls,
            connect_timeout: raw.connect_timeout.value.0,
            fallback,
            pool_idle: raw.idle_timeout.0,
            subsets: raw.subsets,
            proxy_protocol: raw.proxy_protocol.map(|version| match version {
                raw::SendProxy::V1 => SendProxy::V1,
                raw::SendProxy::V2 => SendProxy::V2,
            }),
            connections,
        })
    }

    fn connections(&mut self, raw: &raw::Connections) -> Connections {
        if let Some(age) = raw.max_age.as_ref().filter(|age| age.value.0 < Duration::from_secs(1)) {
            self.error(age.span, "connections this young are hardly opened", "write `1s` or more, such as `10m`");
        }
        if raw.h2.ping_timeout.value.0.is_zero() {
            let help = "write it such as `20s`; `pingInterval: 0s` pings never";
            self.error(raw.h2.ping_timeout.span, "no ping is answered within 0s", help);
        }
        Connections {
            max_requests: raw.max_requests.as_ref().map_or(u64::MAX, |n| self.count(n, u64::MAX)),
            max_age: raw.max_age.as_ref().map(|age| age.value.0),
            h2_max: self.count(&raw.h2.max_per_endpoint, 1000),
            h2_streams: self.count(&raw.h2.max_streams, 1 << 16),
            ping: limit(raw.h2.ping_interval.0),
            pong: raw.h2.ping_timeout.value.0,
            ping_idle: raw.h2.ping_idle,
        }
    }

    fn labels_are_asked_for(&mut self, subsets: &Node) {
        for (name, labels) in subsets.entries() {
            if labels.value == Value::Map(Vec::new()) {
                let help = "name one, such as `{ version: v2 }`; all endpoints are the service itself";
                self.error(labels.span, format!("subset `{}` asks for no label", name.name), help);
            }
        }
    }

    fn balance(&mut self, node: Option<&Node>) -> Option<(String, Option<Node>)> {
        let Some(node) = node.filter(|n| n.value != Value::Null) else { return Some((POLICY.to_owned(), None)) };
        let Value::Map(_) = node.value else {
            self.error(node.span, "`loadBalancer` is a map", format!("write `loadBalancer: {{ policy: {POLICY} }}`"));
            return None;
        };
        let Some(policy) = node.get("policy") else { return Some((POLICY.to_owned(), Some(node.clone()))) };
        let names = self.names(Slot::Balance);
        match &policy.value {
            // With nothing but a policy there is no more to read than without the section.
            Value::Str(name) if names.contains(&name.as_str()) => {
                Some((name.clone(), Some(node.clone()).filter(|n| n.entries().len() > 1)))
            }
            Value::Str(name) => {
                self.error(policy.span, format!("unknown policy `{name}`"), suggest(name, &names));
                None
            }
            _ => {
                self.error(policy.span, "a policy is a name", format!("known here: {}", names.join(", ")));
                None
            }
        }
    }

    fn service_tls(&mut self, tls: &Spot<raw::ServiceTls>, node: &Node) -> UpstreamTls {
        let mesh = tls.mode.is_some();
        if mesh {
            self.must_have_workload(tls.span);
        }
        let own = tls.ca.is_some() || tls.cert.is_some() || tls.key.is_some();
        if mesh && own {
            let help = "remove `ca`, `cert` and `key`, or remove `mode`";
            self.error(tls.span, "`mode: mesh` brings the workload's certificate and CA", help);
        }
        match (&tls.cert, &tls.key) {
            (Some(_), None) => self.error(tls.span, "`cert` needs `key`", "add `key: FILE`"),
            (None, Some(_)) => self.error(tls.span, "`key` needs `cert`", "add `cert: FILE`"),
            _ => {}
        }
        if let Some(sni) = &tls.sni
            && rustls_pki_types::ServerName::try_from(sni.as_str()).is_err()
        {
            self.error(sni.span, format!("`{}` is not a server name", sni.value), "write a host name or an address");
        }
        if let Some([]) = tls.allow.as_deref() {
            let at = node.get("allow").map_or(tls.span, |n| n.span);
            self.error(at, "an empty `allow` would trust nobody", "name whom to trust, or remove the key");
        }
        for name in tls.allow.iter().flatten() {
            if name.contains('*') {
                let help = "names are compared exactly; list each of them";
                self.error(name.span, "`allow` takes no wildcards", help);
            } else if name.is_empty() {
                self.error(name.span, "an empty name is carried by nobody", "write a URI or DNS name");
            }
        }
        if tls.insecure_skip_verify {
            let at = node.get("insecureSkipVerify").map_or(tls.span, |n| n.span);
            if tls.allow.is_some() || mesh {
                let help = "remove `insecureSkipVerify`";
                self.error(at, "a peer that is not verified cannot be checked for its name", help);
            } else {
                self.warn(at, "the endpoints are not verified", "give the CA with `ca: FILE` instead");
            }
        }
        let path = |p: &Path| self.dir.join(p);
        UpstreamTls {
            mesh,
            ca: tls.ca.as_deref().map(path),
            sni: tls.sni.as_ref().map(|s| s.value.clone()),
            cert: tls.cert.as_deref().map(path).zip(tls.key.as_deref().map(path)),
            allow: tls.allow.iter().flatten().map(|s| s.value.clone()).collect(),
            insecure: tls.insecure_skip_verify,
        }
    }
}
