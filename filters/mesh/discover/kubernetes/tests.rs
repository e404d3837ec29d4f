use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

use super::slices::{EndpointSlice, Slices};
use super::*;
use crate::api::fixture::{Estate, section};
use crate::contract::Directory;
use crate::contract::mesh::Found;
use crate::mesh::discover::stub::{self, Stub, followed, shown};

/// An endpoint: address, ready, serving, terminating (0 = not said).
fn endpoint(address: &str, uid: &str, conditions: [u8; 3]) -> Value {
    let said = |n: u8| (n != 0).then_some(n == 1);
    let [ready, serving, terminating] = conditions.map(said);
    json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "name": format!("pod-{uid}"), "uid": uid},
        "nodeName": "node-1",
        "zone": "eu-1a",
    })
}

const READY: [u8; 3] = [1, 1, 2];
const LEAVING: [u8; 3] = [2, 1, 1];
const DOWN: [u8; 3] = [2, 2, 2];

fn slice(name: &str, kind: &str, endpoints: Vec<Value>) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": "5"},
        "addressType": kind,
        "endpoints": endpoints,
        "ports": [
            {"name": "udp", "port": 53, "protocol": "UDP"},
            {"name": "grpc", "port": 9000, "protocol": "TCP"},
            {"name": "http", "port": 8080},
        ],
    })
}

fn read(slices: &[Value], port: Option<&str>, family: Family) -> Result<Vec<Found>, String> {
    let mut all = Slices::default();
    for slice in slices {
        all.put(serde_json::from_value::<EndpointSlice>(slice.clone()).expect("a slice"));
    }
    all.endpoints(port.map(|name| Port::Name(name.to_owned())).as_ref(), family)
}

fn addresses(slices: &[Value], family: Family) -> Vec<String> {
    let found = read(slices, Some("grpc"), family).expect("good");
    found.iter().map(|f| f.address.to_string()).collect()
}

#[test]
fn slices_are_one_set() {
    let one = slice("a", "IPv4", vec![endpoint("10.0.0.1", "u1", READY), endpoint("10.0.0.2", "u2", DOWN)]);
    let two = slice("b", "IPv4", vec![endpoint("10.0.0.3", "u3", [0, 0, 0]), endpoint("10.0.0.1", "u1", READY)]);
    let names = slice("c", "FQDN", vec![endpoint("a.example", "u4", READY)]);
    let found = read(&[one, two, names], Some("grpc"), Family::Auto).expect("good");
    assert_eq!(shown(&found), ["10.0.0.1:9000 x1 eu-1a", "10.0.0.3:9000 x1 eu-1a"], "what is not said is ready");
    assert_eq!(found[0].labels.iter().collect::<Vec<_>>(), [("node", "node-1"), ("pod", "pod-u1")]);
    assert_eq!(found[0].identity.as_deref(), Some("u1"));
    let null = json!({"metadata": {"name": "n"}, "addressType": "IPv4", "endpoints": null, "ports": null});
    assert_eq!(read(&[null], Some("grpc"), Family::Auto), Ok(vec![]));
}

#[test]
fn those_that_leave_are_the_last_resort() {
    let leaving = || endpoint("10.0.0.1", "u1", LEAVING);
    let ready = || endpoint("10.0.0.2", "u2", READY);
    assert_eq!(addresses(&[slice("a", "IPv4", vec![leaving(), ready()])], Family::Auto), ["10.0.0.2:9000"]);
    let apart = [slice("a", "IPv4", vec![leaving()]), slice("b", "IPv4", vec![ready()])];
    assert_eq!(addresses(&apart, Family::Auto), ["10.0.0.2:9000"], "over all slices");
    let none = slice("a", "IPv4", vec![leaving(), endpoint("10.0.0.3", "u3", DOWN)]);
    assert_eq!(addresses(&[none], Family::Auto), ["10.0.0.1:9000"]);
    let gone = slice("a", "IPv4", vec![endpoint("10.0.0.4", "u4", [2, 2, 1])]);
    assert!(addresses(&[gone], Family::Auto).is_empty(), "it leaves and no longer answers");
}

#[test]
fn one_family_of_each_endpoint() {
    let both = [
        slice("four", "IPv4", vec![endpoint("10.0.0.1", "u1", READY)]),
        slice("six", "IPv6", vec![endpoint("fd00::1", "u1", READY), endpoint("fd00::2", "u2", READY)]),
    ];
    assert_eq!(addresses(&both, Family::Auto), ["10.0.0.1:9000", "[fd00::2]:9000"]);
    assert_eq!(addresses(&both, Family::V4), ["10.0.0.1:9000"]);
    assert_eq!(addresses(&both, Family::V6), ["[fd00::1]:9000", "[fd00::2]:9000"]);
    assert_eq!(addresses(&both, Family::All).len(), 3);
}

#[test]
fn ports_are_found_by_name() {
    let one = [slice("a", "IPv4", vec![endpoint("10.0.0.1", "u1", READY)])];
    assert_eq!(shown(&read(&one, Some("http"), Family::Auto).expect("good")), ["10.0.0.1:8080 x1 eu-1a"]);
    assert!(read(&one, Some("udp"), Family::Auto).expect_err("UDP").contains("`udp`"));
    assert!(read(&one, Some("other"), Family::Auto).expect_err("none").contains("`other`"));
    assert!(read(&one, None, Family::Auto).expect_err("two").contains("several ports"));
    let mut sole = one[0].clone();
    sole["ports"] = json!([{"name": "", "port": 80}]);
    assert_eq!(shown(&read(&[sole.clone()], None, Family::Auto).expect("good")), ["10.0.0.1:80 x1 eu-1a"]);
    assert_eq!(shown(&read(&[sole], Some(""), Family::Auto).expect("good")), ["10.0.0.1:80 x1 eu-1a"]);
}

fn built(config: Value) -> Result<Arc<dyn Discover>, String> {
    let directory = Directory::default();
    let mut estate = Estate::default();
    build(&section(config), &mut estate.build("services.stock", &directory)).map_err(|e| e.to_string())
}

#[test]
fn the_short_form() {
    for (text, described) in [
        ("shop/stock:grpc", "kubernetes shop/stock:grpc"),
        ("shop/stock:80", "kubernetes shop/stock:80"),
        ("stock", "kubernetes stock"),
        ("stock:8080", "kubernetes stock:8080"),
    ] {
        assert_eq!(built(json!(text)).expect("good").describe(), described);
    }
    let full = json!({"service": "stock", "namespace": "shop", "port": 80, "family": "v6"});
    assert_eq!(built(full).expect("good").describe(), "kubernetes shop/stock:80");
}

#[test]
fn mistakes_are_named() {
    for (config, expected) in [
        (json!("shop/stock/grpc"), "not a name"),
        (json!("Shop/stock"), "not a name"),
        (json!("stock:0"), "neither"),
        (json!("stock:99999"), "neither"),
        (json!("stock:"), "neither"),
        (json!({"service": "-x"}), "not a name"),
        (json!({"service": "x", "port": 0}), "port 0"),
        (json!({"service": "x", "port": "G"}), "name of a port"),
        (json!({"service": "x", "port": true}), "name or number"),
        (json!({"service": "x", "context": "c"}), "kubeconfig"),
        (json!({"service": "x", "kubeconfig": "none"}), "none"),
        (json!({"service": "x", "adressType": "IPv4"}), "adressType"),
    ] {
        let error = built(config).err().expect("refused");
        assert!(error.contains(expected), "{error}");
    }
}

fn kubeconfig(dir: &Path, server: &str, user: &str) -> PathBuf {
    let file = dir.join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: main\npreferences: {{}}\n\
         clusters: [{{ name: c, cluster: {{ server: '{server}' }} }}]\n\
         contexts:\n\
         - {{ name: main, context: {{ cluster: c, user: u, namespace: shop }} }}\n\
         - {{ name: lost, context: {{ cluster: nowhere, user: u }} }}\n\
         users: [{{ name: u, user: {user} }}]\n"
    );
    std::fs::write(&file, text).expect("a file");
    file
}

#[test]
fn kubeconfigs_are_read() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("t"), "from-file\n").expect("a file");
    let header =
        |access: &Access| access.authorization().expect("readable").map(|v| v.to_str().expect("text").to_owned());
    for (user, expected) in [
        ("{ token: abc }", Some("Bearer abc")),
        ("{ tokenFile: t, token: old }", Some("Bearer from-file")),
        ("{}", None),
    ] {
        let file = kubeconfig(dir.path(), "http://127.0.0.1:1/k8s", user);
        let access = Access::of_kubeconfig(&file, None).expect("good");
        assert_eq!(access.namespace, "shop");
        assert_eq!(header(&access).as_deref(), expected);
    }
    let certificate = rcgen::generate_simple_self_signed(["me".to_owned()]).expect("a certificate");
    let data = |text: String| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let user = format!(
        "{{ client-certificate-data: {}, client-key-data: {} }}",
        data(certificate.cert.pem()),
        data(certificate.signing_key.serialize_pem())
    );
    Access::of_kubeconfig(&kubeconfig(dir.path(), "https://a:1", &user), None).expect("data");
    for (server, user, context, expected) in [
        ("https://a:1", "{ exec: { command: aws } }", None, "exec"),
        ("https://a:1", "{ client-certificate-data: '?', client-key-data: eA== }", None, "base64"),
        ("https://a:1", "{ client-certificate: no.pem, client-key: no.key }", None, "no.key"),
        ("http://10.0.0.1:1", "{ token: abc }", None, "not encrypted"),
        ("https://a:1", "{}", Some("lost"), "cluster `nowhere`"),
        ("https://a:1", "{}", Some("other"), "context `other`"),
    ] {
        let file = kubeconfig(dir.path(), server, user);
        let error = Access::of_kubeconfig(&file, context).err().expect("refused");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_pod_is_told_where_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificate = rcgen::generate_simple_self_signed(["kubernetes".to_owned()]).expect("a certificate");
    std::fs::write(dir.path().join("ca.crt"), certificate.cert.pem()).expect("a file");
    let access = Access::of_pod("fd00::1", "443", dir.path()).expect("good");
    assert_eq!((access.remote.uri().to_string().as_str(), &*access.namespace), ("https://[fd00::1]:443/", "default"));
    assert!(access.authorization().expect_err("no token yet").contains("token"));
    for text in ["one", "two\n"] {
        std::fs::write(dir.path().join("token"), text).expect("a file");
        let value = access.authorization().expect("readable").expect("one");
        assert_eq!(value.to_str().expect("text"), format!("Bearer {}", text.trim()), "read anew");
    }
    std::fs::write(dir.path().join("namespace"), "shop").expect("a file");
    assert_eq!(Access::of_pod("10.0.0.1", "443", dir.path()).expect("good").namespace, "shop");
}

fn list(version: &str, next: &str, items: Vec<Value>) -> http::Response<http_body_util::Full<Bytes>> {
    stub::json(json!({"metadata": {"resourceVersion": version, "continue": next}, "items": items}))
}

fn event(kind: &str, version: &str, slice: Value) -> String {
    let mut object = slice;
    object["metadata"]["resourceVersion"] = json!(version);
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn lines(all: &[String]) -> http::Response<http_body_util::Full<Bytes>> {
    http::Response::new(http_body_util::Full::new(all.concat().into()))
}

/// Answers in turn; hangs after the last.
async fn answering(answers: Vec<http::Response<http_body_util::Full<Bytes>>>) -> Stub {
    let answers = parking_lot::Mutex::new(answers.into_iter());
    Stub::start(move |_| {
        let answer = answers.lock().next();
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    })
    .await
}

fn discover(stub: &Stub, dir: &Path, port: Value) -> Arc<dyn Discover> {
    let file = kubeconfig(dir, &format!("{}/base", stub.url), "{ token: abc }");
    built(json!({"service": "stock", "port": port, "kubeconfig": file})).expect("good")
}

/// The next answer that differs from the one before.
async fn next(
    reports: &mut tokio::sync::mpsc::UnboundedReceiver<Result<Vec<Found>, String>>,
    before: &mut Vec<String>,
) -> Vec<String> {
    loop {
        let found = shown(&reports.recv().await.expect("told").expect("good"));
        if found != *before {
            before.clone_from(&found);
            return found;
        }
    }
}

#[tokio::test]
async fn changes_follow_a_list_and_an_expired_watch_begins_anew() {
    let pod = |n: u8| endpoint(&format!("10.0.0.{n}"), &format!("u{n}"), READY);
    let one = || slice("a", "IPv4", vec![pod(1)]);
    let two = || slice("b", "IPv4", vec![pod(2)]);
    let bookmark = json!({"metadata": {}});
    let gone =
        format!("{}\n", json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}));
    let stub = answering(vec![
        list("10", "more", vec![one()]),
        list("10", "", vec![two()]),
        lines(&[
            event("MODIFIED", "11", slice("a", "IPv4", vec![pod(1), pod(3)])),
            event("DELETED", "12", two()),
            event("BOOKMARK", "20", bookmark),
        ]),
        lines(&[gone]),
        list("30", "", vec![two()]),
        stub::status(410),
        list("40", "", vec![one()]),
    ])
    .await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut reports = followed(&*discover(&stub, dir.path(), json!("grpc")));
    let mut before = Vec::new();
    let at = |n: u8| format!("10.0.0.{n}:9000 x1 eu-1a");
    assert_eq!(next(&mut reports, &mut before).await, [at(1), at(2)], "both pages");
    assert_eq!(next(&mut reports, &mut before).await, [at(1), at(3)]);
    assert_eq!(next(&mut reports, &mut before).await, [at(2)], "read anew after 410 in a watch");
    assert_eq!(next(&mut reports, &mut before).await, [at(1)], "and after 410 instead of one");
    let asked = stub.asked.lock().clone();
    let path = "GET /base/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices\
                ?labelSelector=kubernetes.io%2Fservice-name%3Dstock";
    assert_eq!(asked[0], format!("{path}&limit=100&continue= "));
    assert_eq!(asked[1], format!("{path}&limit=100&continue=more "));
    assert!(asked[2].starts_with(&format!("{path}&watch=1&allowWatchBookmarks=true&resourceVersion=10&")), "{asked:?}");
    assert!(asked[3].contains("resourceVersion=20&"), "from the bookmark on: {asked:?}");
}

#[tokio::test]
async fn a_number_is_a_port_of_the_service() {
    let service = json!({"spec": {"ports": [{"port": 443, "name": "http"}, {"port": 80, "name": "grpc"}]}});
    let one = || slice("a", "IPv4", vec![endpoint("10.0.0.1", "u1", READY)]);
    for (service, port, expected) in [
        (stub::json(service.clone()), 443, Ok("10.0.0.1:8080 x1 eu-1a")),
        (stub::json(service), 9000, Err("no port 9000")),
        (stub::status(404), 9000, Ok("10.0.0.1:9000 x1 eu-1a")),
        (stub::status(403), 443, Err("status 403")),
    ] {
        let stub = answering(vec![service, list("1", "", vec![one()])]).await;
        let dir = tempfile::tempdir().expect("a folder");
        let mut reports = followed(&*discover(&stub, dir.path(), json!(port)));
        match (reports.recv().await.expect("told"), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(shown(&found), [expected]),
            (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn refusals_are_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let forbidden = || {
        let mut response = stub::json(json!({"kind": "Status", "code": 403, "message": "no such right\n"}));
        *response.status_mut() = http::StatusCode::FORBIDDEN;
        response
    };
    let stub = answering(vec![forbidden()]).await;
    let mut reports = followed(&*discover(&stub, dir.path(), json!("grpc")));
    let why = reports.recv().await.expect("told").expect_err("refused");
    assert_eq!(why, "EndpointSlices: status 403 no such right");

    // A watch that fails once is tried again before anything is told.
    let one = slice("a", "IPv4", vec![endpoint("10.0.0.1", "u1", READY)]);
    let stub = answering(vec![list("1", "", vec![one]), forbidden(), forbidden()]).await;
    // The first source goes on, and reads its file again.
    let dir = tempfile::tempdir().expect("a folder");
    let mut reports = followed(&*discover(&stub, dir.path(), json!("grpc")));
    assert_eq!(reports.recv().await.expect("told").expect("good").len(), 1);
    assert!(reports.recv().await.expect("told").expect_err("refused").starts_with("watch: status 403"));
}
