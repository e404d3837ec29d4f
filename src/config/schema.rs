//! One JSON Schema (2020-12) for editors: the engine's sections with the keys of every entry put in.

use onehop_filters::contract::{Entry, Role};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::raw;

/// The schema of a whole config file.
#[must_use]
pub fn schema(entries: &[Entry]) -> Value {
    let mut g = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let mut by_role = ByRole::default();
    for entry in entries {
        by_role.add(entry, &mut g);
    }
    let named = |schema: Value| json!({ "type": "object", "additionalProperties": schema });
    let own = |g: &mut SchemaGenerator, keys: &Map<String, Value>, schema: Value| {
        // A section of ours with keys of filters: inlined, so that it stays closed.
        let mut schema = inlined(schema, g);
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.extend(keys.clone());
        }
        schema
    };
    let route = section::<raw::Route>(&mut g);
    let route = own(&mut g, &by_role.route, route);
    let plan = json!({ "type": "object", "properties": { "priority": section::<raw::Priority>(&mut g) },
        "additionalProperties": false, "description": "What a consumer bought." });
    let plan = own(&mut g, &by_role.plan, plan);
    let consumer = section::<raw::Consumer>(&mut g);
    let consumer = own(&mut g, &by_role.consumer, consumer);
    let mut service = section::<raw::Service>(&mut g);
    by_role.service.insert("discover".to_owned(), one_of("How endpoints are found.", &by_role.discover));
    by_role.service.insert("loadBalancer".to_owned(), balancer(&by_role.balance));
    service = own(&mut g, &by_role.service, service);
    if let Some(s) = service.as_object_mut() {
        s.insert("required".to_owned(), json!(["discover"]));
    }
    let properties = json!({
        "version": { "const": 1, "description": "Version of the configuration language." },
        "admin": section::<raw::Admin>(&mut g),
        "listeners": named(section::<raw::Listener>(&mut g)),
        "identities": named(one_of("A kind of credential.", &by_role.identity)),
        "plans": named(plan),
        "consumers": named(consumer),
        "routes": { "type": "array", "items": route },
        "services": named(service),
        "workload": section::<raw::Workload>(&mut g),
        "telemetry": section::<raw::Telemetry>(&mut g),
        "state": section::<onehop_filters::contract::state::State>(&mut g),
        "lifecycle": section::<raw::Lifecycle>(&mut g),
        "runtime": section::<raw::Runtime>(&mut g),
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onehop configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "$defs": Value::Object(g.take_definitions(true)),
    })
}

/// What the schema of one entry's section says, with the definitions it refers to.
pub(super) fn of_entry(entry: &Entry) -> (Value, Map<String, Value>) {
    let mut g = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let schema = (entry.schema)(&mut g).to_value();
    (schema, g.take_definitions(true))
}

#[derive(Default)]
struct ByRole {
    route: Map<String, Value>,
    plan: Map<String, Value>,
    identity: Map<String, Value>,
    consumer: Map<String, Value>,
    discover: Map<String, Value>,
    balance: Map<String, Value>,
    service: Map<String, Value>,
}

impl ByRole {
    fn add(&mut self, entry: &Entry, g: &mut SchemaGenerator) {
        let schema = (entry.schema)(g).to_value();
        // `allOf` leaves a `$ref` as it is and still gives the key its own words.
        let described = json!({ "description": entry.summary, "allOf": [schema] });
        let map = match entry.role {
            Role::Api { .. } => {
                self.plan.insert(entry.name.to_owned(), described.clone());
                &mut self.route
            }
            Role::Answer(_) | Role::Note(_) => &mut self.route,
            Role::Identity(_) => &mut self.identity,
            Role::Credential(_) => &mut self.consumer,
            Role::Discover(_) => &mut self.discover,
            Role::Balance(_) => &mut self.balance,
            Role::Gate(_) | Role::Retry(_) | Role::Affinity(_) | Role::Check(_) => &mut self.service,
        };
        map.insert(entry.name.to_owned(), described);
    }
}

fn section<T: JsonSchema>(g: &mut SchemaGenerator) -> Value {
    g.subschema_for::<T>().to_value()
}

/// The definition a `$ref` points to, or the schema itself.
fn inlined(schema: Value, g: &SchemaGenerator) -> Value {
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next());
    name.and_then(|n| g.definitions().get(n)).cloned().unwrap_or(schema)
}

/// A map with exactly one of these keys.
fn one_of(what: &str, kinds: &Map<String, Value>) -> Value {
    json!({ "description": what, "type": "object", "properties": kinds, "additionalProperties": false,
        "minProperties": 1, "maxProperties": 1 })
}

/// The section of each policy, with `policy` put in where the policy does not list it itself.
fn balancer(policies: &Map<String, Value>) -> Value {
    let names: Vec<&str> = policies.keys().map(String::as_str).collect();
    let all: Vec<Value> = policies
        .iter()
        .map(|(name, schema)| json!({ "if": { "properties": { "policy": { "const": name } } }, "then": schema }))
        .collect();
    let mut schema = json!({
        "description": "Which endpoint a try goes to.",
        "type": "object",
        "properties": { "policy": { "enum": names, "default": super::lower::POLICY } },
    });
    if !all.is_empty()
        && let Some(s) = schema.as_object_mut()
    {
        s.insert("allOf".to_owned(), Value::Array(all));
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_is_closed_and_every_key_is_there() {
        let schema = schema(&[]);
        let root: Vec<&String> = schema["properties"].as_object().expect("properties").keys().collect();
        let sections: Vec<&str> = super::super::load::SECTIONS.iter().map(|(n, _)| *n).collect();
        assert_eq!(root, sections);
        assert_eq!(schema["additionalProperties"], false);
        for (name, definition) in schema["$defs"].as_object().expect("definitions") {
            if definition.get("properties").is_some() && definition["type"] == "object" {
                assert_eq!(definition["additionalProperties"], false, "{name}");
            }
        }
        let route = &schema["properties"]["routes"]["items"];
        assert_eq!(route["additionalProperties"], false);
        for key in ["name", "hosts", "matches", "timeouts", "upgrades", "bodyLimit", "to", "redirect", "respond"] {
            assert!(route["properties"].get(key).is_some(), "{key}");
        }
        let service = &schema["properties"]["services"]["additionalProperties"];
        assert_eq!(service["additionalProperties"], false);
        for key in ["discover", "protocol", "loadBalancer", "tls", "connectTimeout", "fallback", "idleTimeout"] {
            assert!(service["properties"].get(key).is_some(), "{key}");
        }
    }
}
