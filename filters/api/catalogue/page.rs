//! The list as JSON and as a page, pure.

use std::fmt::{self, Write};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::describe::Described;
use super::document::Origin;
use crate::contract::{Shown, ShownPath};

/// The page loads nothing, runs nothing and stands in no frame.
pub const POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a segment of a path cannot have as it is. A slash in a route's name stays one.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// What one caller sees.
pub struct List<'a> {
    pub title: &'a str,
    pub caller: Map<String, Value>,
    pub routes: Vec<Entry<'a>>,
}

/// One route in it.
pub struct Entry<'a> {
    name: &'a str,
    title: String,
    version: Option<String>,
    description: Option<&'a str>,
    owner: Option<&'a str>,
    servers: Vec<String>,
    matches: &'a [Shown],
    /// Where its document is, without the form.
    openapi: Option<String>,
}

impl<'a> Entry<'a> {
    /// `base`: the path of the catalogue.
    pub fn of(route: &'a Described, origins: &[Origin], base: &str) -> Self {
        let document = route.document.as_ref().map(|document| document.load());
        let info = document.as_ref().map(|document| &document.made);
        let title = route.title.clone().or_else(|| info.and_then(|info| info.title.clone()));
        Self {
            name: &route.name,
            title: title.unwrap_or_else(|| route.name.to_string()),
            version: info.and_then(|info| info.version.clone()),
            description: route.description.as_deref(),
            owner: route.owner.as_deref(),
            servers: origins.iter().map(Origin::text).collect(),
            matches: &route.matches,
            openapi: info.map(|_| format!("{base}/{}/openapi.", utf8_percent_encode(&route.name, SEGMENT))),
        }
    }

    fn json(&self) -> Value {
        let link = |openapi: &String| json!({ "json": format!("{openapi}json"), "yaml": format!("{openapi}yaml") });
        json!({
            "name": self.name,
            "title": self.title,
            "version": self.version,
            "description": self.description,
            "owner": self.owner,
            "servers": self.servers,
            "matches": self.matches.iter().map(shown).collect::<Vec<_>>(),
            "openapi": self.openapi.as_ref().map(link),
        })
    }
}

fn shown(shown: &Shown) -> Value {
    let methods: Vec<&str> = shown.methods.iter().map(http::Method::as_str).collect();
    match &shown.path {
        ShownPath::Any => json!({ "methods": methods }),
        ShownPath::Exact(path) => json!({ "path": { "exact": path }, "methods": methods }),
        ShownPath::Prefix(path) => json!({ "path": { "prefix": path }, "methods": methods }),
        ShownPath::Regex(path) => json!({ "path": { "regex": path }, "methods": methods }),
    }
}

impl List<'_> {
    /// For programs.
    pub fn json(&self) -> String {
        let routes: Vec<Value> = self.routes.iter().map(Entry::json).collect();
        format!("{}\n", json!({ "title": self.title, "caller": self.caller, "routes": routes }))
    }

    /// For people.
    pub fn html(&self) -> String {
        let mut page = String::with_capacity(2048);
        self.write(&mut page).expect("writing to memory does not fail");
        page
    }

    fn write(&self, page: &mut String) -> fmt::Result {
        let title = Escaped(self.title);
        write!(page, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>")?;
        write!(page, "<body><h1>{title}</h1>")?;
        self.write_caller(page)?;
        for route in &self.routes {
            write!(page, "<section><h2>{}", Escaped(&route.title))?;
            if let Some(version) = &route.version {
                write!(page, " <small>{}</small>", Escaped(version))?;
            }
            page.write_str("</h2>")?;
            for line in route.description.into_iter().flat_map(str::lines).filter(|line| !line.trim().is_empty()) {
                write!(page, "<p>{}</p>", Escaped(line))?;
            }
            if let Some(owner) = route.owner {
                write!(page, "<p>Owner: {}</p>", Escaped(owner))?;
            }
            page.write_str("<ul>")?;
            for (server, shown) in route.servers.iter().flat_map(|s| route.matches.iter().map(move |m| (s, m))) {
                write!(page, "<li><code>{}</code></li>", Escaped(&line(server, shown)))?;
            }
            page.write_str("</ul>")?;
            if let Some(openapi) = &route.openapi {
                let to = Escaped(openapi);
                write!(page, "<p>OpenAPI: <a href=\"{to}json\">JSON</a>, <a href=\"{to}yaml\">YAML</a></p>")?;
            }
            page.write_str("</section>")?;
        }
        if self.routes.is_empty() {
            page.write_str("<p>There is nothing here for you.</p>")?;
        }
        page.write_str("</body></html>\n")
    }

    fn write_caller(&self, page: &mut String) -> fmt::Result {
        let text = |key: &str| self.caller.get(key).and_then(Value::as_str);
        let who = [("Consumer", text("consumer")), ("User", text("user")), ("Plan", text("plan"))];
        for (what, name) in who {
            if let Some(name) = name {
                write!(page, "<p>{what}: <b>{}</b></p>", Escaped(name))?;
            }
        }
        let limits = self.caller.get("limits").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if limits.is_empty() {
            return Ok(());
        }
        page.write_str("<table><tr><th>Quota<th>Limit<th>Per<th>Left<th>Reset in seconds")?;
        for limit in limits {
            page.write_str("<tr>")?;
            for key in ["name", "limit", "per", "remaining", "reset"] {
                let cell = match limit.get(key) {
                    Some(Value::String(text)) => text.clone(),
                    Some(other) => other.to_string(),
                    None => String::new(),
                };
                write!(page, "<td>{}", Escaped(&cell))?;
            }
        }
        page.write_str("</table>")
    }
}

fn line(server: &str, shown: &Shown) -> String {
    let methods: Vec<&str> = shown.methods.iter().map(http::Method::as_str).collect();
    let methods = if methods.is_empty() { String::new() } else { format!("{} ", methods.join(", ")) };
    let path = match &shown.path {
        ShownPath::Any => "/...".to_owned(),
        ShownPath::Exact(path) => path.clone(),
        ShownPath::Prefix(path) => format!("{}/...", path.trim_end_matches('/')),
        ShownPath::Regex(path) => format!(" {path}"),
    };
    format!("{methods}{server}{path}")
}

/// Text that cannot leave its place in a page, whoever wrote it.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}
