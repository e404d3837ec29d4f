//! Schemas compiled. References lead to files of the configuration's folder and nowhere else; regular expressions run in
//! linear time; what is told of a mistake comes from the schema, never from the message.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::{Draft, PatternOptions, Registry, Resource, Retrieve, Uri, ValidationError, Validator};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};

use crate::api::watched::document;
use crate::contract::{Mistake, Node};

/// Most mistakes that an answer lists.
const MAX_MISTAKES: usize = 16;
/// Longest pointer and detail, in characters: names in a message are its sender's.
const MAX_TEXT: usize = 200;
/// Largest compiled regular expression.
const MAX_REGEX: usize = 1 << 20;
/// What a path or a fragment of a URI cannot have as it is.
pub const PATH: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}');

/// Files that references led to.
pub type Files = Arc<Mutex<Vec<PathBuf>>>;

/// Where references may lead.
#[derive(Clone)]
pub struct Folder {
    /// The configuration's.
    pub dir: PathBuf,
    /// Contended by nobody: one thread compiles.
    pub files: Files,
}

impl Retrieve for Folder {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        if uri.scheme().as_str() != "file" {
            return Err(format!("`{uri}` is not a file: nothing is fetched").into());
        }
        let path = percent_decode_str(uri.path().as_str()).decode_utf8()?;
        let wrong = |e: std::io::Error| format!("{path}: {e}");
        let real = Path::new(&*path).canonicalize().map_err(wrong)?;
        if !real.starts_with(self.dir.canonicalize().map_err(wrong)?) {
            return Err(format!("{path} is not in the folder of the configuration").into());
        }
        let value = document(&real)?;
        self.files.lock().expect("no panic under the lock").push(real);
        Ok(value)
    }
}

/// The URI of a file, from which its references start.
pub fn uri(path: &Path) -> String {
    format!("file://{}", utf8_percent_encode(&path.to_string_lossy(), PATH))
}

/// Documents that schemas are compiled from.
pub struct Library {
    registry: Registry,
    folder: Folder,
}

impl Library {
    /// Takes a document and all that it refers to.
    pub fn of(base: &str, document: Value, folder: Folder) -> Result<Self, String> {
        let draft = Draft::default().detect(&document);
        let registry = Registry::options()
            .draft(draft)
            .retriever(folder.clone())
            .build([(base, Resource::from_contents(document))])
            .map_err(|e| e.to_string())?;
        Ok(Self { registry, folder })
    }

    /// Compiles what stands at a URI.
    pub fn compile(&self, uri: &str) -> Result<Validator, String> {
        jsonschema::options()
            .with_draft(Draft::Draft202012)
            .with_registry(self.registry.clone())
            .with_retriever(self.folder.clone())
            .with_pattern_options(PatternOptions::regex().size_limit(MAX_REGEX))
            .should_validate_formats(true)
            .build(&json!({ "$ref": uri }))
            .map_err(|e| e.to_string())
    }
}

/// Compiles a schema of the configuration: a file, or written in place.
pub fn of_node(node: &Node, what: &str, folder: &Folder) -> Result<(Validator, Value), String> {
    use crate::contract::section::Value as V;
    let (base, schema) = match &node.value {
        V::Str(file) => {
            let path = folder.dir.join(file);
            let schema = document(&path)?;
            folder.files.lock().expect("no panic under the lock").push(path.clone());
            (uri(&path), schema)
        }
        _ => (uri(&folder.dir.join(what)), node.to_json()),
    };
    if !schema.is_object() && !schema.is_boolean() {
        return Err("a schema is an object, or the name of a file".to_owned());
    }
    let own = schema.get("$schema").and_then(Value::as_str).map(str::to_owned);
    // A misspelt keyword's value is told here; an unknown keyword is none of a schema's business.
    if !jsonschema::meta::is_valid(&schema) {
        let why = jsonschema::meta::validate(&schema).err().map(|e| format!("{}: {e}", e.instance_path()));
        return Err(why.unwrap_or_else(|| format!("the schema is none of {}", own.unwrap_or_default())));
    }
    let validator = jsonschema::options()
        .with_base_uri(base)
        .with_retriever(folder.clone())
        .with_pattern_options(PatternOptions::regex().size_limit(MAX_REGEX))
        .should_validate_formats(true)
        .build(&schema)
        .map_err(|e| e.to_string())?;
    Ok((validator, schema))
}

/// What is wrong with a value, each at its place behind `prefix`.
pub fn mistakes(validator: &Validator, value: &Value, prefix: &str, found: &mut Vec<Mistake>) {
    let left = MAX_MISTAKES.saturating_sub(found.len());
    for error in validator.iter_errors(value).take(left) {
        let mut path = error.instance_path().to_string();
        // Of an object that stands for all parameters, a member is a parameter.
        if !prefix.is_empty() && !prefix.contains('.') {
            path = path.replacen('/', ".", 1);
        }
        let pointer: String = format!("{prefix}{path}").chars().take(MAX_TEXT).collect();
        found.push(Mistake { pointer, detail: detail(&error) });
    }
}

/// A sentence about a mistake, made of the schema's words.
fn detail(error: &ValidationError<'_>) -> String {
    match error.kind() {
        // Their own words name members of the message.
        Kind::AdditionalProperties { .. } | Kind::UnevaluatedProperties { .. } => {
            "has a member that is not allowed".to_owned()
        }
        Kind::AdditionalItems { .. } | Kind::UnevaluatedItems { .. } => "has an item that is not allowed".to_owned(),
        Kind::PropertyNames { .. } => "has a member whose name is not allowed".to_owned(),
        Kind::AnyOf { .. } | Kind::OneOfMultipleValid { .. } | Kind::OneOfNotValid { .. } => {
            "is not one of the allowed forms".to_owned()
        }
        Kind::Not { .. } => "is of a form that is not allowed".to_owned(),
        _ => error.masked_with("it").to_string().chars().take(MAX_TEXT).collect(),
    }
}
