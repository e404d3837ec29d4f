use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use prost::Message;
use serde_json::json;

use super::core::{ASSIGNMENT, Client, Mode, Question, RESOURCE};
use super::proto::{
    self, Address, ClusterLoadAssignment, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
    DiscoveryResponse, Endpoint, Kind, LbEndpoint, Locality, LocalityLbEndpoints, Metadata, Number, Pipe, Resource,
    ResourceError, ResourceName, SocketAddress, Status, Struct, Value,
};
use super::*;
use crate::api::fixture::{Estate, section};
use crate::contract::duplex::stub::Calls;
use crate::contract::mesh::Found;
use crate::contract::{Directory, Moment};
use crate::mesh::discover::stub::{followed, shown};

fn lb(address: &str, port: u32) -> LbEndpoint {
    let socket_address = Some(SocketAddress { protocol: 0, address: address.to_owned(), port_value: port });
    let address = Some(Address { socket_address, pipe: None });
    LbEndpoint { endpoint: Some(Endpoint { address }), ..LbEndpoint::default() }
}

fn locality(zone: &str, weight: Option<u32>, lb_endpoints: Vec<LbEndpoint>) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: Some(Locality { region: "eu".to_owned(), zone: zone.to_owned(), sub_zone: String::new() }),
        lb_endpoints,
        load_balancing_weight: weight.map(|value| Number { value }),
        priority: 0,
    }
}

fn assignment(name: &str, endpoints: Vec<LocalityLbEndpoints>) -> ClusterLoadAssignment {
    ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints }
}

/// One endpoint, or one without an address.
fn simple(name: &str, port: Option<u32>) -> ClusterLoadAssignment {
    let endpoint = port.map_or_else(LbEndpoint::default, |port| lb("10.0.0.1", port));
    assignment(name, vec![locality("a", None, vec![endpoint])])
}

fn packed(assignment: &ClusterLoadAssignment) -> proto::Any {
    proto::Any { type_url: ASSIGNMENT.to_owned(), value: assignment.encode_to_vec().into() }
}

mod assignments {
    use super::*;

    fn read(endpoints: Vec<LocalityLbEndpoints>) -> Result<Vec<Found>, String> {
        assignment::read(&assignment("orders", endpoints))
    }

    #[test]
    fn health_zone_labels_and_sockets_are_read() {
        let with = |port, health_status| LbEndpoint { health_status, ..lb("10.0.0.1", port) };
        let mut labelled = lb("::1", 80);
        let value = |kind| Value { kind: Some(kind) };
        let fields = [
            ("version".to_owned(), value(Kind::Text("v2".to_owned()))),
            ("stage".to_owned(), value(Kind::Number(3.0))),
            ("canary".to_owned(), value(Kind::Bool(true))),
            ("nested".to_owned(), value(Kind::Struct(Struct::default()))),
        ];
        let metadata = Metadata {
            filter_metadata: [
                ("envoy.lb".to_owned(), Struct { fields: fields.into() }),
                ("other".to_owned(), Struct { fields: [("x".to_owned(), value(Kind::Bool(true)))].into() }),
            ]
            .into(),
        };
        labelled.metadata = Some(metadata);
        let mut pipe = lb("", 0);
        pipe.endpoint = Some(Endpoint {
            address: Some(Address { socket_address: None, pipe: Some(Pipe { path: "/run/a.sock".to_owned() }) }),
        });
        let all = (0..=6).map(|health| with(1000 + u32::from(health as u8), health));
        let found = read(vec![locality("a", None, all.chain([labelled]).collect()), locality("", None, vec![pipe])]);
        let found = found.expect("good");
        assert_eq!(
            shown(&found),
            [
                "10.0.0.1:1000 x1 a",
                "10.0.0.1:1001 x1 a",
                "10.0.0.1:1005 x1 a",
                "[::1]:80 x1 a",
                "unix:///run/a.sock x1 eu"
            ],
            "unknown, healthy and degraded"
        );
        assert_eq!(found.iter().map(|f| f.priority).collect::<Vec<_>>(), [0, 0, 1, 0, 0], "degraded comes last");
        let labels: Vec<_> = found[3].labels.iter().collect();
        assert_eq!(labels, [("canary", "true"), ("stage", "3"), ("version", "v2")]);
    }

    #[test]
    fn a_locality_deals_out_what_it_gets() {
        let weighted =
            |port, value| LbEndpoint { load_balancing_weight: Some(Number { value }), ..lb("10.0.0.1", port) };
        let weights = |localities| read(localities).expect("good").iter().map(|f| f.weight).collect::<Vec<_>>();
        let two = || vec![weighted(1, 3), weighted(2, 1)];
        assert_eq!(weights(vec![locality("a", None, two()), locality("b", None, vec![lb("10.0.0.2", 1)])]), [3, 1, 1]);
        // As Istio writes it: a locality's weight is the sum of its endpoints'.
        assert_eq!(
            weights(vec![locality("a", Some(4), two()), locality("b", Some(1), vec![lb("10.0.0.2", 1)])]),
            [3, 1, 1]
        );
        assert_eq!(
            weights(vec![locality("a", Some(1), two()), locality("b", Some(1), vec![lb("10.0.0.2", 1)])]),
            [300, 100, 400],
            "both zones get the same"
        );
        assert_eq!(
            weights(vec![locality("a", None, two()), locality("b", Some(7), vec![lb("10.0.0.2", 1)])]),
            [0, 0, 7],
            "beside a locality with a weight one without gets nothing"
        );
        let huge = vec![locality("a", Some(u32::MAX), vec![weighted(1, u32::MAX), weighted(2, 1)])];
        assert_eq!(weights(huge), [1_000_000, 1]);
        assert_eq!(weights(vec![locality("a", Some(1), vec![weighted(1, 0)])]), [0], "drained");
    }

    #[test]
    fn tiers_have_no_gaps() {
        let at = |priority, port| LocalityLbEndpoints { priority, ..locality("a", None, vec![lb("10.0.0.1", port)]) };
        let found = read(vec![at(1, 2), at(0, 1)]).expect("good");
        assert_eq!(found.iter().map(|f| f.priority).collect::<Vec<_>>(), [0, 1]);
        assert!(read(vec![at(0, 1), at(2, 2)]).expect_err("a gap").contains("priority 1"));
        assert!(read(vec![at(1, 1)]).expect_err("a gap").contains("priority 0"));
        assert_eq!(read(vec![]), Ok(vec![]));
    }

    #[test]
    fn what_cannot_be_called_is_refused() {
        let mut udp = lb("10.0.0.1", 80);
        if let Some(at) = udp.endpoint.as_mut().and_then(|e| e.address.as_mut()).and_then(|a| a.socket_address.as_mut())
        {
            at.protocol = 1;
        }
        let mut nowhere = lb("10.0.0.1", 80);
        nowhere.endpoint = Some(Endpoint { address: Some(Address::default()) });
        let hurt = LbEndpoint { health_status: 2, ..LbEndpoint::default() };
        for (endpoint, expected) in [
            (LbEndpoint::default(), "no address"),
            (hurt, "no address"),
            (lb("orders.svc", 80), "not an IP"),
            (lb("10.0.0.1", 0), "no port"),
            (lb("10.0.0.1", 65_536), "no port"),
            (udp, "not TCP"),
            (nowhere, "neither"),
        ] {
            let why = read(vec![locality("a", None, vec![lb("10.0.0.2", 1), endpoint])]).expect_err("refused");
            assert!(why.contains(expected), "{why}");
        }
    }
}

const START: Moment = Moment(1_000_000_000);

fn after(seconds: u64) -> Moment {
    START + Duration::from_secs(seconds)
}

fn client(mode: Mode) -> Client {
    Client::new(mode, proto::Node { id: "n".to_owned(), ..proto::Node::default() }, Duration::from_secs(15))
}

fn sotw(version: &str, nonce: &str, resources: Vec<proto::Any>) -> Vec<u8> {
    let response = DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: nonce.to_owned(),
        type_url: ASSIGNMENT.to_owned(),
        resources,
        resource_errors: vec![],
    };
    response.encode_to_vec()
}

fn delta(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> Vec<u8> {
    let response = DeltaDiscoveryResponse {
        nonce: nonce.to_owned(),
        type_url: ASSIGNMENT.to_owned(),
        resources,
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    };
    response.encode_to_vec()
}

fn named(version: &str, assignment: &ClusterLoadAssignment) -> Resource {
    let (name, resource) = (assignment.cluster_name.clone(), Some(packed(assignment)));
    Resource { version: version.to_owned(), resource, name, ttl: None }
}

fn heartbeat(name: &str, seconds: i64) -> Resource {
    Resource { name: name.to_owned(), ttl: Some(proto::Duration { seconds, nanos: 0 }), ..Resource::default() }
}

fn asked_sotw(question: Option<Question>) -> DiscoveryRequest {
    match question {
        Some(Question::Sotw(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn asked_delta(question: Option<Question>) -> DeltaDiscoveryRequest {
    match question {
        Some(Question::Delta(request)) => request,
        other => panic!("{other:?}"),
    }
}

/// What was told, short: `orders: 10.0.0.1:80` or `orders! why`.
fn said(told: &[core::Told]) -> Vec<String> {
    let one = |(name, outcome): &core::Told| match outcome {
        Ok(found) => format!("{name}: {}", found.iter().map(|f| f.address.to_string()).collect::<Vec<_>>().join(" ")),
        Err(why) => format!("{name}! {why}"),
    };
    told.iter().map(one).collect()
}

#[test]
fn state_of_the_world() {
    let mut client = client(Mode::Sotw);
    client.opened();
    assert_eq!(client.ask(START), None, "a question without a name would ask for everything");
    assert!(client.want("orders").is_none());
    assert!(client.want("stock").is_none());
    let first = asked_sotw(client.ask(START));
    assert_eq!(first.resource_names, ["orders", "stock"]);
    assert_eq!((&*first.type_url, &*first.version_info, &*first.response_nonce), (ASSIGNMENT, "", ""));
    assert_eq!(first.node.expect("said once").id, "n");
    assert_eq!(client.ask(START), None, "nothing new");

    let both =
        vec![packed(&simple("orders", Some(1))), packed(&simple("stock", Some(2))), packed(&simple("other", Some(3)))];
    let (ack, told) = client.take(&sotw("v1", "a", both), START).expect("good");
    let ack = asked_sotw(ack);
    assert_eq!((&*ack.version_info, &*ack.response_nonce, ack.error_detail), ("v1", "a", None));
    assert!(ack.node.is_none());
    assert_eq!(ack.resource_names.len(), 2);
    assert_eq!(said(&told), ["orders: 10.0.0.1:1", "stock: 10.0.0.1:2"]);

    // One is wrong: the version stays, the other is used, the reason is said on both sides.
    let both = vec![packed(&simple("orders", None)), packed(&simple("stock", Some(4)))];
    let (nack, told) = client.take(&sotw("v2", "b", both), START).expect("good");
    let nack = asked_sotw(nack);
    assert_eq!((&*nack.version_info, &*nack.response_nonce), ("v1", "b"));
    let detail = nack.error_detail.expect("why");
    assert_eq!((detail.code, &*detail.message), (3, "orders: an endpoint has no address"));
    assert_eq!(
        said(&told),
        ["orders! the control plane's answer is wrong: an endpoint has no address", "stock: 10.0.0.1:4"]
    );
    assert_eq!(client.want("orders").map(|found| shown(&found)), Some(vec!["10.0.0.1:1 x1 a".to_owned()]));

    // What an answer does not speak of stays; names that change are asked with the latest nonce.
    let (_, told) = client.take(&sotw("v3", "c", vec![]), START).expect("good");
    assert_eq!(said(&told), [] as [&str; 0]);
    client.forget("stock");
    let fewer = asked_sotw(client.ask(START));
    assert_eq!(
        (&*fewer.version_info, &*fewer.response_nonce, &fewer.resource_names[..]),
        ("v3", "c", &["orders".to_owned()][..])
    );

    // A new stream: nonces are of the old one, the version is not.
    client.closed();
    assert_eq!(client.ask(START), None);
    assert_eq!(said(&client.failed("gone")), ["orders! gone"]);
    client.opened();
    let again = asked_sotw(client.ask(START));
    assert_eq!((&*again.version_info, &*again.response_nonce, again.node.is_some()), ("v3", "", true));
    // With something new among the names a version would say that it is held, too.
    client.closed();
    client.want("fresh");
    client.opened();
    assert_eq!(asked_sotw(client.ask(START)).version_info, "");
}

#[test]
fn increments() {
    let mut client = client(Mode::Delta);
    client.want("orders");
    client.opened();
    let first = asked_delta(client.ask(START));
    assert_eq!(first.resource_names_subscribe, ["orders"]);
    assert!(first.node.is_some() && first.initial_resource_versions.is_empty());
    let (ack, told) = client.take(&delta("a", vec![named("1", &simple("orders", Some(1)))], &[]), START).expect("good");
    let ack = asked_delta(ack);
    assert_eq!((&*ack.response_nonce, ack.error_detail.is_none(), ack.resource_names_subscribe.len()), ("a", true, 0));
    assert_eq!(said(&told), ["orders: 10.0.0.1:1"]);

    client.want("stock");
    let more = asked_delta(client.ask(START));
    assert_eq!((&more.resource_names_subscribe[..], &*more.response_nonce), (&["stock".to_owned()][..], ""));
    let answer = delta("b", vec![named("2", &simple("orders", None)), named("1", &simple("stock", Some(2)))], &[]);
    let (nack, told) = client.take(&answer, START).expect("good");
    assert!(asked_delta(nack).error_detail.expect("why").message.starts_with("orders: "));
    assert_eq!(told.len(), 2);

    let (_, told) = client.take(&delta("c", vec![], &["stock", "unknown"]), START).expect("good");
    assert_eq!(said(&told), ["stock: "], "removed");

    client.closed();
    client.opened();
    let again = asked_delta(client.ask(START));
    assert_eq!(again.initial_resource_versions, [("orders".to_owned(), "1".to_owned())].into(), "the last good one");
    assert_eq!(again.resource_names_subscribe, ["orders", "stock"]);
    client.forget("stock");
    assert_eq!(asked_delta(client.ask(START)).resource_names_unsubscribe, ["stock"]);
}

#[test]
fn silence_means_something() {
    let mut client = client(Mode::Delta);
    client.want("orders");
    client.opened();
    client.ask(START);
    assert_eq!(client.next(), Some(after(15)));
    assert_eq!(said(&client.tick(after(14))), [] as [&str; 0]);
    assert_eq!(said(&client.tick(after(15))), ["orders! the control plane has not told of it within 15s"]);
    assert_eq!(said(&client.tick(after(99))), [] as [&str; 0], "told once");
    assert_eq!(client.next(), None);
    client.take(&delta("a", vec![named("1", &simple("orders", Some(1)))], &[]), START).expect("good");
    client.closed();
    client.opened();
    client.ask(after(20));
    assert_eq!(client.next(), Some(after(23)));
    assert_eq!(said(&client.tick(after(23))), ["orders: 10.0.0.1:1"], "what we said we hold is what there is");
    assert_eq!(client.next(), None);

    let mut patient = Client::new(Mode::Sotw, proto::Node::default(), Duration::ZERO);
    patient.want("orders");
    patient.opened();
    patient.ask(START);
    assert_eq!(patient.next(), None, "no patience is set");
    assert_eq!(said(&patient.tick(after(9999))), [] as [&str; 0]);
}

#[test]
fn lifetimes_end_without_a_heartbeat() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let answer = |nonce: &str, resource: Resource| match mode {
            Mode::Delta => delta(nonce, vec![resource], &[]),
            Mode::Sotw => {
                let wrapped = proto::Any { type_url: RESOURCE.to_owned(), value: resource.encode_to_vec().into() };
                sotw(nonce, nonce, vec![wrapped])
            }
        };
        let mut client = client(mode);
        client.want("orders");
        client.opened();
        client.ask(START);
        client.take(&answer("x", heartbeat("orders", 9)), START).expect("of what is not held: nothing");
        let lasting = Resource { ttl: heartbeat("", 10).ttl, ..named("1", &simple("orders", Some(1))) };
        let (_, told) = client.take(&answer("a", lasting), START).expect("good");
        assert_eq!(said(&told), ["orders: 10.0.0.1:1"]);
        assert_eq!(client.next(), Some(after(10)));
        let (ack, _) = client.take(&answer("b", heartbeat("orders", 10)), after(9)).expect("good");
        assert!(ack.expect("acknowledged").wrong().is_none());
        assert_eq!(said(&client.tick(after(10))), [] as [&str; 0]);
        client.closed();
        assert_eq!(said(&client.tick(after(19))), ["orders: "], "also while nobody can be asked");
        assert_eq!(client.next(), None);
    }
}

#[test]
fn answers_that_are_no_answers() {
    let mut client = client(Mode::Sotw);
    client.want("orders");
    client.opened();
    client.ask(START);
    assert!(client.take(b"\xff", START).is_err(), "the stream is over");
    let other = DiscoveryResponse { type_url: "x".to_owned(), ..DiscoveryResponse::default() };
    assert_eq!(client.take(&other.encode_to_vec(), START).expect("ignored"), (None, vec![]));
    let twice = vec![packed(&simple("orders", Some(1))), packed(&simple("orders", Some(2)))];
    let odd = proto::Any { type_url: "x".to_owned(), value: vec![].into() };
    let broken = proto::Any { type_url: ASSIGNMENT.to_owned(), value: vec![0xff].into() };
    let empty = proto::Any { type_url: RESOURCE.to_owned(), value: vec![].into() };
    for (resources, expected) in [
        (twice, "comes twice"),
        (vec![odd], "it is a `x`"),
        (vec![broken], "cannot be decoded"),
        (vec![packed(&simple("", Some(1)))], "no name"),
        (vec![empty], "neither a name nor a content"),
    ] {
        let (nack, _) = client.take(&sotw("v", "n", resources), START).expect("refused, not fatal");
        let nack = nack.expect("a NACK");
        assert!(nack.wrong().is_some_and(|why| why.contains(expected)), "{nack:?}");
    }
    let error = ResourceError {
        resource_name: Some(ResourceName { name: "orders".to_owned() }),
        error_detail: Some(Status { code: 5, message: "who?".to_owned() }),
    };
    let told = DiscoveryResponse {
        type_url: ASSIGNMENT.to_owned(),
        resource_errors: vec![error],
        ..DiscoveryResponse::default()
    };
    let (ack, told) = client.take(&told.encode_to_vec(), START).expect("good");
    assert!(ack.expect("acknowledged").wrong().is_none());
    assert_eq!(said(&told), ["orders! the control plane has no answer: status 5: who?"]);
    assert_eq!(client.next(), None, "it was told of");
}

proptest! {
    /// Whatever comes, every answer gets exactly one question with its nonce, and what is held is the last good one.
    #[test]
    fn the_last_good_one_is_held(
        is_delta: bool,
        answers in prop::collection::vec(prop::collection::vec((0..3usize, prop::option::of(1..9u32)), 0..4), 0..20),
    ) {
        let names = ["a", "b", "c"];
        let mut client = client(if is_delta { Mode::Delta } else { Mode::Sotw });
        client.want("a");
        client.want("b");
        client.opened();
        client.ask(START);
        let (mut good, mut version) = (BTreeMap::new(), String::new());
        for (n, answer) in answers.iter().enumerate() {
            let nonce = n.to_string();
            let mut seen = std::collections::BTreeSet::new();
            let mut wrong = false;
            for (name, port) in answer {
                // A name that comes again does not count.
                if !seen.insert(*name) {
                    wrong = true;
                } else if *name < 2 {
                    match port {
                        Some(port) => drop(good.insert(*name, *port)),
                        None => wrong = true,
                    }
                }
            }
            let list = answer.iter().map(|(name, port)| simple(names[*name], *port));
            let message = if is_delta {
                delta(&nonce, list.map(|a| named("v", &a)).collect(), &[])
            } else {
                sotw(&nonce, &nonce, list.map(|a| packed(&a)).collect())
            };
            let (question, _) = client.take(&message, START).expect("not fatal");
            let question = question.expect("one for each");
            prop_assert_eq!(question.wrong().is_some(), wrong);
            if !wrong {
                version.clone_from(&nonce);
            }
            match question {
                Question::Sotw(q) => prop_assert_eq!((q.response_nonce, &q.version_info), (nonce, &version)),
                Question::Delta(q) => prop_assert_eq!(q.response_nonce, nonce),
            }
            for (index, name) in names.iter().take(2).enumerate() {
                let held = client.want(name).map(|found| shown(&found));
                prop_assert_eq!(held, good.get(&index).map(|port| vec![format!("10.0.0.1:{port} x1 a")]));
            }
        }
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for mode in [Mode::Delta, Mode::Sotw] {
            let mut client = client(mode);
            client.want("orders");
            client.opened();
            client.ask(START);
            let _ = client.take(&bytes, START);
        }
    }
}

fn built(config: serde_json::Value) -> Result<Arc<dyn Discover>, String> {
    let directory = Directory::default();
    let mut estate = Estate::default();
    let built = build(&section(config), &mut estate.build("services.stock", &directory));
    built.map_err(|e| e.to_string())
}

#[test]
fn mistakes_are_named() {
    for (config, expected) in [
        (json!({"service": "", "servers": ["http://a:1"]}), "has a name"),
        (json!({"service": "a", "servers": []}), "no server"),
        (json!({"service": "a", "servers": ["a:1"]}), "neither https nor http"),
        (json!({"service": "a", "servers": ["http://a:1"], "mode": "full"}), "full"),
        (json!({"service": "a", "servers": ["http://a:1"], "cert": "x.pem"}), "come together"),
        (json!({"service": "a", "servers": ["https://a:1"], "ca": "no.pem"}), "no.pem"),
        (json!({"service": "a", "servers": ["http://a:1"], "token": {"file": "none"}}), "none"),
    ] {
        let error = built(config).err().expect("refused");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn services_share_a_stream_unless_they_say_otherwise() {
    let directory = Directory::default();
    let mut estate = Estate::default();
    let mut ads = |service: &str, mode: &str| {
        let config = json!({"service": service, "servers": ["http://127.0.0.1:1"], "mode": mode,
            "node": {"id": "x", "metadata": {"k": [1, "b", null, true, {"a": {}}]}}});
        let eds = eds(&section(config), &mut estate.build(&format!("services.{service}"), &directory));
        let eds = eds.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(eds.describe(), format!("eds {service} at http://127.0.0.1:1/"));
        eds.ads
    };
    let one = ads("a", "delta");
    assert!(Arc::ptr_eq(&one, &ads("b", "delta")));
    assert!(!Arc::ptr_eq(&one, &ads("b", "sotw")));
}

/// Reads one question, and answers each with what comes next.
async fn plane(mut calls: Calls, answers: Vec<Vec<u8>>) -> Vec<DeltaDiscoveryRequest> {
    let mut asked = Vec::new();
    let mut call = calls.next().await;
    for answer in answers {
        asked.push(DeltaDiscoveryRequest::decode(&*call.message().await).expect("a question"));
        call.send(&answer);
    }
    asked.push(DeltaDiscoveryRequest::decode(&*call.message().await).expect("a question"));
    assert_eq!(call.head.uri.path(), "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources");
    assert_eq!(call.head.headers["authorization"], "Bearer s3cret");
    asked
}

#[tokio::test]
async fn a_stream_is_followed_over_its_end() {
    let calls = Calls::start().await;
    let config = json!({"service": "orders", "servers": ["http://127.0.0.1:1", calls.url], "token": "s3cret"});
    let discover = built(config).expect("good");
    let mut reports = followed(&*discover);
    let why = reports.recv().await.expect("told").expect_err("the first server is not there");
    assert!(why.starts_with("http://127.0.0.1:1/: connect: "), "{why}");
    let url = calls.url.clone();
    let answer = |n, port| delta(n, vec![named(n, &simple("orders", Some(port)))], &[]);
    let asked = plane(calls, vec![answer("1", 1), answer("2", 2)]).await;
    assert_eq!(asked[2].response_nonce, "2", "acknowledged");
    for port in [1, 2] {
        let found = reports.recv().await.expect("told").expect("good");
        assert_eq!(shown(&found), [format!("10.0.0.1:{port} x1 a")]);
    }
    // The server is gone: the stream ended, which is not told before another attempt fails.
    let why = reports.recv().await.expect("told").expect_err("gone");
    assert!(why.contains("connect"), "{why} ({url})");
}
