//! An OpenAPI document as it is published: its servers are the caller's way in, and nothing in it leads elsewhere.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::place::Place;
use crate::api::openapi::server_path;
use crate::api::watched::{self, Compiled};
use crate::contract::mesh::stable_hash;

/// A document without its version and its servers, which are put in front of it for each caller.
pub struct Document {
    openapi: String,
    json: String,
    yaml: String,
    /// What stands before its paths in public.
    bases: Vec<String>,
    hash: u64,
    /// `info.title`.
    pub title: Option<String>,
    /// `info.version`.
    pub version: Option<String>,
}

impl Document {
    /// Reads a document for publication.
    ///
    /// # Errors
    /// A sentence.
    pub fn compile(file: &Path, place: &Place) -> Result<Compiled<Self>, String> {
        let wrong = |why: &str| format!("{}: {why}", file.display());
        let document = watched::document(file)?;
        let own = server_path(&document);
        let Value::Object(mut root) = document else { return Err(wrong("an OpenAPI document is an object")) };
        let openapi = match root.remove("openapi") {
            Some(Value::String(version)) if version.starts_with("3.") => version,
            _ => return Err(wrong("this is no OpenAPI 3 document: `openapi: 3.x.y` is missing")),
        };
        let bases = place.bases(&own).map_err(wrong)?;
        root.remove("servers");
        if let Some(paths) = root.get_mut("paths").and_then(Value::as_object_mut) {
            place.prune(paths, &bases);
        }
        for value in root.values_mut() {
            publish(value).map_err(|e| wrong(&e))?;
        }
        let info = |key: &str| root.get("info")?.get(key)?.as_str().map(str::to_owned);
        let (title, version) = (info("title"), info("version"));
        let root = Value::Object(root);
        let json = root.to_string();
        let yaml = serde_saphyr::to_string(&root).map_err(|e| wrong(&e.to_string()))?;
        let hash = stable_hash(&[openapi.as_bytes(), json.as_bytes()]);
        let made = Self { openapi, json, yaml, bases, hash, title, version };
        Ok(Compiled::new(made, vec![file.to_owned()]))
    }

    /// The document as JSON, for callers that reach the route at these origins.
    pub fn json(&self, origins: &[Origin]) -> String {
        let rest = &self.json[1..];
        let comma = if rest == "}" { "" } else { "," };
        format!(r#"{{"openapi":{},"servers":{}{comma}{rest}"#, json!(self.openapi), self.servers(origins))
    }

    /// The same as YAML.
    pub fn yaml(&self, origins: &[Origin]) -> String {
        let head = json!({ "openapi": self.openapi, "servers": self.servers(origins) });
        let head = serde_saphyr::to_string(&head).expect("texts and lists can be written");
        if self.json == "{}" { head } else { format!("{head}{}", self.yaml) }
    }

    /// What tells this version of it from another, in the given form and for these origins.
    pub fn tag(&self, form: &str, origins: &[Origin]) -> String {
        let servers = self.servers(origins).to_string();
        format!("\"{:016x}\"", stable_hash(&[&self.hash.to_le_bytes(), form.as_bytes(), servers.as_bytes()]))
    }

    fn servers(&self, origins: &[Origin]) -> Value {
        let servers = origins.iter().flat_map(|origin| self.bases.iter().map(|base| origin.server(base)));
        Value::Array(servers.collect())
    }
}

/// Scheme, host and port that callers write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub scheme: String,
    /// `*.a.com` leaves the first label open.
    pub host: String,
    pub port: Option<u16>,
}

impl Origin {
    /// As text; an open label is a parameter.
    pub fn text(&self) -> String {
        let host = self.host.strip_prefix('*').map_or_else(|| self.host.clone(), |rest| format!("{{subdomain}}{rest}"));
        let port = self.port.map_or_else(String::new, |port| format!(":{port}"));
        format!("{}://{host}{port}", self.scheme)
    }

    fn server(&self, base: &str) -> Value {
        let url = format!("{}{}", self.text(), if base.is_empty() { "/" } else { base });
        match self.host.starts_with('*') {
            true => json!({ "url": url, "variables": { "subdomain": { "default": "www" } } }),
            false => json!({ "url": url }),
        }
    }
}

/// Takes away the servers of single paths, operations and links, which are addresses behind the gateway, and refuses
/// references to other files, which nobody could follow.
fn publish(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(publish),
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get("$ref")
                && !target.starts_with('#')
            {
                return Err(format!("`$ref: {target}` leads out of the document: publish one that is whole"));
            }
            if members.get("servers").is_some_and(are_servers) {
                members.remove("servers");
            }
            if members.get("server").is_some_and(is_server) {
                members.remove("server");
            }
            examples_apart(members).try_for_each(publish)
        }
        _ => Ok(()),
    }
}

/// What lies below, but what is only shown as an example of a message.
fn examples_apart(members: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    let shown = |key: &str| matches!(key, "example" | "examples");
    members.iter_mut().filter(move |(key, _)| !shown(key)).map(|(_, value)| value)
}

/// Server Objects (OpenAPI 3.1 section 4.8.5), and not the schema of a property of that name.
fn are_servers(value: &Value) -> bool {
    value.as_array().is_some_and(|all| all.iter().all(is_server))
}

fn is_server(value: &Value) -> bool {
    value.get("url").is_some_and(Value::is_string)
}
