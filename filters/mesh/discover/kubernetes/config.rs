//! Keys of `discover.kubernetes`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::section::{ConfigError, Node, Spot};
use crate::mesh::discover::resolve::Family;

/// The section, for the schema: `namespace/service:port`, or a map. [`read`] tells them apart by itself, so that an
/// unknown key of the map is named and not only "no variant matched".
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "a schema only")]
pub enum Section {
    /// `service`, `service:port` or `namespace/service:port`.
    Short(String),
    /// With settings.
    Full(Full),
}

/// The section in full.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Full {
    /// Name of the Service.
    pub service: Spot<String>,
    /// Its namespace. Default: the one this process runs in, or that of the kubeconfig's context.
    pub namespace: Option<Spot<String>>,
    /// Name or number of the Service's port. Not needed if it has one.
    pub port: Option<Spot<Port>>,
    /// Which addresses to use of an endpoint that has several. Default `auto`: IPv4 if there is one, else IPv6.
    #[serde(default)]
    pub family: Family,
    /// Where the cluster is and who asks. Default: what Kubernetes tells a pod, else `KUBECONFIG`, else `~/.kube/config`.
    pub kubeconfig: Option<Spot<PathBuf>>,
    /// Context of the kubeconfig. Default: its current one.
    pub context: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a port's name or number")]
pub enum Port {
    /// As the Service has it.
    Number(u16),
    /// As the Service has it.
    Name(String),
}

/// Reads the section.
pub fn read(node: &Node) -> Result<Full, ConfigError> {
    let full = if node.entries().is_empty() {
        let text: Spot<String> = node.read()?;
        short(&text.value).map_err(|why| {
            ConfigError::at(text.span, why).help("write `namespace/service:port`, such as `shop/stock:grpc`")
        })?
    } else {
        node.read::<Full>()?
    };
    for name in [Some(&full.service), full.namespace.as_ref()].into_iter().flatten() {
        if !is_name(&name.value) {
            let why = format!("`{}` is not a name in Kubernetes", name.value);
            return Err(ConfigError::at(name.span, why).help("lower-case letters, digits and `-`"));
        }
    }
    match &full.port {
        Some(Spot { value: Port::Number(0), span }) => Err(ConfigError::at(*span, "nothing listens on port 0")),
        Some(Spot { value: Port::Name(name), span }) if !is_name(name) => {
            Err(ConfigError::at(*span, format!("`{name}` is not the name of a port")))
        }
        _ if full.context.is_some() && full.kubeconfig.is_none() => {
            Err(ConfigError::at(node.span, "`context` is one of a `kubeconfig`").help("name the file, too"))
        }
        _ => Ok(full),
    }
}

fn short(text: &str) -> Result<Full, String> {
    let span = crate::contract::Span::default();
    let spot = |value: &str| Spot { span, value: value.to_owned() };
    let (namespace, rest) = match text.split_once('/') {
        Some((namespace, rest)) => (Some(namespace), rest),
        None => (None, text),
    };
    let (service, port) = match rest.split_once(':') {
        Some((service, port)) => (service, Some(port)),
        None => (rest, None),
    };
    if let Some(bad) = [namespace, Some(service)].into_iter().flatten().find(|name| !is_name(name)) {
        return Err(format!("`{bad}` is not a name in Kubernetes"));
    }
    let port = match port.map(|port| (port, port.parse())) {
        None => None,
        Some((_, Ok(number @ 1..))) => Some(Port::Number(number)),
        Some((name, Err(_))) if is_name(name) && name.bytes().any(|b| b.is_ascii_alphabetic()) => {
            Some(Port::Name(name.to_owned()))
        }
        Some((other, _)) => return Err(format!("`{other}` is neither the name nor the number of a port")),
    };
    Ok(Full {
        service: spot(service),
        namespace: namespace.map(spot),
        port: port.map(|value| Spot { span, value }),
        family: Family::default(),
        kubeconfig: None,
        context: None,
    })
}

/// A DNS label (RFC 1123), which is what Services, namespaces and ports are called.
fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}
