//! Help that is derived from code: filters, schema, completions, manual page.

use std::process::ExitCode;

use clap::CommandFactory;
use onehop_filters::BUILTIN;
use onehop_filters::contract::section::suggest;
use onehop_filters::contract::{Entry, Role};

use super::{BAD, Cli, print};

pub fn filters(name: Option<&str>) -> ExitCode {
    let Some(name) = name else { return print(&table(BUILTIN)) };
    match BUILTIN.iter().find(|e| e.name == name) {
        Some(entry) => print(&describe(entry)),
        None => {
            let names: Vec<&str> = BUILTIN.iter().map(|e| e.name).collect();
            eprintln!("onehop: there is no filter `{name}`\nhelp: {}", suggest(name, &names));
            ExitCode::from(BAD)
        }
    }
}

fn table(entries: &[Entry]) -> String {
    let width = entries.iter().map(|e| e.name.len()).max().unwrap_or(0).max(4);
    let mut out = format!("{:width$}  {:24}  SUMMARY\n", "NAME", "KEY STANDS UNDER");
    for entry in entries {
        out += &format!("{:width$}  {:24}  {}\n", entry.name, place(&entry.role), entry.summary);
    }
    out
}

fn describe(entry: &Entry) -> String {
    let mut g = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let mut schema = (entry.schema)(&mut g).to_value();
    let definitions = g.take_definitions(true);
    if let Some(map) = schema.as_object_mut()
        && !definitions.is_empty()
    {
        map.insert("$defs".to_owned(), serde_json::Value::Object(definitions));
    }
    let (name, summary, place) = (entry.name, entry.summary, place(&entry.role));
    format!("{name}: {summary}\nUnder: {place}\n\n{}\n\nSchema:\n{schema:#}\n", entry.readme.trim_end())
}

const fn place(role: &Role) -> &'static str {
    match role {
        Role::Api { .. } | Role::Answer(_) | Role::Note(_) => "routes[]",
        Role::Identity(_) => "identities.NAME",
        Role::Credential(_) => "consumers.NAME",
        Role::Discover(_) => "services.NAME.discover",
        Role::Balance(_) => "loadBalancer.policy",
        Role::Gate(_) | Role::Retry(_) | Role::Affinity(_) | Role::Check(_) => "services.NAME",
    }
}

pub fn schema() -> ExitCode {
    print(&format!("{:#}\n", onehop::config::schema(BUILTIN)))
}

pub fn completion(shell: clap_complete::Shell) -> ExitCode {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "onehop", &mut out);
    print(&String::from_utf8_lossy(&out))
}

/// The page of the command and of each subcommand, one after the other.
pub fn man() -> ExitCode {
    let mut command = Cli::command();
    command.build();
    let mut out = Vec::new();
    let mut pages = vec![clap_mangen::Man::new(command.clone())];
    pages.extend(command.get_subcommands().filter(|c| c.get_name() != "help").cloned().map(clap_mangen::Man::new));
    for page in pages {
        // Writing to memory does not fail.
        let _ = page.render(&mut out);
    }
    print(&String::from_utf8_lossy(&out))
}
