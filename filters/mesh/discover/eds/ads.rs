//! One stream to a control plane, shared by all services that ask it (ADS).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::core::{Client, Mode, Question, Told};
use super::proto::Node;
use crate::contract::client::Target;
use crate::contract::duplex::Duplex;
use crate::contract::mesh::Report;
use crate::contract::now;
use crate::contract::units::Secret;
use crate::mesh::discover::registry::Patience;

const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const SOTW: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
/// For connect and handshakes.
const CONNECT: Duration = Duration::from_secs(5);
/// A stream nobody needs is kept for so long: a new configuration lets go of the old one's services first.
const LINGER: Duration = Duration::from_secs(5);

/// Where and how to ask.
pub struct Settings {
    pub targets: Vec<Target>,
    pub mode: Mode,
    pub node: Node,
    /// Shown to the server, and the folder that a relative path of it starts in.
    pub token: Option<(Secret, PathBuf)>,
    /// See [`Client::new`].
    pub patience: Duration,
}

/// See the module.
pub struct Ads {
    settings: Settings,
    /// Control thread only.
    shared: Mutex<Shared>,
    /// Something else is wanted than before.
    changed: Notify,
}

struct Shared {
    client: Client,
    /// By the service they follow.
    followers: BTreeMap<String, Vec<(u64, Report)>>,
    next: u64,
    /// Whether a task follows the control plane.
    running: bool,
}

/// One service's interest in its endpoints; ends when dropped.
pub struct Follower {
    ads: Arc<Ads>,
    name: String,
    id: u64,
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut shared = self.ads.shared.lock();
        let Some(others) = shared.followers.get_mut(&self.name) else { return };
        others.retain(|(id, _)| *id != self.id);
        if others.is_empty() {
            shared.followers.remove(&self.name);
            shared.client.forget(&self.name);
        }
        drop(shared);
        self.ads.changed.notify_one();
    }
}

impl Ads {
    /// Asks nobody before somebody follows.
    pub fn new(settings: Settings) -> Self {
        let client = Client::new(settings.mode, settings.node.clone(), settings.patience);
        let shared = Shared { client, followers: BTreeMap::new(), next: 0, running: false };
        Self { settings, shared: Mutex::new(shared), changed: Notify::new() }
    }

    /// Tells `report` of a service's endpoints from now on. Inside the control thread's runtime.
    pub fn follow(self: Arc<Self>, name: &str, report: Report) -> Follower {
        let mut shared = self.shared.lock();
        let id = shared.next;
        shared.next += 1;
        let known = shared.client.want(name);
        shared.followers.entry(name.to_owned()).or_default().push((id, report.clone()));
        if !std::mem::replace(&mut shared.running, true) {
            tokio::spawn(self.clone().run());
        }
        drop(shared);
        self.changed.notify_one();
        if let Some(known) = known {
            report.found(known);
        }
        Follower { ads: self, name: name.to_owned(), id }
    }

    /// For `/endpoints`.
    pub fn describe(&self) -> String {
        self.settings.targets.iter().map(|target| target.uri().to_string()).collect::<Vec<_>>().join(", ")
    }

    async fn run(self: Arc<Self>) {
        let mut patience = Patience::new();
        let mut server = 0;
        while !self.unneeded().await {
            let target = &self.settings.targets[server % self.settings.targets.len()];
            let mut answered = false;
            let why = self.stream(target, &mut answered).await;
            self.shared.lock().client.closed();
            let Err(why) = why else { continue };
            if answered {
                // Streams end, as when the control plane is rolled out. Only if there is no other at once, what it told
                // may be out of date.
                tracing::info!(server = %target.uri(), why, "eds: the stream ended");
                patience.reset();
            } else {
                let why = format!("{}: {why}", target.uri());
                let told = self.shared.lock().client.failed(&why);
                self.tell(told);
                server += 1;
            }
            // One of several servers is down: the next may be asked at once, all of them only after a pause.
            if answered || server % self.settings.targets.len() == 0 {
                self.pause(&mut patience).await;
            }
        }
    }

    /// A pause in which lifetimes still run out.
    async fn pause(&self, patience: &mut Patience) {
        let mut pause = std::pin::pin!(patience.wait());
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = self.due() => {
                    let told = self.shared.lock().client.tick(now());
                    self.tell(told);
                }
            }
        }
    }

    /// Comes when time alone changes something.
    async fn due(&self) {
        let next = self.shared.lock().client.next();
        match next {
            Some(at) => tokio::time::sleep(at.since(now())).await,
            None => std::future::pending().await,
        }
    }

    /// Whether nobody has followed for a while; then the task is over.
    async fn unneeded(&self) -> bool {
        let idle = async {
            while self.shared.lock().client.idle() {
                self.changed.notified().await;
            }
        };
        if tokio::time::timeout(LINGER, idle).await.is_ok() {
            return false;
        }
        let mut shared = self.shared.lock();
        shared.running = !shared.client.idle();
        !shared.running
    }

    /// Follows one stream to its end; `Ok`: nobody needs it any longer.
    async fn stream(&self, target: &Target, answered: &mut bool) -> Result<(), String> {
        let path = match self.settings.mode {
            Mode::Delta => DELTA,
            Mode::Sotw => SOTW,
        };
        let mut stream = Duplex::open(target, path, self.metadata()?, CONNECT).await?;
        self.shared.lock().client.opened();
        let mut changed = true;
        loop {
            if std::mem::take(&mut changed) {
                let question = self.shared.lock().client.ask(now());
                if let Some(question) = question {
                    send(&mut stream, &question)?;
                }
            }
            tokio::select! {
                message = stream.next() => {
                    let message = message?;
                    *answered = true;
                    let taken = self.shared.lock().client.take(&message, now());
                    let (question, told) = taken?;
                    if let Some(question) = question {
                        if let Some(why) = question.wrong() {
                            tracing::warn!(server = %target.uri(), why, "eds: an answer is refused");
                        }
                        send(&mut stream, &question)?;
                    }
                    self.tell(told);
                }
                () = self.due() => {
                    let told = self.shared.lock().client.tick(now());
                    // Silence to what we said we hold is an answer as well.
                    *answered |= told.iter().any(|(_, outcome)| outcome.is_ok());
                    self.tell(told);
                }
                () = self.changed.notified() => {
                    changed = true;
                    if self.shared.lock().client.idle() && self.linger().await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether nobody came back within [`LINGER`].
    async fn linger(&self) -> bool {
        let _ = tokio::time::timeout(LINGER, self.changed.notified()).await;
        self.shared.lock().client.idle()
    }

    fn metadata(&self) -> Result<HeaderMap, String> {
        let mut metadata = HeaderMap::new();
        if let Some((token, dir)) = &self.settings.token {
            // Read anew for each stream: tokens of workloads are replaced while they are used.
            let token = token.reveal(dir)?;
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| "the token cannot stand in a header field".to_owned())?;
            value.set_sensitive(true);
            metadata.insert(AUTHORIZATION, value);
        }
        Ok(metadata)
    }

    /// Tells whoever follows. Never under the lock: what is told may end in another question.
    fn tell(&self, told: Vec<Told>) {
        for (name, outcome) in told {
            let reports: Vec<Report> = {
                let shared = self.shared.lock();
                shared.followers.get(&name).into_iter().flatten().map(|(_, report)| report.clone()).collect()
            };
            for report in reports {
                match &outcome {
                    Ok(found) => report.found(found.clone()),
                    Err(why) => report.failed(why.clone()),
                }
            }
        }
    }
}

fn send(stream: &mut Duplex, question: &Question) -> Result<(), String> {
    match question {
        Question::Sotw(request) => stream.send(request),
        Question::Delta(request) => stream.send(request),
    }
}
