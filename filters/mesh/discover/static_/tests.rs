use crate::contract::Role;
use crate::contract::mesh::Discover;
use crate::mesh::bed::{self, Bed};
use crate::mesh::discover::dns::server::report;

fn build(json: &str) -> Result<std::sync::Arc<dyn Discover>, crate::contract::ConfigError> {
    let Role::Discover(build) = super::ENTRY.role else { panic!("a discovery kind") };
    Bed::default().build(|b| build(&bed::node(json), b))
}

#[test]
fn addresses_in_all_their_forms() {
    let made = build(r#"["127.0.0.1:80","unix:///run/a.sock",{"address":"[::1]:81","weight":0,"zone":"a","priority":1},"127.0.0.1:80"]"#)
        .expect("valid");
    let found = made.initial();
    assert_eq!(found.len(), 3, "duplicates are one");
    assert_eq!((found[2].weight, &*found[2].zone, found[2].priority), (0, "a", 1));
    assert!(made.watch(report().0).is_none(), "nothing to ask for");
    assert!(build(r#"["localhost:80"]"#).expect("a name").watch(report().0).is_some());
}

#[test]
fn what_is_wrong_is_said() {
    for bad in ["[]", r#"["127.0.0.1"]"#, r#"["http://a:80"]"#, r#"[{"address":"a:1","wait":1}]"#, r#"{"a":1}"#, "[1]"]
    {
        assert!(build(bad).is_err(), "{bad}");
    }
}
