//! Sources to one tree: files, folders and standard input, merged by name.

use std::hash::{BuildHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use onehop_filters::contract::section::{Key, Value, suggest};
use onehop_filters::contract::{ConfigError, Entry, Node, Span};

use super::lower;
use super::plan::Plan;
use super::report::{File, Files, Report};
use super::{env, text};

/// Where configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, or a folder whose `*.yaml`, `*.yml` and `*.json` are read in the order of their names.
    Path(PathBuf),
    /// Standard input. Read once: a reload sees the same text again.
    Stdin,
    /// Text from the program itself (tests, the demo, an embedding program). Relative paths start in `dir`.
    Text {
        /// Shown in errors.
        name: String,
        /// YAML or JSON.
        text: String,
        /// An absolute path.
        dir: PathBuf,
    },
}

impl Source {
    /// A value of `-c`.
    #[must_use]
    pub fn of(arg: &str) -> Self {
        if arg == "-" { Self::Stdin } else { Self::Path(PathBuf::from(arg)) }
    }
}

/// Top-level keys and how several files merge them.
pub const SECTIONS: &[(&str, Merge)] = &[
    ("version", Merge::Same),
    ("admin", Merge::Once),
    ("listeners", Merge::Names),
    ("identities", Merge::Names),
    ("plans", Merge::Names),
    ("consumers", Merge::Names),
    ("routes", Merge::List),
    ("services", Merge::Names),
    ("workload", Merge::Once),
    ("telemetry", Merge::Once),
    ("state", Merge::Once),
    ("lifecycle", Merge::Once),
    ("runtime", Merge::Once),
];

/// How a top-level key of one file meets that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// May be repeated.
    Same,
    /// May stand in one file only.
    Once,
    /// Names are united; each may stand in one file only.
    Names,
    /// Lists are appended.
    List,
}

/// Reads, merges and checks a configuration.
///
/// # Errors
/// Everything that is wrong with it, as far as one mistake does not hide another.
pub fn load(sources: &[Source], entries: &[Entry]) -> Result<Plan, Report> {
    load_with(sources, entries, &|name| std::env::var(name).ok())
}

/// As [`load`], with the environment given.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    sources: &[Source],
    entries: &[Entry],
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Plan, Report> {
    let mut errors = Vec::new();
    let (texts, dir) = read(sources, &mut errors);
    let hash = hash(&texts);
    let mut files = Vec::with_capacity(texts.len());
    let mut trees = Vec::with_capacity(texts.len());
    for (index, (name, bytes)) in texts.into_iter().enumerate() {
        match text::parse(u16::try_from(index).unwrap_or(u16::MAX), &bytes) {
            Ok(tree) => trees.push(tree),
            Err(found) => errors.extend(found),
        }
        let text = String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        files.push(File { name, text });
    }
    let files = Files::new(files);
    if !errors.is_empty() {
        // A file that cannot be read hides names that others refer to: more errors would be guesses.
        return Err(Report::sorted(files, errors));
    }
    let mut root = merge(trees, &files, &mut errors);
    env::resolve(&mut root, lookup, &mut errors);
    match lower::plan(root, entries, &dir, &mut errors) {
        Some(plan) if errors.is_empty() => Ok(Plan { hash, files, ..plan }),
        _ => Err(Report::sorted(files, errors)),
    }
}

/// The hash a plan of these sources would have, without reading more than their text; `None` if they cannot be read.
#[must_use]
pub fn hash_of(sources: &[Source]) -> Option<u64> {
    let mut errors = Vec::new();
    let (texts, _) = read(sources, &mut errors);
    errors.is_empty().then(|| hash(&texts))
}

/// The tree of files that make a plan, as written: read again when somebody wants to see it, because a tree takes many
/// times the memory of its text.
pub fn source(files: &Files) -> Node {
    let read = |(index, file): (usize, &File)| {
        text::parse(u16::try_from(index).unwrap_or(u16::MAX), file.text.as_bytes()).ok()
    };
    let trees = files.list().iter().enumerate().filter_map(read).collect();
    merge(trees, files, &mut Vec::new())
}

/// Names and bytes, and the folder relative paths start in: that of the first source.
fn read(sources: &[Source], errors: &mut Vec<ConfigError>) -> (Vec<(String, Vec<u8>)>, PathBuf) {
    let mut texts = Vec::new();
    let mut dir = None;
    let mut failed = |path: &Path, e: &std::io::Error| {
        errors.push(ConfigError {
            span: None,
            message: format!("{}: {e}", path.display()),
            help: Some("check the path given with `-c`".to_owned()),
        });
    };
    for source in sources {
        let home = match source {
            Source::Path(path) if path.is_dir() => {
                match folder(path) {
                    Ok(list) if list.is_empty() => {
                        let none = std::io::Error::other("the folder holds no *.yaml, *.yml or *.json file");
                        failed(path, &none);
                    }
                    Ok(list) => {
                        for file in list {
                            match std::fs::read(&file) {
                                Ok(bytes) => texts.push((file.display().to_string(), bytes)),
                                Err(e) => failed(&file, &e),
                            }
                        }
                    }
                    Err(e) => failed(path, &e),
                }
                path.clone()
            }
            Source::Path(path) => {
                match std::fs::read(path) {
                    Ok(bytes) => texts.push((path.display().to_string(), bytes)),
                    Err(e) => failed(path, &e),
                }
                path.parent().map_or_else(PathBuf::new, Path::to_path_buf)
            }
            Source::Stdin => {
                static READ: OnceLock<Vec<u8>> = OnceLock::new();
                let bytes = READ.get_or_init(|| {
                    let mut bytes = Vec::new();
                    // What cannot be read is an empty text, which the reader refuses.
                    let _ = std::io::stdin().lock().read_to_end(&mut bytes);
                    bytes
                });
                texts.push(("-".to_owned(), bytes.clone()));
                PathBuf::new()
            }
            Source::Text { name, text, dir } => {
                texts.push((name.clone(), text.clone().into_bytes()));
                dir.clone()
            }
        };
        dir.get_or_insert(home);
    }
    if sources.is_empty() {
        errors.push(ConfigError {
            span: None,
            message: "no configuration is given".to_owned(),
            help: Some("pass `-c FILE`".to_owned()),
        });
    }
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    (texts, here.join(dir.unwrap_or_default()))
}

/// The config files of a folder. Names that begin with a dot are an editor's or a ConfigMap's own.
pub(super) fn folder(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut list = Vec::new();
    for item in std::fs::read_dir(path)? {
        let file = item?.path();
        let hidden = file.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
        let fits = file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if fits && !hidden && file.is_file() {
            list.push(file);
        }
    }
    list.sort();
    Ok(list)
}

/// Stable across runs and machines, as logs and `/config` show it.
fn hash(texts: &[(String, Vec<u8>)]) -> u64 {
    let mut hasher = foldhash::quality::FixedState::with_seed(0).build_hasher();
    for (name, bytes) in texts {
        name.hash(&mut hasher);
        bytes.hash(&mut hasher);
    }
    hasher.finish()
}

/// One tree of all files. Errors name both places.
fn merge(trees: Vec<Node>, files: &Files, errors: &mut Vec<ConfigError>) -> Node {
    let start = trees.first().map_or_else(Span::default, |t| t.span);
    let mut merged: Vec<(Key, Node)> = Vec::new();
    let mut empty = true;
    for tree in trees {
        let at = tree.span;
        let entries = match tree.value {
            Value::Map(entries) => entries,
            Value::Null => continue,
            _ => {
                let e = ConfigError::at(at, "a configuration is a map of sections");
                errors.push(e.help("begin with `version: 1`"));
                continue;
            }
        };
        empty = false;
        for (key, node) in entries {
            let Some((_, how)) = SECTIONS.iter().find(|(name, _)| *name == key.name) else {
                let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
                let e = ConfigError::at(key.span, format!("unknown key `{}`", key.name));
                errors.push(e.help(suggest(&key.name, &known)));
                continue;
            };
            match merged.iter_mut().find(|(k, _)| k.name == key.name) {
                None => merged.push((key, node)),
                Some((first, into)) => join(*how, (first, into), (&key, node), files, errors),
            }
        }
    }
    if empty {
        errors.push(ConfigError::at(start, "the configuration is empty").help("begin with `version: 1`"));
    }
    Node { span: start, value: Value::Map(merged) }
}

fn join(
    how: Merge,
    (first, into): (&Key, &mut Node),
    (key, node): (&Key, Node),
    files: &Files,
    errors: &mut Vec<ConfigError>,
) {
    let twice = |what: &str, at: Span, prior: Span| {
        let file = files.list().get(usize::from(prior.file)).map_or("?", |f| f.name.as_str());
        let place = format!("{}:{} of {file}", prior.line, prior.column);
        ConfigError::at(at, format!("{what} stands in two files")).help(format!("keep one; the first is at {place}"))
    };
    match (how, &mut into.value, node.value) {
        (Merge::Same, a, b) if *a == b => {}
        (_, _, Value::Null) => {}
        (_, a @ Value::Null, b) => *a = b,
        (Merge::Names, Value::Map(known), Value::Map(more)) => {
            for (name, section) in more {
                match known.iter().find(|(k, _)| k.name == name.name) {
                    Some((prior, _)) => {
                        errors.push(twice(&format!("`{}.{}`", key.name, name.name), name.span, prior.span));
                    }
                    None => known.push((name, section)),
                }
            }
        }
        (Merge::List, Value::Seq(known), Value::Seq(more)) => known.extend(more),
        (Merge::Once | Merge::Same, ..) => errors.push(twice(&format!("`{}`", key.name), key.span, first.span)),
        (Merge::Names, ..) => {
            errors.push(ConfigError::at(node.span, "expected a map").help("write names and sections"))
        }
        (Merge::List, ..) => errors.push(ConfigError::at(node.span, "expected a list").help("begin items with `- `")),
    }
}
