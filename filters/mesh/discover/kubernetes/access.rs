//! Where the cluster is and who asks: from a pod's surroundings, or from a kubeconfig.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde::Deserialize;

use crate::contract::client::{Identity, Pem, Remote, Target};

/// Where a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// An API server, and how to call it.
pub struct Access {
    pub remote: Remote,
    token: Option<Token>,
    /// The namespace that is meant where none is named.
    pub namespace: String,
}

enum Token {
    Fixed(HeaderValue),
    /// Read anew for each request: the kubelet replaces it every hour.
    File(PathBuf),
}

impl Access {
    /// Looks around: a pod's surroundings, else `KUBECONFIG`, else `~/.kube/config`.
    pub fn around() -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let (Some(host), Some(port)) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT")) {
            return Self::of_pod(&host, &port, Path::new(ACCOUNT));
        }
        let file = variable("KUBECONFIG")
            .and_then(|list| list.split(':').find(|path| !path.is_empty()).map(PathBuf::from))
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".kube/config")))
            .filter(|file| file.is_file());
        match file {
            Some(file) => Self::of_kubeconfig(&file, None),
            None => Err("this is no pod, and there is no kubeconfig".to_owned()),
        }
    }

    /// What Kubernetes tells a pod.
    pub fn of_pod(host: &str, port: &str, account: &Path) -> Result<Self, String> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let ca = account.join("ca.crt");
        let identity = Identity { ca: Some(Pem::File(&ca)), ..Identity::default() };
        let target = Target::new(&format!("https://{host}:{port}"), identity, false, b"http/1.1")?;
        let namespace = std::fs::read_to_string(account.join("namespace"));
        let namespace = namespace.map_or_else(|_| "default".to_owned(), |text| text.trim().to_owned());
        Ok(Self { remote: target.into(), token: Some(Token::File(account.join("token"))), namespace })
    }

    /// The context of this name, or the current one.
    pub fn of_kubeconfig(file: &Path, context: Option<&str>) -> Result<Self, String> {
        let wrong = |why: String| format!("{}: {why}", file.display());
        let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
        let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        config.access(file.parent().unwrap_or(Path::new(".")), context).map_err(wrong)
    }

    /// What goes into `authorization`.
    pub fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        match &self.token {
            None => Ok(None),
            Some(Token::Fixed(value)) => Ok(Some(value.clone())),
            Some(Token::File(path)) => {
                let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
                bearer(text.trim()).map(Some)
            }
        }
    }
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| "the token cannot stand in a header field".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The parts of a kubeconfig that are read. Unknown keys are kubectl's own business.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
}

/// PEM as a kubeconfig has it: a file beside it, or base64 in it, which wins.
enum Kept {
    File(PathBuf),
    Text(String),
}

impl Kept {
    fn of(dir: &Path, file: Option<PathBuf>, data: Option<&str>) -> Result<Option<Self>, String> {
        if let Some(data) = data {
            let bytes = STANDARD.decode(data.trim()).map_err(|e| format!("data that is no base64: {e}"))?;
            return Ok(Some(Self::Text(String::from_utf8(bytes).map_err(|_| "data that is no PEM".to_owned())?)));
        }
        Ok(file.map(|file| Self::File(dir.join(file))))
    }

    fn pem(&self) -> Pem<'_> {
        match self {
            Self::File(path) => Pem::File(path),
            Self::Text(text) => Pem::Text(text),
        }
    }
}

impl Kubeconfig {
    fn access(self, dir: &Path, context: Option<&str>) -> Result<Access, String> {
        let name = context.unwrap_or(&self.current_context).to_owned();
        let context = self.contexts.into_iter().find(|c| c.name == name);
        let Context { cluster, user, namespace } =
            context.ok_or_else(|| format!("there is no context `{name}`"))?.context;
        let at = self.clusters.into_iter().find(|c| c.name == cluster);
        let at = at.ok_or_else(|| format!("there is no cluster `{cluster}`"))?.cluster;
        let who = self.users.into_iter().find(|u| u.name == user);
        let who = who.ok_or_else(|| format!("there is no user `{user}`"))?.user;
        for (there, key) in [
            (at.insecure_skip_tls_verify, "insecure-skip-tls-verify"),
            (at.proxy_url.is_some(), "proxy-url"),
            (who.exec.is_some(), "exec"),
            (who.auth_provider.is_some(), "auth-provider"),
        ] {
            if there {
                return Err(format!("`{key}` is not followed here"));
            }
        }
        let ca = Kept::of(dir, at.certificate_authority, at.certificate_authority_data.as_deref())?;
        let cert = Kept::of(dir, who.client_certificate, who.client_certificate_data.as_deref())?;
        let key = Kept::of(dir, who.client_key, who.client_key_data.as_deref())?;
        let identity = Identity {
            ca: ca.as_ref().map(Kept::pem),
            own: cert.as_ref().zip(key.as_ref()).map(|(cert, key)| (cert.pem(), key.pem())),
            name: at.tls_server_name.as_deref(),
        };
        let target = Target::new(&at.server, identity, false, b"http/1.1")?;
        let token = match (who.token_file, who.token) {
            (Some(file), _) => Some(Token::File(dir.join(file))),
            (None, Some(token)) => Some(Token::Fixed(bearer(&token)?)),
            (None, None) => None,
        };
        let namespace = namespace.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
        Ok(Access { remote: target.into(), token, namespace })
    }
}
