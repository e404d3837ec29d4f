//! The filter contract: everything a filter author needs, and nothing of the engine.

pub mod body;
pub mod call;
pub mod client;
pub mod clock;
pub mod entry;
pub mod expr;
pub mod fault;
pub mod filter;
pub mod judged;
pub mod keep;
pub mod mesh;
pub mod metrics;
pub mod place;
pub mod principal;
pub mod request;
pub mod rewrite;
pub mod scratch;
pub mod section;
pub mod template;
pub mod trail;
pub mod trailers;
pub mod units;
pub mod worker;

pub use body::{Body, BodyError, BoxBody, Buffered};
pub use call::{Call, ServiceId, Services};
pub use clock::{Moment, now};
pub use entry::{Build, Directory, Entry, Held, Keeper, Phase, Role, RouteView};
pub use expr::Expr;
pub use fault::{Attempted, Fault, Proof, Reason, Side};
pub use filter::{Asks, AuthError, AuthStep, AuthVerdict, Authenticator, Filter, Needs, Step, Verdict};
pub use judged::Judged;
pub use place::{Found, Place};
pub use request::{Conn, Origin, RequestCx, ResponseCx, RouteInfo, Tls, Trace};
pub use scratch::Scratch;
pub use section::{ConfigError, Node, Span, Spot};
pub use template::Template;
