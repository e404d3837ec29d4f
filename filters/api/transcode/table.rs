//! The calls that a descriptor set offers, compiled: which path and method means which call, and where its fields are.

use std::path::Path;
use std::sync::Arc;

use http::Method;
use http::uri::PathAndQuery;
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    Value,
};

use super::template::{Captured, Template};
use crate::api::watched::{self, Compiled};

/// Everything that is offered.
#[derive(Debug)]
pub struct Table {
    /// The more exact first.
    bindings: Vec<Binding>,
    /// `google.rpc.Status`, if the set has it: for the details of errors.
    pub status: Option<MessageDescriptor>,
}

/// One way to call.
#[derive(Debug)]
pub struct Binding {
    method: Method,
    template: Template,
    /// The call.
    pub call: Arc<Call>,
    /// What the body stands for.
    pub body: BodyIs,
    /// Only this field of the answer goes out.
    pub response_body: Option<FieldDescriptor>,
}

/// A method of a service.
#[derive(Debug)]
pub struct Call {
    pub path: PathAndQuery,
    pub input: MessageDescriptor,
    pub output: MessageDescriptor,
    pub streams: bool,
}

/// What a request's body stands for.
#[derive(Clone, Debug)]
pub enum BodyIs {
    /// There is none: fields come from the query.
    Absent,
    /// `*`: the whole message.
    Message,
    Field(FieldDescriptor),
}

/// What is asked for.
pub enum Found<'t> {
    Call(&'t Binding, Vec<Captured>),
    /// The path is offered, with these methods.
    OtherMethods(Vec<&'t Method>),
    Nothing,
}

impl Table {
    /// Reads a descriptor set and compiles the services named.
    pub fn compile(file: &Path, services: &[String], auto: bool) -> Result<Compiled<Self>, String> {
        let bytes = watched::read(file)?;
        let shown = file.display();
        let pool = DescriptorPool::decode(&*bytes)
            .map_err(|e| format!("{shown} is not a descriptor set: {e}\nmake one with `protoc --include_imports`"))?;
        let http = pool.get_extension_by_name("google.api.http");
        let mut bindings = Vec::new();
        for name in services {
            let service = pool.get_service_by_name(name).ok_or_else(|| {
                let known: Vec<String> = pool.services().map(|s| s.full_name().to_owned()).collect();
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                format!("{shown} has no service `{name}`\n{}", crate::contract::section::suggest(name, &known))
            })?;
            let before = bindings.len();
            for method in service.methods().filter(|method| !method.is_client_streaming()) {
                offer(&method, http.as_ref(), auto, &mut bindings)
                    .map_err(|e| format!("{}: {e}", method.full_name()))?;
            }
            if bindings.len() == before {
                return Err(format!(
                    "`{name}` offers no call over HTTP\nannotate its methods with `google.api.http`, or write `autoMapping: true`"
                ));
            }
        }
        bindings.sort_by(|a, b| a.template.exactness(&b.template));
        let status = pool.get_message_by_name("google.rpc.Status");
        Ok(Compiled::new(Self { bindings, status }, vec![file.to_owned()]))
    }

    /// Looks a request up.
    pub fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let mut others: Vec<&Method> = Vec::new();
        for binding in &self.bindings {
            let Some(captured) = binding.template.captures(path) else { continue };
            if binding.method == *method {
                return Found::Call(binding, captured);
            }
            if !others.contains(&&binding.method) {
                others.push(&binding.method);
            }
        }
        if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
    }
}

fn offer(
    method: &MethodDescriptor,
    http: Option<&ExtensionDescriptor>,
    auto: bool,
    bindings: &mut Vec<Binding>,
) -> Result<(), String> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let call = Arc::new(Call {
        path: path.parse().map_err(|e| format!("{e}"))?,
        input: method.input(),
        output: method.output(),
        streams: method.is_server_streaming(),
    });
    let options = method.options();
    let rule = http.filter(|http| options.has_extension(http)).map(|http| options.get_extension(http).into_owned());
    match rule {
        Some(Value::Message(rule)) => {
            bindings.push(binding(&rule, &call)?);
            let more = rule.get_field_by_name("additional_bindings");
            for rule in more.as_deref().and_then(Value::as_list).into_iter().flatten().filter_map(Value::as_message) {
                bindings.push(binding(rule, &call)?);
            }
        }
        _ if auto => bindings.push(Binding {
            method: Method::POST,
            template: Template::read(&path)?,
            call,
            body: BodyIs::Message,
            response_body: None,
        }),
        _ => {}
    }
    Ok(())
}

fn text(rule: &DynamicMessage, field: &str) -> String {
    rule.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// One `google.api.HttpRule`.
fn binding(rule: &DynamicMessage, call: &Arc<Call>) -> Result<Binding, String> {
    let plain = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ]
    .into_iter()
    .find(|(field, _)| rule.has_field_by_name(field))
    .map(|(field, method)| (method, text(rule, field)));
    let (method, path) = match plain {
        Some(plain) => plain,
        None => {
            let custom = rule.get_field_by_name("custom").filter(|_| rule.has_field_by_name("custom"));
            let custom = custom.ok_or("the annotation has no path")?;
            let custom = custom.as_message().ok_or("`custom` is no message")?;
            let kind = text(custom, "kind");
            (
                Method::from_bytes(kind.as_bytes()).map_err(|_| format!("`{kind}` is not a method"))?,
                text(custom, "path"),
            )
        }
    };
    let template = Template::read(&path).map_err(|e| format!("`{path}`: {e}"))?;
    for field in template.fields() {
        let last = resolve(&call.input, field).and_then(|fields| fields.last().cloned());
        let last = last.ok_or_else(|| format!("`{path}`: {} has no field `{field}`", call.input.full_name()))?;
        if last.is_list() || last.is_map() {
            return Err(format!("`{path}`: `{field}` is not a single value"));
        }
    }
    let named = |message: &MessageDescriptor, name: &str| {
        message.get_field_by_name(name).ok_or_else(|| format!("{} has no field `{name}`", message.full_name()))
    };
    let body = match text(rule, "body").as_str() {
        "" => BodyIs::Absent,
        "*" => BodyIs::Message,
        name => BodyIs::Field(named(&call.input, name)?),
    };
    let response_body = match text(rule, "response_body").as_str() {
        "" => None,
        name => Some(named(&call.output, name)?),
    };
    Ok(Binding { method, template, call: call.clone(), body, response_body })
}

/// The fields on a path such as `book.author.name`, by their names in the proto file or in JSON.
pub fn resolve(message: &MessageDescriptor, path: &str) -> Option<Vec<FieldDescriptor>> {
    let mut message = message.clone();
    let mut fields = Vec::new();
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let field = message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name))?;
        if names.peek().is_some() {
            match field.kind() {
                Kind::Message(inner) if !field.is_list() && !field.is_map() => message = inner,
                _ => return None,
            }
        }
        fields.push(field);
    }
    Some(fields)
}
