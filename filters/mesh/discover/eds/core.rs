//! The client's side of the xDS protocol for one type of resource, both variants; pure. Times are arguments, and what is
//! to be sent and told is returned.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message as _;
use serde::Deserialize;

use super::assignment;
use super::proto::{
    Any, ClusterLoadAssignment, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Node, Resource, ResourceError, Status,
};
use crate::contract::Moment;
use crate::contract::mesh::Found;

/// The type of resource that is asked for.
pub const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// What may stand around a resource to give it a lifetime.
pub const RESOURCE: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";
/// `google.rpc.Code.INVALID_ARGUMENT`: the code of every NACK.
const INVALID_ARGUMENT: i32 = 3;
/// A server that was told on a new stream what we hold, and says nothing for so long, has nothing newer.
const CONFIRMED: Duration = Duration::from_secs(3);
/// Longest text of what was wrong that is sent back.
const MAX_DETAIL: usize = 4096;

/// Which variant of the protocol is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Incremental: only what changed is told.
    #[default]
    Delta,
    /// State of the world: each answer has every resource it is about, and each request every name.
    Sotw,
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

impl Question {
    /// What was wrong with the answer that this one refuses.
    pub fn wrong(&self) -> Option<&str> {
        let detail = match self {
            Self::Sotw(request) => &request.error_detail,
            Self::Delta(request) => &request.error_detail,
        };
        detail.as_ref().map(|detail| &*detail.message)
    }
}

/// What is to be told of a service: its endpoints, or why they are not known.
pub type Told = (String, Result<Vec<Found>, String>);

/// The client, over all the streams of its life.
pub struct Client {
    mode: Mode,
    node: Node,
    /// How long to wait for the first word of a service; zero: for ever.
    patience: Duration,
    wanted: BTreeMap<String, Wanted>,
    /// Version of the last answer that was taken whole; state of the world only.
    version: String,
    stream: Option<Stream>,
}

/// What is known of a service somebody wants.
#[derive(Default)]
struct Wanted {
    held: Option<Held>,
    /// Nothing came on this stream yet; since when it is waited for, and whether that was told.
    waiting: Option<Waiting>,
}

struct Held {
    version: String,
    found: Vec<Found>,
    /// The resource is good until then unless it comes again.
    until: Option<Moment>,
}

struct Waiting {
    since: Moment,
    told: bool,
}

/// What belongs to one stream only.
#[derive(Default)]
struct Stream {
    nonce: String,
    /// Names the server was told of.
    asked: BTreeSet<String>,
    begun: bool,
}

/// An answer of either variant.
struct Answer {
    version: String,
    nonce: String,
    resources: Vec<Result<Resource, String>>,
    removed: Vec<String>,
    errors: Vec<ResourceError>,
}

impl Client {
    /// Nothing is wanted yet.
    pub const fn new(mode: Mode, node: Node, patience: Duration) -> Self {
        Self { mode, node, patience, wanted: BTreeMap::new(), version: String::new(), stream: None }
    }

    /// Asks for a service from now on; what is known of it already.
    pub fn want(&mut self, name: &str) -> Option<Vec<Found>> {
        let wanted = self.wanted.entry(name.to_owned()).or_default();
        wanted.held.as_ref().map(|held| held.found.clone())
    }

    /// Nobody asks for it any longer.
    pub fn forget(&mut self, name: &str) {
        self.wanted.remove(name);
    }

    /// Whether anything is asked for.
    pub fn idle(&self) -> bool {
        self.wanted.is_empty()
    }

    /// A stream begins.
    pub fn opened(&mut self) {
        self.stream = Some(Stream::default());
    }

    /// It is over. What is held stays.
    pub fn closed(&mut self) {
        self.stream = None;
        self.wanted.values_mut().for_each(|wanted| wanted.waiting = None);
    }

    /// What is to be told while no server can be asked: why all that is held may be out of date.
    pub fn failed(&self, why: &str) -> Vec<Told> {
        self.wanted.keys().map(|name| (name.clone(), Err(why.to_owned()))).collect()
    }

    /// What the server must be told of what is wanted and what no longer is; `None`: it knows.
    pub fn ask(&mut self, now: Moment) -> Option<Question> {
        let stream = self.stream.as_mut()?;
        let begins = !stream.begun;
        let more: Vec<String> = self.wanted.keys().filter(|name| !stream.asked.contains(*name)).cloned().collect();
        let less: Vec<String> = stream.asked.iter().filter(|name| !self.wanted.contains_key(*name)).cloned().collect();
        // The first question must name something: without a name it would ask for everything.
        if (more.is_empty() && less.is_empty()) || (begins && more.is_empty()) {
            return None;
        }
        stream.begun = true;
        stream.asked = self.wanted.keys().cloned().collect();
        for name in &more {
            if let Some(wanted) = self.wanted.get_mut(name) {
                wanted.waiting = Some(Waiting { since: now, told: false });
            }
        }
        // The node is the same for the whole stream, so it is said once.
        let node = begins.then(|| self.node.clone());
        // A version says that everything asked for is held in it.
        if begins && self.wanted.values().any(|wanted| wanted.held.is_none()) {
            self.version.clear();
        }
        Some(match self.mode {
            Mode::Sotw => Question::Sotw(DiscoveryRequest { node, ..self.repeat(None) }),
            Mode::Delta => {
                let held = |name: &String| Some((name.clone(), self.wanted.get(name)?.held.as_ref()?.version.clone()));
                Question::Delta(DeltaDiscoveryRequest {
                    node,
                    type_url: ASSIGNMENT.to_owned(),
                    initial_resource_versions: if begins {
                        more.iter().filter_map(held).collect()
                    } else {
                        Default::default()
                    },
                    resource_names_subscribe: more,
                    resource_names_unsubscribe: less,
                    ..Default::default()
                })
            }
        })
    }

    /// Takes a message of the server. The answer to it goes back in any case: taken (ACK), or not and why (NACK).
    pub fn take(&mut self, message: &[u8], now: Moment) -> Result<(Option<Question>, Vec<Told>), String> {
        let wrong = |e: prost::DecodeError| format!("the answer cannot be decoded: {e}");
        let (kind, answer) = match self.mode {
            Mode::Sotw => {
                let response = DiscoveryResponse::decode(message).map_err(wrong)?;
                (response.type_url.clone(), Answer::from(response))
            }
            Mode::Delta => {
                let response = DeltaDiscoveryResponse::decode(message).map_err(wrong)?;
                (response.type_url.clone(), Answer::from(response))
            }
        };
        if kind != ASSIGNMENT {
            // Nobody asked for it, so nobody waits for an answer.
            tracing::warn!(kind, "eds: the control plane sent a type that was not asked for");
            return Ok((None, Vec::new()));
        }
        let (version, nonce) = (answer.version.clone(), answer.nonce.clone());
        let (told, wrong) = self.apply(answer, now);
        if let Some(stream) = &mut self.stream {
            stream.nonce.clone_from(&nonce);
        }
        if wrong.is_empty() {
            self.version = version;
        }
        let detail = (!wrong.is_empty()).then(|| {
            let message = wrong.join("; ").chars().take(MAX_DETAIL).collect();
            Status { code: INVALID_ARGUMENT, message }
        });
        let question = match self.mode {
            Mode::Sotw => Question::Sotw(self.repeat(detail)),
            Mode::Delta => Question::Delta(DeltaDiscoveryRequest {
                type_url: ASSIGNMENT.to_owned(),
                response_nonce: nonce,
                error_detail: detail,
                ..Default::default()
            }),
        };
        Ok((Some(question), told))
    }

    /// The question of this stream with what is known now: an ACK, a NACK with the last good version, or other names.
    fn repeat(&self, error_detail: Option<Status>) -> DiscoveryRequest {
        let stream = self.stream.as_ref();
        DiscoveryRequest {
            version_info: self.version.clone(),
            resource_names: stream.map(|s| s.asked.iter().cloned().collect()).unwrap_or_default(),
            type_url: ASSIGNMENT.to_owned(),
            response_nonce: stream.map(|s| s.nonce.clone()).unwrap_or_default(),
            error_detail,
            node: None,
        }
    }

    /// Every resource on its own: a bad one keeps what is held of it, and takes no other along (gRPC proposal A46).
    fn apply(&mut self, answer: Answer, now: Moment) -> (Vec<Told>, Vec<String>) {
        let (mut told, mut wrong) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for resource in answer.resources {
            match resource.and_then(read) {
                Err(why) => wrong.push(why),
                Ok(Read { name, .. }) if !seen.insert(name.clone()) => wrong.push(format!("{name}: comes twice")),
                Ok(Read { name, version, ttl, found }) => {
                    let Some(wanted) = self.wanted.get_mut(&name) else { continue };
                    wanted.waiting = None;
                    let until = ttl.map(|ttl| now + ttl);
                    match (found, &mut wanted.held) {
                        (Ok(Some(found)), held) => {
                            *held = Some(Held { version, found: found.clone(), until });
                            told.push((name, Ok(found)));
                        }
                        // A heartbeat: what is held is good for longer.
                        (Ok(None), Some(held)) => {
                            held.until = until;
                            told.push((name, Ok(held.found.clone())));
                        }
                        (Ok(None), None) => {}
                        (Err(why), _) => {
                            wrong.push(format!("{name}: {why}"));
                            told.push((name, Err(format!("the control plane's answer is wrong: {why}"))));
                        }
                    }
                }
            }
        }
        for name in answer.removed {
            if let Some(wanted) = self.wanted.get_mut(&name) {
                *wanted = Wanted::default();
                told.push((name, Ok(Vec::new())));
            }
        }
        for error in answer.errors {
            let name = error.resource_name.unwrap_or_default().name;
            if let Some(wanted) = self.wanted.get_mut(&name) {
                wanted.waiting = None;
                let Status { code, message } = error.error_detail.unwrap_or_default();
                told.push((name, Err(format!("the control plane has no answer: status {code}: {message}"))));
            }
        }
        (told, wrong)
    }

    /// What follows from the time alone.
    pub fn tick(&mut self, now: Moment) -> Vec<Told> {
        let mut told = Vec::new();
        for (name, wanted) in &mut self.wanted {
            if wanted.held.as_ref().and_then(|held| held.until).is_some_and(|until| now >= until) {
                // As if the server had removed it.
                tracing::warn!(service = name, "eds: the lifetime of the assignment ran out");
                wanted.held = None;
                told.push((name.clone(), Ok(Vec::new())));
            }
            let Some(waiting) = &mut wanted.waiting else { continue };
            match &wanted.held {
                Some(held) if now.since(waiting.since) >= CONFIRMED => {
                    told.push((name.clone(), Ok(held.found.clone())));
                    wanted.waiting = None;
                }
                None if !waiting.told && !self.patience.is_zero() && now.since(waiting.since) >= self.patience => {
                    waiting.told = true;
                    let why = format!("the control plane has not told of it within {:?}", self.patience);
                    told.push((name.clone(), Err(why)));
                }
                _ => {}
            }
        }
        told
    }

    /// When [`Self::tick`] has something to do.
    pub fn next(&self) -> Option<Moment> {
        let due = |wanted: &Wanted| {
            let until = wanted.held.as_ref().and_then(|held| held.until);
            let waits = wanted.waiting.as_ref().and_then(|waiting| match wanted.held {
                Some(_) => Some(waiting.since + CONFIRMED),
                None => (!waiting.told && !self.patience.is_zero()).then(|| waiting.since + self.patience),
            });
            until.into_iter().chain(waits).min()
        };
        self.wanted.values().filter_map(due).min()
    }
}

/// A resource, as far as it could be read.
struct Read {
    name: String,
    version: String,
    ttl: Option<Duration>,
    /// `None`: only its lifetime was told.
    found: Result<Option<Vec<Found>>, String>,
}

/// An error here is one that has no name to it.
fn read(resource: Resource) -> Result<Read, String> {
    let Resource { version, resource, name, ttl } = resource;
    let ttl = ttl.map(|ttl| {
        Duration::new(u64::try_from(ttl.seconds).unwrap_or(0), u32::try_from(ttl.nanos).unwrap_or(0).min(999_999_999))
    });
    let Some(Any { type_url, value }) = resource else {
        if name.is_empty() {
            return Err("a resource has neither a name nor a content".to_owned());
        }
        return Ok(Read { name, version, ttl, found: Ok(None) });
    };
    let decoded = if type_url == ASSIGNMENT {
        ClusterLoadAssignment::decode(&*value).map_err(|e| format!("it cannot be decoded: {e}"))
    } else {
        Err(format!("it is a `{type_url}`"))
    };
    match decoded {
        Ok(assignment) => {
            let name = if name.is_empty() { assignment.cluster_name.clone() } else { name };
            if name.is_empty() {
                return Err("an assignment has no name".to_owned());
            }
            Ok(Read { name, version, ttl, found: assignment::read(&assignment).map(Some) })
        }
        Err(why) if name.is_empty() => Err(why),
        Err(why) => Ok(Read { name, version, ttl, found: Err(why) }),
    }
}

impl From<DiscoveryResponse> for Answer {
    fn from(response: DiscoveryResponse) -> Self {
        let DiscoveryResponse { version_info: version, nonce, resources, resource_errors: errors, .. } = response;
        let unwrapped = |resource: Any| {
            if resource.type_url == RESOURCE {
                return Resource::decode(&*resource.value).map_err(|e| format!("a resource cannot be decoded: {e}"));
            }
            Ok(Resource { resource: Some(resource), ..Default::default() })
        };
        // What an answer leaves out stays as it is: only types that are asked for without names are told whole.
        Self { version, nonce, resources: resources.into_iter().map(unwrapped).collect(), removed: Vec::new(), errors }
    }
}

impl From<DeltaDiscoveryResponse> for Answer {
    fn from(response: DeltaDiscoveryResponse) -> Self {
        Self {
            version: response.system_version_info,
            nonce: response.nonce,
            resources: response.resources.into_iter().map(Ok).collect(),
            removed: response.removed_resources,
            errors: response.resource_errors,
        }
    }
}
