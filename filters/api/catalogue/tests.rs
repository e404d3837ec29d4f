use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::document::Document;
use super::place::{Place, Rewrite};
use super::*;
use crate::api::fixture::{Estate, decided, request, section, user};
use crate::contract::filter::Verdict;
use crate::contract::{Directory, Shown, Surface};

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn with(name: &str, document: &str) -> (Self, PathBuf) {
        let dir = std::env::temp_dir().join(format!("onehop-catalogue-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        let file = dir.join("api.yaml");
        std::fs::write(&file, document).expect("written");
        (Self(dir), file)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ORDERS: &str = r#"
openapi: 3.1.0
info: { title: Orders, version: 1.2.0 }
servers: [{ url: "http://orders.internal:9000/orders" }]
paths:
  /:
    get: { servers: [{ url: "http://one.internal" }], responses: { default: { description: "yes" } } }
    delete: { responses: { default: { description: gone } } }
  /{id}:
    servers: [{ url: "http://two.internal" }]
    get:
      responses:
        "200":
          description: one
          links: { self: { operationId: x, server: { url: "http://three.internal" } } }
components:
  schemas:
    Order: { type: object, properties: { servers: { type: array }, "no": { type: string, example: { $ref: "./kept.json" } } } }
"#;

fn prefix(path: &str, methods: &[Method]) -> Shown {
    Shown { path: ShownPath::Prefix(path.to_owned()), methods: methods.to_vec() }
}

fn surface(name: &str, matches: Vec<Shown>, sections: Value) -> Surface {
    let Value::Object(sections) = sections else { panic!("sections by key") };
    Surface {
        name: name.into(),
        listeners: None,
        hosts: Vec::new(),
        matches,
        sections: sections.into_iter().map(|(key, json)| (key, section(json))).collect(),
    }
}

fn made(config: Value, surfaces: Vec<Surface>) -> Result<Arc<dyn Filter>, ConfigError> {
    let directory = Directory { surfaces, listeners: vec!["public".to_owned()], ..Directory::default() };
    build(&section(config), &mut Estate::default().build("routes.portal", &directory))
}

fn portal(config: Value) -> Surface {
    surface("portal", vec![prefix("/portal", &[])], json!({ "catalogue": config }))
}

fn asked(filter: &dyn Filter, rq: &mut RequestCx) -> Response<Body> {
    rq.covered = "/portal".len();
    match decided(filter.on_request(rq)) {
        Verdict::Reply(reply) => *reply,
        other => panic!("{other:?}"),
    }
}

fn text(reply: Response<Body>) -> String {
    match reply.into_body() {
        Body::Full(bytes) => String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("text"),
        _ => panic!("a body at once"),
    }
}

fn listed(filter: &dyn Filter, rq: &mut RequestCx) -> Vec<String> {
    let list: Value = serde_json::from_str(&text(asked(filter, rq))).expect("JSON");
    list["routes"].as_array().expect("a list").iter().map(|r| r["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_caller_sees_what_it_may() {
    let mut inside = surface("inside", vec![prefix("/inside", &[])], json!({ "describe": {} }));
    inside.listeners = Some(vec!["mesh".to_owned()]);
    let filter = made(
        json!({}),
        vec![
            portal(json!({})),
            surface("open", vec![prefix("/open", &[])], json!({ "describe": {} })),
            surface("orders", vec![prefix("/o", &[])], json!({ "describe": { "allow": "'orders' in user.scopes" } })),
            inside,
        ],
    )
    .expect("made");
    let rq = &mut request("GET", "/portal");
    assert_eq!(listed(&*filter, rq), ["open"], "of its listener; nobody has no scopes");
    rq.user = Some(user(json!({ "sub": "ann", "scope": "orders stock" })));
    assert_eq!(listed(&*filter, rq), ["open", "orders"]);
}

#[test]
fn documents_are_for_those_who_see_the_route() {
    let (_folder, file) = Folder::with("seen", ORDERS);
    let note = json!({ "describe": { "openapi": file, "allow": "user.sub == 'ann'" },
        "transform": { "path": { "replacePrefix": "/orders" } } });
    let orders = surface("orders", vec![prefix("/v1/orders", &[Method::GET])], note);
    let filter = made(json!({}), vec![portal(json!({})), orders]).expect("made");
    let rq = &mut request("GET", "/portal/orders/openapi.json");
    rq.covered = "/portal".len();
    let Verdict::Fail(fault) = decided(filter.on_request(rq)) else { panic!("not for strangers") };
    assert_eq!(fault.reason, Reason::NotDescribed);

    rq.user = Some(user(json!({ "sub": "ann" })));
    let reply = asked(&*filter, rq);
    let tag = reply.headers()[ETAG].clone();
    assert_eq!(reply.headers()[CACHE_CONTROL], "private, no-cache");
    let shown: Value = serde_json::from_str(&text(reply)).expect("JSON");
    assert_eq!(shown["servers"], json!([{ "url": "http://api.example.com:8443/v1/orders" }]));
    assert_eq!(shown["paths"]["/"].as_object().expect("operations").keys().collect::<Vec<_>>(), ["get"], "no delete");
    assert!(!shown.to_string().contains("internal"), "{shown}");
    assert!(shown["components"]["schemas"]["Order"]["properties"]["servers"].is_object(), "a property, not a server");

    rq.headers.insert(IF_NONE_MATCH, tag.clone());
    assert_eq!(asked(&*filter, rq).status(), StatusCode::NOT_MODIFIED);
    rq.target = "/portal/orders/openapi.yaml".parse().expect("a target");
    let reply = asked(&*filter, rq);
    assert_ne!(reply.headers()[ETAG], tag, "another form is another answer");
    let yaml: Value = serde_saphyr::from_str(&text(reply)).expect("YAML");
    assert_eq!(yaml, shown, "the same in both forms");

    rq.method = Method::POST;
    let Verdict::Fail(fault) = decided(filter.on_request(rq)) else { panic!("read only") };
    assert_eq!(
        (fault.reason, &fault.headers.expect("there")[ALLOW]),
        (Reason::MethodRefused, &HeaderValue::from_static("GET, HEAD"))
    );
}

#[test]
fn nothing_leaves_its_place_in_the_page() {
    let evil = "</title><script>alert('x')</script>\" onload=\"";
    let note = json!({ "describe": { "title": evil, "description": format!("a\n{evil}"), "owner": evil } });
    let filter =
        made(json!({ "title": evil }), vec![portal(json!({})), surface("a\"b", vec![prefix("/<p>", &[])], note)]);
    let filter = filter.expect("made");
    let rq = &mut request("GET", "/portal/");
    rq.headers.insert(http::header::ACCEPT, HeaderValue::from_static("text/html,*/*;q=0.8"));
    rq.user = Some(user(json!({ "sub": evil })));
    let reply = asked(&*filter, rq);
    assert_eq!(reply.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
    assert!(reply.headers()["content-security-policy"].to_str().expect("text").starts_with("default-src 'none'"));
    assert_eq!(
        (&reply.headers()[CACHE_CONTROL], &reply.headers()[VARY]),
        (&HeaderValue::from_static("no-store"), &HeaderValue::from_static("accept"))
    );
    let page = text(reply);
    assert!(!page.contains("<script") && !page.contains("</title><script") && !page.contains("<p>/"), "{page}");
    assert_eq!(page.matches("&lt;script&gt;").count(), 6, "title twice, user, route's three: {page}");
}

#[test]
fn hosts_are_those_of_the_route() {
    let mut orders = surface("orders", vec![prefix("/o", &[])], json!({ "describe": {} }));
    orders.hosts = vec!["orders.example.org".to_owned(), "*.example.com".to_owned(), "*.example.net".to_owned()];
    let servers = |config: Value| {
        let filter = made(config.clone(), vec![portal(config), orders.clone()]).expect("made");
        let list: Value = serde_json::from_str(&text(asked(&*filter, &mut request("GET", "/portal")))).expect("JSON");
        list["routes"][0]["servers"].clone()
    };
    let own = ["http://orders.example.org:8443", "http://api.example.com:8443", "http://{subdomain}.example.net:8443"];
    assert_eq!(servers(json!({})), json!(own));
    let said = ["https://orders.example.org", "https://www.example.com", "https://{subdomain}.example.net"];
    assert_eq!(servers(json!({ "baseUrl": "https://www.example.com", "listeners": ["public"] })), json!(said));
}

#[test]
fn where_a_document_begins_in_public() {
    let bases = |base: Option<&str>, rewrite: Rewrite, from: &str, own: &str| {
        let place = Place { base: base.map(str::to_owned), rewrite, matches: vec![prefix(from, &[])] };
        place.bases(own).map(|all| all.join(","))
    };
    let to = |to: &str| Rewrite::Prefix(to.to_owned());
    for (base, rewrite, from, own, expected) in [
        (None, Rewrite::None, "/v1/orders", "/v1", Some("/v1")),
        (None, Rewrite::None, "/v1/orders", "/", Some("")),
        (Some("/api"), Rewrite::Other, "/v1/orders", "/x", Some("/api")),
        (None, to("/orders"), "/v1/orders", "/orders", Some("/v1/orders")),
        (None, to("/orders"), "/v1/orders", "", Some("/v1")),
        (None, to(""), "/v1/orders", "", Some("/v1/orders")),
        (None, to(""), "/v1", "/orders", Some("/v1/orders")),
        (None, to("/orders"), "/v1/bestellungen", "", None),
        (None, to("/orders"), "/v1", "/order", None),
        (None, Rewrite::Other, "/v1", "", None),
    ] {
        let found = bases(base, rewrite.clone(), from, own);
        assert_eq!(found.as_deref().ok(), expected, "{rewrite:?} {from} {own}: {found:?}");
    }
}

proptest! {
    /// Whatever the prefixes: what callers write, moved as the route moves it, is what the service is asked.
    #[test]
    fn a_published_path_leads_to_the_documents_own(
        from in "(/[a-c]{1,2}){0,3}", to in "(/[a-c]{1,2}){0,2}", own in "(/[a-c]{1,2}){0,2}", path in "(/[a-c]{1,2}){1,2}",
    ) {
        let place = Place { base: None, rewrite: Rewrite::Prefix(to.clone()), matches: vec![prefix(&from, &[])] };
        if let Ok(bases) = place.bases(&own) {
            let public = format!("{}{path}", bases[0]);
            // Paths outside the route are left out of the document.
            if let Some(rest) = public.strip_prefix(from.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                prop_assert_eq!(format!("{to}{rest}"), format!("{own}{path}"));
            }
        }
    }
}

#[test]
fn documents_that_cannot_be_published() {
    let place = Place { base: None, rewrite: Rewrite::None, matches: vec![prefix("/", &[])] };
    for (at, text, message) in [
        ("old", "swagger: '2.0'\nhost: a", "no OpenAPI 3 document"),
        ("list", "[1, 2]", "is an object"),
        (
            "apart",
            "openapi: 3.1.0\npaths: { /a: { get: { responses: { default: { $ref: './r.yaml' } } } } }",
            "leads out",
        ),
        ("bad", "openapi: [", "api.yaml"),
    ] {
        let (_folder, file) = Folder::with(at, text);
        let found = Document::compile(&file, &place).err().unwrap_or_else(|| panic!("{text}"));
        assert!(found.contains(message), "{found}");
    }
    assert!(Document::compile(Path::new("/no/such/file"), &place).is_err());
    let (_folder, file) = Folder::with("least", "openapi: 3.0.3");
    let least = Document::compile(&file, &place).expect("published").made;
    assert_eq!(least.json(&[]), r#"{"openapi":"3.0.3","servers":[]}"#);
    assert!(serde_saphyr::from_str::<Value>(&least.yaml(&[])).is_ok());
}

#[test]
fn mistakes() {
    let noted = |note: Value| surface("orders", vec![prefix("/o", &[])], json!({ "describe": note }));
    let exact = Surface {
        matches: vec![Shown { path: ShownPath::Exact("/portal".to_owned()), methods: Vec::new() }],
        ..portal(json!({}))
    };
    for (config, own, other, message) in [
        (
            json!({ "listeners": ["publik"], "baseUrl": "https://a.b" }),
            portal(json!({})),
            noted(json!({})),
            "no listener",
        ),
        (json!({ "listeners": ["public"] }), portal(json!({})), noted(json!({})), "not known where"),
        (json!({ "baseUrl": "https://a.b/c" }), portal(json!({})), noted(json!({})), "host and port alone"),
        (json!({ "baseUrl": "ftp://a.b" }), portal(json!({})), noted(json!({})), "host and port alone"),
        (json!({}), exact, noted(json!({})), "below the catalogue's own path"),
    ] {
        let found = made(config.clone(), vec![own, other]).err().unwrap_or_else(|| panic!("{config}")).to_string();
        assert!(found.contains(message), "{config}: {found}");
    }
    let Role::Note(judge) = describe::ENTRY.role else { panic!("a note") };
    for (surfaces, note, message) in [
        (vec![], json!({}), "no catalogue"),
        (vec![portal(json!({}))], json!({ "basePath": "/v1" }), "belongs to `openapi`"),
        (vec![portal(json!({}))], json!({ "openapi": "a.yaml", "basePath": "v1" }), "does not begin"),
        (vec![portal(json!({}))], json!({ "openapi": "a.yaml" }), "a.yaml"),
        (vec![portal(json!({}))], json!({ "allow": "1 +" }), "not an expression"),
    ] {
        let surfaces = surfaces.into_iter().chain([noted(note.clone())]).collect();
        let directory = Directory { surfaces, ..Directory::default() };
        let found = judge(&section(note), &mut Estate::default().build("routes.orders", &directory));
        let found = found.expect_err(message).to_string();
        assert!(found.contains(message), "{found}");
    }
}
