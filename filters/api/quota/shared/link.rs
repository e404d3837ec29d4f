//! Redis itself, on the control thread: connecting, asking, noticing that it is away. No request waits in here.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ErrorKind, IntoConnectionInfo, RedisError, RedisResult,
    ServerErrorKind, TlsCertificates,
};
use tokio::sync::mpsc;

use super::{Ask, Grant, Link, Shared};
use crate::contract::now;
use crate::contract::state::RedisSettings;

const LEASE: &str = include_str!("lease.lua");
/// `EVALSHA` names a script by its SHA-1.
static LEASE_SHA: LazyLock<String> = LazyLock::new(|| sha1(LEASE));

/// Says that this process is there, and counts all that are.
const PRESENT: &str = "local t = redis.call('TIME') \
    redis.call('ZADD', KEYS[1], t[1], ARGV[1]) \
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', t[1] - 10) \
    redis.call('EXPIRE', KEYS[1], 60) \
    return redis.call('ZCARD', KEYS[1])";

/// How often a process says that it is there, and looks after its leases.
const BEAT: Duration = Duration::from_secs(1);
/// How often one is asked whether it is back.
const RETRY: Duration = Duration::from_millis(100);
/// How long a beat may take.
const PATIENCE: Duration = Duration::from_millis(250);
/// After that an answer is given up for lost.
const LOST: Duration = Duration::from_secs(2);
/// Longest pause between two attempts to connect.
const PAUSE: Duration = Duration::from_secs(2);
/// Failed beats after which a connection is made anew.
const HOPELESS: u32 = 20;

/// Works for the link until nothing uses it any more.
pub fn run(link: Arc<Link>) -> impl Future<Output = ()> + Send {
    // Only one task has the questions; the tasks of later configs have nothing to do.
    let asked = link.asked.lock().take();
    let link = Arc::downgrade(&link);
    async move {
        let Some(asked) = asked else { return };
        Worker { link, asked, me: name(), away: true }.run().await;
    }
}

/// A name that no other process has.
fn name() -> String {
    let mut bytes = [0; 12];
    // Fails only without a source of randomness; then two processes count as one.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Worker {
    link: Weak<Link>,
    asked: mpsc::UnboundedReceiver<Ask>,
    me: String,
    /// Whether Redis was away since it was last reminded.
    away: bool,
}

/// Either kind of connection. Cheap to clone, many questions at a time.
#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    async fn ask<T: redis::FromRedisValue>(&mut self, cmd: &Cmd) -> RedisResult<T> {
        match self {
            Self::One(one) => cmd.query_async(one).await,
            Self::Cluster(cluster) => cmd.query_async(cluster).await,
        }
    }

    fn is_closed(&self, error: &RedisError) -> bool {
        // That of a cluster mends itself.
        matches!(self, Self::One(_)) && error.is_unrecoverable_error()
    }
}

type Asking = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Worker {
    async fn run(mut self) {
        let mut pause = RETRY;
        while let Some(link) = self.link.upgrade() {
            let Some(settings) = link.settings.redis.clone() else { return };
            let connecting = tokio::time::timeout(LOST, connect(&settings)).await;
            match connecting.unwrap_or_else(|_| Err((ErrorKind::Io, "no answer").into())) {
                Ok(connection) => {
                    pause = RETRY;
                    drop(link);
                    self.serve(connection).await;
                }
                Err(e) => {
                    link.told.errors.inc();
                    if pause == RETRY {
                        tracing::warn!(error = %e, "Redis cannot be reached, shared quotas count alone");
                    }
                    drop(link);
                    self.refuse(pause + jitter(pause)).await;
                    pause = (pause * 2).min(PAUSE);
                }
            }
        }
    }

    /// Lets nobody wait while there is no connection.
    async fn refuse(&mut self, pause: Duration) {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                ask = self.asked.recv() => match ask {
                    Some(ask) => {
                        let shared = ask.shared.clone();
                        shared.answered(ask, None);
                    }
                    None => return,
                },
            }
        }
    }

    /// Asks over a connection for as long as it is good.
    async fn serve(&mut self, connection: Connection) {
        let mut asking: FuturesUnordered<Asking> = FuturesUnordered::new();
        let mut failed = 0;
        let mut next = tokio::time::Instant::now();
        loop {
            let Some(link) = self.link.upgrade() else { return };
            tokio::select! {
                biased;
                Some(()) = asking.next(), if !asking.is_empty() => {}
                ask = self.asked.recv() => match ask {
                    Some(ask) => asking.push(Box::pin(lease(connection.clone(), link.clone(), ask))),
                    None => return,
                },
                () = either(link.suspect.notified(), tokio::time::sleep_until(next)) => {
                    match self.beat(&link, connection.clone(), &mut asking).await {
                        Ok(()) => failed = 0,
                        Err(e) => {
                            failed += 1;
                            self.lost(&link, &e);
                            if connection.is_closed(&e) || failed >= HOPELESS {
                                return;
                            }
                        }
                    }
                    next = tokio::time::Instant::now() + if failed == 0 { BEAT } else { RETRY };
                }
            }
        }
    }

    /// Proves that Redis answers, and uses the occasion.
    async fn beat(
        &mut self,
        link: &Arc<Link>,
        mut connection: Connection,
        asking: &mut FuturesUnordered<Asking>,
    ) -> RedisResult<()> {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(PRESENT).arg(1).arg(format!("{}:quota:nodes", link.settings.prefix)).arg(&self.me);
        let nodes = tokio::time::timeout(PATIENCE, connection.ask::<u64>(&cmd)).await;
        let nodes = nodes.unwrap_or_else(|_| Err((ErrorKind::Io, "no answer").into()))?;
        let all: Vec<Arc<Shared>> = link.all.lock().iter().filter_map(Weak::upgrade).collect();
        let changed = link.seen.swap(nodes.max(1), Relaxed) != nodes;
        link.told.nodes.set(i64::try_from(link.nodes()).unwrap_or(i64::MAX));
        if changed {
            all.iter().for_each(|shared| shared.tell_bounds());
        }
        for ask in all.iter().flat_map(|shared| shared.sweep(self.away)) {
            asking.push(Box::pin(lease(connection.clone(), link.clone(), ask)));
        }
        if self.away {
            // Before anybody leases from it, it knows what we know.
            while asking.next().await.is_some() {}
            self.away = false;
            tracing::info!(nodes, "Redis answers, quotas are shared");
        }
        link.up.store(true, Relaxed);
        link.told.up.set(1);
        Ok(())
    }

    fn lost(&mut self, link: &Link, error: &RedisError) {
        link.up.store(false, Relaxed);
        link.told.up.set(0);
        link.told.errors.inc();
        if !std::mem::replace(&mut self.away, true) {
            tracing::warn!(%error, "Redis does not answer, shared quotas count alone");
        }
    }
}

/// One question. However it ends, the slice hears of it.
async fn lease(mut connection: Connection, link: Arc<Link>, ask: Ask) {
    let begun = now();
    let answer = tokio::time::timeout(LOST, exchange(&mut connection, &link, &ask)).await;
    link.told.took.observe(now().since(begun));
    let grant = match answer {
        Ok(Ok(grant)) => {
            link.told.leases.inc();
            link.told.units.add(grant.granted);
            Some(grant)
        }
        Ok(Err(e)) => {
            link.told.errors.inc();
            tracing::debug!(error = %e, "a question of a quota");
            link.doubt();
            None
        }
        Err(_) => {
            link.told.errors.inc();
            link.doubt();
            None
        }
    };
    let shared = ask.shared.clone();
    shared.answered(ask, grant);
}

async fn exchange(connection: &mut Connection, link: &Link, ask: &Ask) -> RedisResult<Grant> {
    let (kind, limit, step) = ask.shared.numbers(ask.period);
    let command = |name: &str, script: &str| {
        let mut cmd = redis::cmd(name);
        let terms = &ask.terms;
        cmd.arg(script).arg(1).arg(ask.shared.key_of(ask.id, ask.period));
        cmd.arg(kind).arg(limit).arg(step).arg(terms.need).arg(terms.want).arg(terms.told).arg(terms.seen);
        cmd.arg(link.nodes()).arg(u8::from(terms.resync));
        cmd
    };
    let answer = match connection.ask(&command("EVALSHA", &LEASE_SHA)).await {
        // A Redis that was started anew has forgotten it.
        Err(e) if e.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            connection.ask(&command("EVAL", LEASE)).await
        }
        other => other,
    };
    let (granted, free, state, wait): (u64, u64, String, u64) = answer?;
    let state = state.parse().map_err(|_| RedisError::from((ErrorKind::Parse, "not a number")))?;
    Ok(Grant { granted, free, state, wait: Duration::from_micros(wait) })
}

async fn connect(settings: &RedisSettings) -> RedisResult<Connection> {
    let tls = settings.urls.iter().any(|url| url.starts_with("rediss://"));
    let certificates = (settings.ca.is_some() || settings.client.is_some()).then(|| TlsCertificates {
        client_tls: settings
            .client
            .clone()
            .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
        root_cert: settings.ca.clone(),
    });
    let infos = settings.urls.iter().map(|url| {
        let info = url.as_str().into_connection_info()?;
        let mut own = info.redis_settings().clone();
        if let Some(username) = &settings.username {
            own = own.set_username(username);
        }
        if let Some(password) = &settings.password {
            own = own.set_password(&password.0);
        }
        Ok(info.set_redis_settings(own))
    });
    let infos = infos.collect::<RedisResult<Vec<_>>>()?;
    if settings.cluster {
        let mut builder = ClusterClientBuilder::new(infos).connection_timeout(LOST).response_timeout(LOST).retries(2);
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates);
        }
        return builder.build()?.get_async_connection().await.map(Connection::Cluster);
    }
    let first = infos.into_iter().next().ok_or((ErrorKind::InvalidClientConfig, "no URL"))?;
    let client = match certificates.filter(|_| tls) {
        Some(certificates) => Client::build_with_tls(first, certificates)?,
        None => Client::open(first)?,
    };
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(LOST)).set_response_timeout(Some(LOST));
    client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::One)
}

async fn either(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    tokio::select! {
        () = a => {}
        () = b => {}
    }
}

/// Up to half of a pause, so that processes do not all come back at once.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(f64::from(u32::try_from(now().0 % 1000).unwrap_or(0)) / 2000.0)
}

fn sha1(text: &str) -> String {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
