//! `describe`: what a catalogue says of a route.

use std::sync::Arc;

use super::config::Describe;
use super::document::{Document, Origin};
use super::place::{Place, Rewrite};
use crate::api::watched::Watched;
use crate::contract::section::Value;
use crate::contract::{Build, ConfigError, Entry, Expr, Node, RequestCx, Role, Shown, Spot, Surface};

/// Its key.
pub const NAME: &str = "describe";

/// See the module.
pub const ENTRY: Entry = Entry {
    name: NAME,
    summary: "Lists the route in catalogues: title, owner, OpenAPI document",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Describe>(),
    role: Role::Note(judge),
};

/// Mistakes are told whether or not a catalogue lists the route.
fn judge(node: &Node, build: &mut Build<'_>) -> Result<(), ConfigError> {
    let surface = build.surface().expect("a route with a note has a surface").clone();
    if !build.directory.surfaces.iter().any(|other| other.section(super::NAME).is_some()) {
        return Err(ConfigError::at(node.span, "nothing lists this route: there is no catalogue")
            .help("add a route with `catalogue: {}`, or remove `describe`"));
    }
    Described::read(node, &surface, build).map(drop)
}

/// A route that a catalogue may list.
pub struct Described {
    pub name: Arc<str>,
    pub title: Option<String>,
    pub description: Option<String>,
    pub owner: Option<String>,
    pub matches: Vec<Shown>,
    pub document: Option<Arc<Watched<Document>>>,
    surface: Surface,
    allow: Option<Expr>,
}

impl Described {
    /// Reads the note of a route.
    ///
    /// # Errors
    /// The first mistake.
    pub fn read(node: &Node, surface: &Surface, build: &mut Build<'_>) -> Result<Self, ConfigError> {
        let config: Describe = node.read()?;
        let document = match &config.openapi {
            Some(file) => {
                let place = place(config.base_path.as_ref(), surface)?;
                let path = build.path(&file.value);
                let compile = move || Document::compile(&path, &place);
                let first = compile().map_err(|e| ConfigError::at(file.span, e))?;
                // Under the described route's name, whoever lists it: read and followed once.
                let scope = std::mem::replace(&mut build.scope, format!("routes.{}", surface.name));
                let shape = format!("{:?} {:?}", node.to_json(), surface.matches);
                let document = Watched::keep(build, NAME, &shape, first, Box::new(compile));
                build.scope = scope;
                Some(document)
            }
            None => {
                if let Some(base) = &config.base_path {
                    return Err(
                        ConfigError::at(base.span, "`basePath` belongs to `openapi`").help("add `openapi: FILE`")
                    );
                }
                None
            }
        };
        Ok(Self {
            name: surface.name.clone(),
            title: config.title,
            description: config.description,
            owner: config.owner,
            matches: surface.matches.clone(),
            document,
            allow: config.allow.as_ref().map(|e| Expr::condition(&e.value, e.span)).transpose()?,
            surface: Surface { sections: Vec::new(), ..surface.clone() },
        })
    }

    /// Whether it is listed for whoever asks, in a catalogue of these listeners (none: of the one that is asked).
    pub fn is_for(&self, rq: &RequestCx, listeners: &[String]) -> bool {
        let there = match listeners {
            [] => self.surface.is_on(&rq.conn.listener),
            named => named.iter().any(|listener| self.surface.is_on(listener)),
        };
        there && self.allow.as_ref().is_none_or(|allow| allow.bool(rq))
    }

    /// Where callers reach it, who reach the catalogue at `here`.
    pub fn origins(&self, here: &Origin) -> Vec<Origin> {
        let at = |host: &String| match host.strip_prefix('*') {
            Some(rest) if here.host.ends_with(rest) => here.clone(),
            _ => Origin { host: host.clone(), ..here.clone() },
        };
        match self.surface.hosts.as_slice() {
            [] => vec![here.clone()],
            hosts => hosts.iter().map(at).collect(),
        }
    }
}

fn place(base: Option<&Spot<String>>, surface: &Surface) -> Result<Place, ConfigError> {
    if let Some(base) = base.filter(|base| !base.value.is_empty() && !base.value.starts_with('/')) {
        return Err(ConfigError::at(base.span, format!("`{}` does not begin with `/`", base.value))
            .help(format!("write `/{}`", base.value)));
    }
    let base = base.map(|base| base.value.trim_end_matches('/').to_owned());
    let rewrite = match surface.section("transform").and_then(|transform| transform.get("path")) {
        None => Rewrite::None,
        Some(path) => match path.get("replacePrefix") {
            Some(Node { value: Value::Str(to), .. }) => Rewrite::Prefix(to.trim_end_matches('/').to_owned()),
            _ => Rewrite::Other,
        },
    };
    Ok(Place { base, rewrite, matches: surface.matches.clone() })
}
