//! Entries that have names, places and schemas and build nothing: what reading a configuration needs of a filter.

use onehop_filters::contract::section::ConfigError;
use onehop_filters::contract::units::Secret;
use onehop_filters::contract::{Entry, Phase, Role};
use schemars::{Schema, SchemaGenerator, json_schema};

fn any(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["object", "array", "string"] })
}

fn retry(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "attempts": { "type": "integer", "default": 1 },
            "backoff": { "type": "string", "default": "25ms" },
            "perTryTimeout": { "anyOf": [{ "type": "string" }, { "type": "null" }], "default": null },
            "budget": { "type": "object", "properties": {
                "percent": { "type": "string", "default": "20%" },
                "minPerSecond": { "type": "integer", "default": 10 },
            } },
        },
        "additionalProperties": false,
    })
}

fn oidc(g: &mut SchemaGenerator) -> Schema {
    let secret = g.subschema_for::<Secret>();
    json_schema!({ "type": "object", "properties": { "issuer": { "type": "string" }, "hush": secret } })
}

fn refused<T>() -> Result<T, ConfigError> {
    Err(ConfigError { span: None, message: "nothing is built here".to_owned(), help: None })
}

const fn entry(name: &'static str, schema: fn(&mut SchemaGenerator) -> Schema, role: Role) -> Entry {
    Entry { name, summary: "one line", readme: "", example: "", schema, role }
}

const fn api(name: &'static str, phase: Phase) -> Entry {
    entry(name, any, Role::Api { phase, implied: |_, _| false, build: |_, _| refused() })
}

const fn identity(name: &'static str, schema: fn(&mut SchemaGenerator) -> Schema) -> Entry {
    entry(name, schema, Role::Identity(|_, _| refused()))
}

const fn discover(name: &'static str) -> Entry {
    entry(name, any, Role::Discover(|_, _| refused()))
}

const fn policy(name: &'static str) -> Entry {
    entry(name, any, Role::Balance(|_, _| refused()))
}

const fn gate(name: &'static str) -> Entry {
    entry(name, any, Role::Gate(|_, _| refused()))
}

pub const ENTRIES: &[Entry] = &[
    api("cors", Phase::Cors),
    api("auth", Phase::Auth),
    api("quota", Phase::Quota),
    api("transform", Phase::Transform),
    identity("jwt", any),
    identity("apiKey", any),
    identity("oidc", oidc),
    onehop_filters::api::api_key::KEYS,
    discover("static"),
    discover("dns"),
    discover("srv"),
    discover("file"),
    policy("round-robin"),
    policy("random"),
    policy("least-request"),
    policy("peak-ewma"),
    policy("ring-hash"),
    policy("maglev"),
    gate("circuitBreaker"),
    gate("outlierDetection"),
    entry("retry", retry, Role::Retry(|_, _| refused())),
    entry("healthCheck", any, Role::Check(|_, _| refused())),
];
