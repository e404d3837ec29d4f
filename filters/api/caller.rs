//! Whose requests are counted together: what `by` means wherever callers are told apart.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};
use http::HeaderName;

use crate::contract::{ConfigError, Expr, RequestCx, Spot};

/// What tells callers apart.
pub enum By {
    /// The client's address; an IPv6 customer is a /64.
    Ip,
    /// The consumer's name.
    Consumer,
    /// The user, within the identity that vouched for it.
    UserSub,
    /// A field of the request.
    Header(HeaderName),
    /// The peer of a mutual TLS connection.
    WorkloadId,
    /// Nobody: all requests of the route are counted together.
    RouteName,
    /// An expression that gives text.
    Text(Box<Expr>),
}

/// A caller in the memory of this process: 128 bits of keyed SipHash, so that nobody can make two callers meet, and
/// callers take no memory of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64, u64);

static SEEDS: LazyLock<(RandomState, RandomState)> = LazyLock::new(|| (RandomState::new(), RandomState::new()));

impl Key {
    /// Of limits that count all requests together.
    pub const ALL: Self = Self(0, 0);

    /// Of anything.
    pub fn of(what: impl Hash) -> Self {
        Self(SEEDS.0.hash_one(&what), SEEDS.1.hash_one(&what))
    }

    /// Where to look for it in a table; independent of [`Key::spread`].
    #[must_use]
    pub fn place(self) -> usize {
        usize::try_from(self.1 >> 32).unwrap_or(0)
    }

    /// Spreads keys evenly.
    #[must_use]
    pub fn spread(self) -> usize {
        usize::try_from(self.0 >> 32).unwrap_or(0)
    }
}

/// A caller as files and other processes know it: the same everywhere and always, and no name that somebody could read.
pub type Id = [u8; 16];

/// What a request is known by.
#[derive(Hash)]
enum Part<'a> {
    Ip(IpAddr),
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
    // Subjects are unique within their issuer only.
    User(&'a str, &'a str),
    /// Nothing of its own, so its address.
    Anonymous(IpAddr),
}

impl By {
    /// Reads `by`.
    ///
    /// # Errors
    /// Neither a known word, nor a header name, nor an expression.
    pub fn read(by: &Spot<String>) -> Result<Self, ConfigError> {
        Ok(match by.value.as_str() {
            "ip" | "client.ip" => Self::Ip,
            "consumer" | "consumer.name" => Self::Consumer,
            "user.sub" => Self::UserSub,
            "workload.id" => Self::WorkloadId,
            "route.name" => Self::RouteName,
            text => match text.strip_prefix("header:") {
                Some(name) => Self::Header(
                    HeaderName::try_from(name.trim())
                        .map_err(|_| ConfigError::at(by.span, format!("`{name}` is not a header name")))?,
                ),
                None => Self::Text(Box::new(Expr::compile(text, by.span)?)),
            },
        })
    }

    /// The caller of a request; `None` where the request does not have what callers are told apart by.
    pub fn key(&self, rq: &RequestCx) -> Option<Key> {
        match self {
            Self::RouteName => Some(Key::ALL),
            _ => self.part(rq).map(Key::of),
        }
    }

    /// The same caller as [`By::key`], for files and other processes.
    pub fn id(&self, rq: &RequestCx) -> Option<Id> {
        match self {
            Self::RouteName => Some(Id::default()),
            _ => self.part(rq).map(|part| part.id()),
        }
    }

    /// Whether the caller is told by who it is, not by what it says.
    pub const fn is_identity(&self) -> bool {
        matches!(self, Self::Ip | Self::Consumer | Self::UserSub | Self::WorkloadId)
    }

    fn part<'a>(&'a self, rq: &'a RequestCx) -> Option<Part<'a>> {
        Some(match self {
            Self::Ip => Part::Ip(network(rq.client_ip)),
            Self::Consumer => Part::Text(Cow::Borrowed(&rq.consumer.as_ref()?.name)),
            Self::UserSub => {
                let user = rq.user.as_ref().filter(|u| !u.subject.is_empty())?;
                Part::User(&user.identity, &user.subject)
            }
            Self::Header(name) => Part::Bytes(rq.headers.get(name)?.as_bytes()),
            Self::WorkloadId => Part::Text(Cow::Borrowed(&rq.workload.as_ref()?.id)),
            Self::RouteName => Part::Text(Cow::Borrowed("")),
            Self::Text(expr) => Part::Text(expr.text(rq)?),
        })
    }
}

/// What a request without a key is counted by where it is not refused: its address, under no name of its own.
#[must_use]
pub fn anonymous(rq: &RequestCx) -> Key {
    Key::of(Part::Anonymous(network(rq.client_ip)))
}

/// The same, for files and other processes.
#[must_use]
pub fn anonymous_id(rq: &RequestCx) -> Id {
    Part::Anonymous(network(rq.client_ip)).id()
}

impl Part<'_> {
    fn id(&self) -> Id {
        let mut digest = Context::new(&SHA256);
        let mut feed = |tag: u8, parts: &[&[u8]]| {
            digest.update(&[tag]);
            for part in parts {
                // Lengths, or `a` + `bc` would be `ab` + `c`.
                digest.update(&(part.len() as u64).to_be_bytes());
                digest.update(part);
            }
        };
        match self {
            Self::Ip(IpAddr::V4(ip)) => feed(1, &[&ip.octets()]),
            Self::Ip(IpAddr::V6(ip)) => feed(1, &[&ip.octets()]),
            Self::Text(text) => feed(2, &[text.as_bytes()]),
            Self::Bytes(bytes) => feed(2, &[bytes]),
            Self::User(identity, subject) => feed(3, &[identity.as_bytes(), subject.as_bytes()]),
            Self::Anonymous(IpAddr::V4(ip)) => feed(4, &[&ip.octets()]),
            Self::Anonymous(IpAddr::V6(ip)) => feed(4, &[&ip.octets()]),
        }
        let digest = digest.finish();
        let mut id = Id::default();
        id.copy_from_slice(&digest.as_ref()[..16]);
        id
    }
}

/// An IPv6 customer has at least a /64 to call from.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << 64)).into()),
    }
}
