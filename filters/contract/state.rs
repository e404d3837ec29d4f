//! The `state` section: where what several requests share is kept when one process is not enough.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::section::{ConfigError, Node, Span, Spot, Value};
use super::units::{Duration, Secret};

/// Where counters are kept so that they survive this process, or are shared with others.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// Folder for what must survive a restart. Of one process alone. Without it counters end with the process.
    pub dir: Option<Spot<PathBuf>>,
    /// How often counters are saved there; they are saved at the end as well.
    #[serde(default = "State::default_save_every")]
    #[schemars(default = "State::default_save_every")]
    pub save_every: Spot<Duration>,
    /// Redis or Valkey, which keeps what quotas with `scope: shared` count: a URL, a list of URLs (a cluster), or a map.
    #[schemars(with = "Option<RedisForm>")]
    pub redis: Option<Node>,
    /// What a shared quota does while Redis is away: count the share of this process (`local`), or refuse (`deny`).
    #[serde(default)]
    pub on_failure: OnFailure,
    /// How long a request waits for Redis, if it has to.
    #[serde(default = "State::default_timeout")]
    #[schemars(default = "State::default_timeout")]
    pub timeout: Spot<Duration>,
    /// How many processes share: what each may admit alone is the limit divided by it. Default: as many as were seen.
    pub nodes: Option<Spot<u64>>,
    /// What names of keys in Redis begin with.
    #[serde(default = "State::default_prefix")]
    #[schemars(default = "State::default_prefix")]
    pub prefix: Spot<String>,
}

/// See [`State::on_failure`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// Each process counts its share of the limit.
    #[default]
    Local,
    /// Nothing beyond what is leased already.
    Deny,
}

/// Redis with everything it may need.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redis {
    /// `redis://host:6379`, `rediss://...` with TLS, `redis+cluster://...` or `rediss+cluster://...` for a cluster.
    pub url: Option<Spot<String>>,
    /// Nodes of a cluster to start from.
    #[serde(default)]
    pub urls: Vec<Spot<String>>,
    /// User (ACL).
    pub username: Option<String>,
    /// Password.
    pub password: Option<Spot<Secret>>,
    /// Certificates to trust, PEM. Default: the system's.
    pub ca: Option<Spot<PathBuf>>,
    /// Client certificate, PEM.
    pub cert: Option<Spot<PathBuf>>,
    /// Its key, PEM.
    pub key: Option<Spot<PathBuf>>,
}

/// The three forms of `state.redis`, for the schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum RedisForm {
    Url(String),
    Cluster(Vec<String>),
    Full(Box<Redis>),
}

/// `state`, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// See [`State::dir`], absolute.
    pub dir: Option<PathBuf>,
    /// See [`State::save_every`].
    pub save_every: std::time::Duration,
    /// See [`State::redis`].
    pub redis: Option<RedisSettings>,
    /// See [`State::on_failure`].
    pub on_failure: OnFailure,
    /// See [`State::timeout`].
    pub timeout: std::time::Duration,
    /// See [`State::nodes`].
    pub nodes: Option<u64>,
    /// See [`State::prefix`].
    pub prefix: String,
}

/// How Redis is reached. Its debug form is what tells one from another; it holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    /// Where the section stands.
    pub span: Span,
    /// URLs; schemes are `redis` and `rediss` only.
    pub urls: Vec<String>,
    /// Whether they are nodes of a cluster.
    pub cluster: bool,
    /// User.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Password>,
    /// PEM.
    pub ca: Option<Vec<u8>>,
    /// PEM, certificate and key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

/// A password that shows in no debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(super::units::REDACTED)
    }
}

const fn unplaced<T>(value: T) -> Spot<T> {
    Spot { span: Span { file: 0, line: 0, column: 0 }, value }
}

impl State {
    const fn default_save_every() -> Spot<Duration> {
        unplaced(Duration(std::time::Duration::from_secs(5)))
    }
    const fn default_timeout() -> Spot<Duration> {
        unplaced(Duration(std::time::Duration::from_millis(10)))
    }
    fn default_prefix() -> Spot<String> {
        unplaced("onehop".to_owned())
    }

    /// Checks it. Paths start in `folder`.
    ///
    /// # Errors
    /// The first mistake.
    pub fn settle(&self, folder: &Path) -> Result<Settings, ConfigError> {
        const MS: std::time::Duration = std::time::Duration::from_millis(1);
        let dir = self.dir.as_ref().map(|dir| folder.join(&dir.value));
        if let (Some(dir), Some(spot)) = (&dir, &self.dir)
            && dir.exists()
            && !dir.is_dir()
        {
            return Err(ConfigError::at(spot.span, format!("{} is not a folder", dir.display()))
                .help("name a folder that this process may write to"));
        }
        if self.save_every.value.0 < 100 * MS || self.save_every.value.0 > 3_600_000 * MS {
            return Err(ConfigError::at(self.save_every.span, "`saveEvery` is 100ms to 1h"));
        }
        if self.timeout.value.0 < MS || self.timeout.value.0 > 1000 * MS {
            let help = "requests wait that long when Redis is slow; a few milliseconds are right";
            return Err(ConfigError::at(self.timeout.span, "`timeout` is 1ms to 1s").help(help));
        }
        if let Some(nodes) = self.nodes.as_ref().filter(|n| !(1..=10_000).contains(&n.value)) {
            return Err(ConfigError::at(nodes.span, "`nodes` is 1 to 10000"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        if self.prefix.value.is_empty() || !self.prefix.value.chars().all(plain) {
            return Err(ConfigError::at(self.prefix.span, "this cannot begin the name of a key")
                .help("letters, digits, `-`, `_`, `.` and `:`"));
        }
        Ok(Settings {
            dir,
            save_every: self.save_every.value.0,
            redis: self
                .redis
                .as_ref()
                .map(|node| Redis::read(node).and_then(|r| r.settle(node, folder)))
                .transpose()?,
            on_failure: self.on_failure,
            timeout: self.timeout.value.0,
            nodes: self.nodes.as_ref().map(|n| n.value),
            prefix: self.prefix.value.clone(),
        })
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            dir: None,
            save_every: Self::default_save_every(),
            redis: None,
            on_failure: OnFailure::Local,
            timeout: Self::default_timeout(),
            nodes: None,
            prefix: Self::default_prefix(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        State::default().settle(Path::new("")).expect("the defaults are good")
    }
}

impl Redis {
    /// Reads any of its three forms.
    fn read(node: &Node) -> Result<Self, ConfigError> {
        let none =
            Self { url: None, urls: Vec::new(), username: None, password: None, ca: None, cert: None, key: None };
        match &node.value {
            Value::Str(_) => Ok(Self { url: Some(node.read()?), ..none }),
            Value::Seq(_) => Ok(Self { urls: node.read()?, ..none }),
            _ => node.read(),
        }
    }

    fn settle(self, node: &Node, folder: &Path) -> Result<RedisSettings, ConfigError> {
        let listed = !self.urls.is_empty();
        if listed == self.url.is_some() {
            return Err(ConfigError::at(node.span, "`redis` needs `url` or `urls`, not both")
                .help("write `redis: \"redis://127.0.0.1:6379\"`"));
        }
        let mut cluster = listed;
        let mut urls = Vec::new();
        for spot in self.url.iter().chain(&self.urls) {
            let (scheme, rest) = spot.value.split_once("://").unwrap_or_default();
            let scheme = match scheme {
                "redis" | "rediss" => scheme,
                "redis+cluster" | "valkey+cluster" => {
                    cluster = true;
                    "redis"
                }
                "rediss+cluster" | "valkeys+cluster" => {
                    cluster = true;
                    "rediss"
                }
                "valkey" => "redis",
                "valkeys" => "rediss",
                _ => "",
            };
            // The URL may hold a password: it is never repeated.
            if scheme.is_empty() || rest.is_empty() || rest.starts_with('/') || rest.contains(char::is_whitespace) {
                return Err(ConfigError::at(spot.span, "this is not the URL of a Redis").help(
                    "write `redis://host:6379`, with TLS `rediss://host:6379`, a cluster `redis+cluster://host:6379`",
                ));
            }
            urls.push(format!("{scheme}://{rest}"));
        }
        let read = |path: &Spot<PathBuf>| {
            std::fs::read(folder.join(&path.value))
                .map_err(|e| ConfigError::at(path.span, format!("{}: {e}", path.value.display())))
        };
        let client = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => {
                return Err(ConfigError::at(one.span, "`cert` and `key` belong together"));
            }
        };
        let tls = urls.iter().all(|url| url.starts_with("rediss://"));
        if let Some(path) = self.ca.as_ref().or(self.cert.as_ref()).filter(|_| !tls) {
            return Err(ConfigError::at(path.span, "certificates are for `rediss://` only").help("write `rediss://`"));
        }
        let password = self.password.map(|secret| {
            let text = secret.value.reveal(folder).map_err(|e| ConfigError::at(secret.span, e))?;
            Ok::<_, ConfigError>(Password(text))
        });
        Ok(RedisSettings {
            span: node.span,
            urls,
            cluster,
            username: self.username,
            password: password.transpose()?,
            ca: self.ca.as_ref().map(read).transpose()?,
            client,
        })
    }
}
