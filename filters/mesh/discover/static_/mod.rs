//! `discover: { static: [...] }`: endpoints written in the config. Names among them are asked for like `dns`.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::{Item, Place, Written, merge};
use super::resolve::{Resolver, Settings};
use crate::contract::mesh::{Address, Discover, Found, Report};
use crate::contract::section::{ConfigError, Node, Spot};
use crate::contract::{Build, Entry, Role};
use crate::mesh::chance::Dice;

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "static",
    summary: "Endpoints written in the config",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<Vec<Spot<Item>>>(),
    role: Role::Discover(build),
};

fn build(section: &Node, _: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let items: Vec<Spot<Item>> = section.read()?;
    if items.is_empty() {
        return Err(ConfigError::at(section.span, "a static service has at least one endpoint"));
    }
    let written = items
        .into_iter()
        .map(|item| item.value.parse().map_err(|why| ConfigError::at(item.span, why)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(Static { written: written.into() }))
}

struct Static {
    written: Arc<[Written]>,
}

impl Discover for Static {
    fn initial(&self) -> Vec<Found> {
        merge(self.written.iter().filter_map(Written::known))
    }
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let named = self.written.iter().any(|w| matches!(w.place, Place::Named(..)));
        named.then(|| Box::pin(follow(self.written.clone(), report)) as Pin<Box<_>>)
    }
    fn describe(&self) -> String {
        let n = self.written.len();
        format!("static, {n} {}", if n == 1 { "address" } else { "addresses" })
    }
}

async fn follow(written: Arc<[Written]>, report: Report) {
    let settings = Settings::default();
    let mut dice = Dice::fresh();
    let mut resolver = None;
    // The last answer for each name: one that fails keeps its addresses while the others move on.
    let mut last: Vec<Vec<Found>> = written.iter().map(|w| w.known().into_iter().collect()).collect();
    loop {
        let mut ttl = settings.max_ttl;
        let mut failure = None;
        for (w, found) in written.iter().zip(&mut last) {
            let Place::Named(name, port) = &w.place else { continue };
            match ask(&mut resolver, &settings, name, *port).await {
                Ok((addresses, good)) => {
                    ttl = ttl.min(good);
                    // An empty answer for one of several names is held like a failure; of a sole name it is the answer.
                    if !addresses.is_empty() || written.len() == 1 {
                        *found = addresses.into_iter().map(|a| w.at(a)).collect();
                    } else if !found.is_empty() {
                        failure = Some(format!("{name}: no addresses"));
                    }
                }
                Err(why) => {
                    ttl = settings.min_ttl;
                    failure = Some(why);
                }
            }
        }
        let list = merge(last.iter().flatten().cloned());
        // With nothing at all there is nothing to keep: only the failure is news.
        if !(list.is_empty() && failure.is_some()) {
            report.found(list);
        }
        if let Some(why) = failure {
            report.failed(why);
        }
        tokio::time::sleep(settings.pause(ttl, &mut dice)).await;
    }
}

async fn ask(
    resolver: &mut Option<Resolver>,
    settings: &Settings,
    name: &str,
    port: u16,
) -> Result<(Vec<Address>, Duration), String> {
    let resolver = match resolver {
        Some(resolver) => resolver,
        none => none.insert(Resolver::new(settings.clone())?),
    };
    let answer = resolver.addresses(name, port).await?;
    Ok((answer.list.into_iter().map(|ip| Address::Tcp((ip, port).into())).collect(), answer.ttl))
}
