//! Where the paths of a document stand in public, pure: in front of the gateway they may be others than behind it.

use http::Method;
use serde_json::{Map, Value};

use crate::contract::{Shown, ShownPath};

/// What decides it for one route.
#[derive(Clone, Debug)]
pub struct Place {
    /// `basePath`, without a slash at the end.
    pub base: Option<String>,
    /// How the route changes paths on their way to the service.
    pub rewrite: Rewrite,
    /// What the route matches.
    pub matches: Vec<Shown>,
}

/// What a route does to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Nothing.
    None,
    /// `replacePrefix`, without a slash at the end.
    Prefix(String),
    /// Something that cannot be undone.
    Other,
}

/// HTTP methods that an OpenAPI path item may describe.
const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

impl Place {
    /// What stands before the document's paths in public; `own`: what stands before them at the service.
    ///
    /// # Errors
    /// It cannot be found out.
    pub fn bases(&self, own: &str) -> Result<Vec<String>, &'static str> {
        let own = own.trim_end_matches('/');
        if let Some(base) = &self.base {
            return Ok(vec![base.clone()]);
        }
        let to = match &self.rewrite {
            Rewrite::None => return Ok(vec![own.to_owned()]),
            Rewrite::Prefix(to) => to.as_str(),
            Rewrite::Other => return Err("the route rewrites paths: say what callers write with `basePath`"),
        };
        let mut bases = Vec::new();
        for shown in &self.matches {
            let from = match &shown.path {
                ShownPath::Any => "",
                ShownPath::Exact(path) | ShownPath::Prefix(path) => path.trim_end_matches('/'),
                ShownPath::Regex(_) => return Err("the route matches a regex: say what callers write with `basePath`"),
            };
            let base = match (below(own, to), below(to, own)) {
                // The document begins below the prefix ...
                (Some(rest), _) => format!("{from}{rest}"),
                // ... or above it, with paths that name the prefix as the route's own path does.
                (None, Some(rest)) if from.ends_with(rest) => from[..from.len() - rest.len()].to_owned(),
                _ => return Err("the route moves paths to another place than the document's: write `basePath`"),
            };
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        Ok(bases)
    }

    /// Leaves out paths and methods that the route does not serve.
    pub fn prune(&self, paths: &mut Map<String, Value>, bases: &[String]) {
        paths.retain(|template, item| {
            let serving: Vec<&Shown> = self
                .matches
                .iter()
                .filter(|shown| bases.iter().any(|base| covers(&shown.path, &format!("{base}{template}"))))
                .collect();
            if serving.is_empty() {
                return false;
            }
            if let Some(operations) = item.as_object_mut()
                && serving.iter().all(|shown| !shown.methods.is_empty())
            {
                let served = |name: &str| {
                    let is = |method: &Method| method.as_str().eq_ignore_ascii_case(name);
                    serving.iter().any(|shown| shown.methods.iter().any(is))
                };
                operations.retain(|name, _| !METHODS.contains(&name.as_str()) || served(name));
            }
            true
        });
    }
}

/// What is left of a path below a prefix; neither ends with a slash.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path of this form may be matched; a parameter may be anything. Regexes are taken at their word.
fn covers(path: &ShownPath, template: &str) -> bool {
    let same = |(ours, theirs): (&str, &str)| ours == theirs || theirs.contains('{');
    match path {
        ShownPath::Any | ShownPath::Regex(_) => true,
        ShownPath::Exact(exact) => {
            exact.split('/').count() == template.split('/').count()
                && exact.split('/').zip(template.split('/')).all(same)
        }
        ShownPath::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            prefix.split('/').count() <= template.split('/').count()
                && prefix.split('/').zip(template.split('/')).all(same)
        }
    }
}
