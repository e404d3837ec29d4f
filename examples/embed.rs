//! onehop inside another program: the routes of a listener as a `tower::Service`, with a layer of the program's own
//! around it, called without a socket.
//!
//!   cargo run --example embed

use std::cell::Cell;

use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use onehop::config::Source;
use onehop::hop::Hop;
use onehop::proxy::exchange::Outgoing;
use onehop_filters::contract::Body;
use tower::{ServiceBuilder, ServiceExt};

const CONFIG: &str = r#"
version: 1
admin: { bind: none }
listeners: { api: { bind: "127.0.0.1:0" } }
routes:
- name: hello
  matches: [{ path: { prefix: /hello } }]
  quota: [{ by: header:x-tenant, limit: 2, per: 1h }]
  respond: { status: 200, headers: { content-type: text/plain }, body: "hello\n" }
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = Source::Text { name: "embed.yaml".to_owned(), text: CONFIG.to_owned(), dir: std::env::current_dir()? };
    let hop = Hop::start(vec![source], onehop_filters::BUILTIN).map_err(|e| e.to_string())?;
    let routes = hop.service("api").ok_or("there is no listener `api`")?;

    // Any tower layer fits around it. This one says which tenant calls, and counts what came back refused.
    let refused = Cell::new(0);
    let count = &refused;
    let mut service = ServiceBuilder::new()
        .map_request(|mut rq: Request<Body>| {
            rq.headers_mut().insert("x-tenant", HeaderValue::from_static("acme"));
            rq
        })
        .map_response(|rs: Response<Outgoing>| {
            count.set(count.get() + u32::from(rs.status().is_client_error()));
            rs
        })
        .service(routes);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen: Vec<u16> = runtime.block_on(async {
        let mut seen = Vec::new();
        for _ in 0..3 {
            let rq = Request::get("/hello").header("host", "localhost").body(Body::Empty)?;
            let rs = (&mut service).oneshot(rq).await?;
            let status = rs.status();
            let body = rs.into_body().collect().await.map_err(|fault| fault.to_string())?.to_bytes();
            print!("{status}: {}", String::from_utf8_lossy(&body));
            seen.push(status.as_u16());
        }
        Ok::<_, Box<dyn std::error::Error>>(seen)
    })?;
    println!();
    assert_eq!((seen.as_slice(), refused.get()), ([200, 200, 429].as_slice(), 1), "two are allowed an hour");
    hop.stop(std::time::Duration::ZERO);
    Ok(())
}

#[test]
fn the_example_runs() {
    main().expect("the example ends well");
}
