use serde_json::json;

use super::*;
use crate::api::fixture::{Estate, holding, request, section};

fn identity(certificates: serde_json::Value) -> Result<Arc<dyn Authenticator>, ConfigError> {
    let directory = holding("certificates", certificates);
    build(&section(json!({})), &mut Estate::default().build("identities.partners", &directory))
}

fn shows(workload: Option<Workload>) -> RequestCx {
    let mut rq = request("GET", "/");
    rq.workload = workload.map(Arc::new);
    rq
}

fn judge(identity: &Arc<dyn Authenticator>, rq: &mut RequestCx) -> AuthVerdict {
    match identity.authenticate(rq) {
        AuthStep::Done(verdict) => verdict,
        AuthStep::Wait(_) => panic!("decided without waiting"),
    }
}

fn workload(id: &str, names: &[&str], subject: &str) -> Workload {
    let names = names.iter().map(|n| Arc::from(*n)).collect();
    Workload { id: id.into(), names, subject: subject.into(), thumbprint: [7; 32] }
}

#[test]
fn whole_names_find_their_owner() {
    const WEB: &str = "spiffe://corp/ns/web/sa/front";
    let print = "07:".repeat(31) + "07";
    let identity = identity(json!({
        "front": [WEB],
        "batch": ["subject:CN=batch,O=Corp", "dns:Batch.Shop"],
        "pinned": ["uri:https://pinned.example/"],
    }))
    .unwrap_or_else(|e| panic!("{e}"));
    for (workload, owner) in [
        (workload(WEB, &[WEB], "CN=x"), Some("front")),
        (workload("batch.shop", &["batch.shop"], "CN=y"), Some("batch")),
        (workload("CN=batch,O=Corp", &[], "CN=batch,O=Corp"), Some("batch")),
        (workload("batch.shop", &["batch.shop"], "CN=batch,O=Corp"), Some("batch")),
        (workload("a.shop", &["https://pinned.example/", "a.shop"], ""), Some("pinned")),
        // Two URIs make no SVID, so neither is believed to be a SPIFFE id.
        (workload("a.shop", &[WEB, "https://x/", "a.shop"], ""), None),
        (workload("spiffe://corp/ns/web/sa/front2", &["spiffe://corp/ns/web/sa/front2"], ""), None),
        (workload("batch.shop.evil", &["batch.shop.evil"], "CN=batch"), None),
        // Names of two consumers.
        (workload(WEB, &[WEB], "CN=batch,O=Corp"), None),
    ] {
        let mut rq = shows(Some(workload));
        let verdict = judge(&identity, &mut rq);
        assert_eq!(rq.consumer.as_ref().map(|c| &*c.name), owner, "{:?}", rq.workload);
        assert_eq!(matches!(verdict, AuthVerdict::Accepted), owner.is_some());
        assert!(owner.is_some() || matches!(verdict, AuthVerdict::Refused(_)));
    }
    assert!(matches!(judge(&identity, &mut shows(None)), AuthVerdict::Absent));
    let pinned = self::identity(json!({"a": [format!("sha256:{print}")]})).unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(judge(&pinned, &mut shows(Some(workload("x", &[], "")))), AuthVerdict::Accepted));
    assert_eq!(identity.challenge(None), "ClientCertificate realm=\"partners\"");
}

#[test]
fn bad_names_are_refused_where_they_stand() {
    for (bad, says) in [
        (json!({"a": ["CN=x"]}), "not a name of a certificate"),
        (json!({"a": ["spiffe://corp/*"]}), "whole name"),
        (json!({"a": ["sha256:12"]}), "not a name of a certificate"),
        (json!({"a": ["dns:"]}), "not a name of a certificate"),
        (json!({"a": ["dns:x.y"], "b": ["dns:X.Y"]}), "consumer `a` already"),
        (json!({"a": "dns:x.y"}), "expected a list"),
    ] {
        let e = identity(bad.clone()).err().unwrap_or_else(|| panic!("{bad}"));
        assert!(e.span.is_some() && e.to_string().contains(says), "{bad}: {e}");
    }
}
