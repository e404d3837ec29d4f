//! What the admin endpoints show and start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::future::BoxFuture;
use onehop_filters::contract::mesh::Switch;
use onehop_filters::contract::metrics::Registry;
use onehop_filters::contract::now;
use serde_json::{Value, json};

use super::Shared;
use crate::admin::{Admin, Facts};
use crate::config::effective_of;
use crate::config::plan::{self, Bind};
use crate::observe::log::Log;
use crate::runtime::Phase;

impl Facts for Shared {
    fn ready(&self) -> Result<(), String> {
        match self.listeners.drain.phase() {
            Phase::Running => Ok(()),
            _ => Err("draining".to_owned()),
        }
    }

    fn health(&self) -> Value {
        let rejected = self.rejected.lock().as_ref().map(ToString::to_string);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "generation": self.generation.load(Relaxed),
            "uptime_seconds": now().since(onehop_filters::contract::Moment::ZERO).as_secs(),
            "connections": self.listeners.connections(),
            "config_rejected": rejected,
        })
    }

    fn config(&self) -> Value {
        let running = self.running.lock().clone();
        json!({
            "generation": self.generation.load(Relaxed),
            "hash": format!("{:016x}", running.hash),
            "config": effective_of(&running.files, &running.dir, self.entries),
        })
    }

    fn endpoints(&self) -> Value {
        self.cell.load().endpoints()
    }

    fn breakers(&self) -> Value {
        let snapshot = self.cell.load();
        snapshot.targets.iter().map(|t| (t.service.name.to_string(), t.service.breaker())).collect()
    }

    fn switch(&self, service: &str, to: Switch) -> Option<Value> {
        let snapshot = self.cell.load();
        let service = snapshot.service(service)?;
        service.cluster.switch(to);
        Some(service.breaker())
    }

    fn certs(&self) -> Value {
        let certificates: Vec<Value> = self.listeners.certificates().iter().map(|c| json!(c)).collect();
        let refused: Vec<Value> = self
            .listeners
            .listeners()
            .iter()
            .filter_map(|l| Some(json!({ "listener": &*l.settings().plan.name, "error": l.certificate_error()? })))
            .collect();
        json!({ "certificates": certificates, "refused": refused })
    }

    fn reload(&self) -> BoxFuture<'static, Result<Value, Value>> {
        let result = Self::reload(self);
        Box::pin(async move {
            result.map(|generation| json!({ "generation": generation })).map_err(|report| report.to_json())
        })
    }

    fn drain(&self) {
        self.stop.notify_one();
    }

    fn registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }

    fn log(&self) -> Log {
        self.log.clone()
    }
}

impl Shared {
    /// Opens the admin listener, then lets go of the one before; its last answers may still go out.
    pub(super) fn open_admin(&self, admin: &plan::Admin) -> std::io::Result<()> {
        let next = match &admin.bind {
            Some(bind) => {
                let _inside = self.control.enter();
                self.me.upgrade().map(|me| Admin::start(bind, me)).transpose()?
            }
            None => None,
        };
        let old = std::mem::replace(&mut *self.admin.lock(), next);
        if let Some(old) = old {
            self.control.spawn(old.stop());
        }
        Ok(())
    }

    /// Where admin listens, if on TCP.
    pub(super) fn admin_address(&self) -> Option<SocketAddr> {
        match self.admin.lock().as_ref()?.bound() {
            Bind::Tcp(address) => Some(*address),
            Bind::Unix(_) => None,
        }
    }
}
