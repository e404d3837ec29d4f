use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::units::{Duration, Size};
use crate::contract::{Edits, Node, Spot};

/// Rewrites of a request and its response. Within each: set, then add, then remove.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The path that goes upstream.
    pub path: Option<Spot<Path>>,
    /// The `Host` that goes upstream.
    pub host: Option<Spot<String>>,
    /// Query parameters.
    #[serde(default)]
    pub query: Edits,
    /// Headers, cookies and body of the request.
    #[serde(default)]
    pub request: Request,
    /// Headers, cookies and body of the response.
    #[serde(default)]
    pub response: Response,
}

/// Edits of a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// Headers to replace; values are templates.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub set: Option<Node>,
    /// Headers to add; values are templates.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub add: Option<Node>,
    /// Headers to remove.
    #[serde(default)]
    pub remove: Vec<Spot<String>>,
    /// Single cookies.
    pub cookies: Option<Cookies>,
    /// The body.
    pub body: Option<RequestBody>,
}

/// Edits of a response.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Response {
    /// Headers to replace; values are templates over the request.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub set: Option<Node>,
    /// Headers to add; values are templates over the request.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub add: Option<Node>,
    /// Headers to remove.
    #[serde(default)]
    pub remove: Vec<Spot<String>>,
    /// Cookies that the service sets.
    #[serde(default)]
    pub cookies: Vec<Spot<SetCookie>>,
    /// The body.
    pub body: Option<ResponseBody>,
}

/// Edits of the `Cookie` field: set, then remove.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cookies {
    /// Cookies by name; values are templates, percent-encoded where a cookie cannot have them.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub set: Option<Node>,
    /// Cookies that do not go upstream.
    #[serde(default)]
    pub remove: Vec<Spot<String>>,
}

/// What becomes of a `Set-Cookie` of this name. Attributes that are not named here stay.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetCookie {
    /// Name of the cookie, or `*` for every one.
    pub name: String,
    /// The cookie is not set at all. Default false.
    #[serde(default)]
    pub remove: bool,
    /// Only over TLS.
    pub secure: Option<bool>,
    /// Not for scripts.
    pub http_only: Option<bool>,
    /// Whether it goes along with requests from other sites.
    pub same_site: Option<SameSite>,
    /// Domain; empty takes the attribute away, which binds the cookie to the host.
    pub domain: Option<String>,
    /// Path; empty takes the attribute away.
    pub path: Option<String>,
    /// How long it lives; `0s` ends it at once.
    pub max_age: Option<Duration>,
}

/// RFC 6265bis section 4.1.2.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SameSite {
    /// Never.
    Strict,
    /// Only when a person follows a link.
    Lax,
    /// Always; browsers want `secure` with it.
    None,
}

/// Rules for a request's body. Only JSON is touched.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestBody {
    /// Edits.
    pub json: Spot<Json>,
    /// Largest body, decoded; a larger one is 413. Default `1MiB`.
    #[schemars(extend("default" = "1MiB"))]
    pub limit: Option<Spot<Size>>,
    /// What becomes of a body with a `Content-Encoding`. Default `decode`.
    #[schemars(extend("default" = "decode"))]
    pub encoded: Option<Encoded>,
}

/// Rules for a response's body. Only JSON is touched.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResponseBody {
    /// Edits.
    pub json: Spot<Json>,
    /// Largest body, decoded. Default `1MiB`.
    #[schemars(extend("default" = "1MiB"))]
    pub limit: Option<Spot<Size>>,
    /// What becomes of a body that the rules cannot be applied to: too large, malformed, of another shape. Default
    /// `refuse`.
    #[schemars(extend("default" = "refuse"))]
    pub otherwise: Option<Otherwise>,
}

/// What becomes of an encoded body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoded {
    /// Decoded, and sent on plain.
    Decode,
    /// 415.
    Refuse,
}

/// What becomes of a response that the rules cannot be applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// 502: a rule that hides something never lets it through.
    Refuse,
    /// The answer goes out as it came, and is counted.
    Pass,
}

/// Edits of a JSON body, in this order. Texts in values are templates; `${body/a/0}` is what a JSON pointer finds in the
/// body as it came.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Json {
    /// A whole new body: any value, or JSON as text.
    pub template: Option<Node>,
    /// A merge patch (RFC 7396): objects merge, `null` removes, anything else replaces.
    pub merge: Option<Node>,
    /// Values by JSON pointer (RFC 6901); `-` adds to a list. One that the request cannot give removes what stands there.
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub set: Option<Node>,
    /// JSON pointers of what is taken away.
    #[serde(default)]
    pub remove: Vec<Spot<String>>,
}

/// Default of `limit`, in bytes.
pub const LIMIT: u64 = 1 << 20;
/// Most that `limit` may be: a body under edit lies in memory.
pub const MAX_LIMIT: u64 = 256 << 20;

/// Exactly one of `replacePrefix`, `replaceFull`, or `regex` with `substitution`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Path {
    /// What the prefix that the route matched becomes.
    pub replace_prefix: Option<Spot<String>>,
    /// The whole new path; a template.
    pub replace_full: Option<Spot<String>>,
    /// What to look for in the path; linear time, not anchored. The first match is replaced.
    pub regex: Option<Spot<String>>,
    /// What a match becomes; `$1` or `${name}` stand for its groups.
    pub substitution: Option<Spot<String>>,
}

impl Request {
    /// Those of header fields.
    pub fn fields(&self) -> Edits {
        Edits { set: self.set.clone(), add: self.add.clone(), remove: self.remove.clone() }
    }
}

impl Response {
    /// Those of header fields.
    pub fn fields(&self) -> Edits {
        Edits { set: self.set.clone(), add: self.add.clone(), remove: self.remove.clone() }
    }
}
