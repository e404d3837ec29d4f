//! What a file of endpoints says; pure.

use crate::contract::mesh::Found;
use crate::mesh::discover::endpoint::{Full, Item, Place, merge};

/// Reads a list: JSON, or one address a line (a leading `- ` and `#` comments are allowed, so a plain YAML list is one),
/// with `weight=`, `zone=` and `priority=` after it.
pub fn parse(text: &str) -> Result<Vec<Found>, String> {
    let items = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|e| e.to_string())?
    } else {
        lines(text)?
    };
    let mut found = Vec::with_capacity(items.len());
    for item in items {
        let written = item.parse()?;
        match &written.place {
            Place::At(address) => found.push(written.at(address.clone())),
            Place::Named(name, _) => return Err(format!("`{name}` is a name: a file lists addresses")),
        }
    }
    Ok(merge(found))
}

fn lines(text: &str) -> Result<Vec<Item>, String> {
    let mut items = Vec::new();
    for (n, line) in (1..).zip(text.lines()) {
        // `#` begins a comment at the start of a line or after a space.
        let line = if line.trim_start().starts_with('#') { "" } else { line.split(" #").next().unwrap_or("") };
        let line = line.trim();
        let line = line.strip_prefix("- ").unwrap_or(line);
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else { continue };
        let address = address.trim_matches(['"', '\'']).to_owned();
        let mut full = Full::at(address);
        for word in words {
            let wrong = || format!("line {n}: `{word}` is not `weight=N`, `zone=NAME` or `priority=N`");
            match word.split_once('=').ok_or_else(wrong)? {
                ("weight", v) => full.weight = v.parse().map_err(|_| wrong())?,
                ("priority", v) => full.priority = v.parse().map_err(|_| wrong())?,
                ("zone", v) => v.clone_into(&mut full.zone),
                _ => return Err(wrong()),
            }
        }
        items.push(Item::Full(full));
    }
    Ok(items)
}
