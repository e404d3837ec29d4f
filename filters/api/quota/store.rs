//! The file that counters survive a restart in: one file, replaced as a whole, so that a reader finds the old or the new
//! one and never a part.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::saved::{Persist, Table};
use crate::contract::Build;
use crate::contract::metrics::Counter;

const FILE: &str = "quota.json";
/// First word of the file, then the SHA-256 of all that follows the first line.
const MAGIC: &str = "onehop-quota-1";

/// See the module. Lives on across reloads.
pub struct Store {
    dir: PathBuf,
    every: Duration,
    /// What an earlier process left and no limit has asked for. Contended by reloads and saves only.
    unclaimed: Mutex<BTreeMap<String, Table>>,
    /// Who counts. Contended by reloads and saves only.
    live: Mutex<BTreeMap<String, Weak<dyn Persist>>>,
    saving: AtomicBool,
    failed: Counter,
}

impl Store {
    /// The store of `state.dir`, if there is one.
    pub fn of(build: &mut Build<'_>) -> Option<Arc<Self>> {
        let settings = build.directory.state.clone();
        let dir = settings.dir.as_ref()?;
        let failed = build.metrics.counter("onehop_quota_save_errors_total", "Counters that could not be saved", &[]);
        let scope = std::mem::replace(&mut build.scope, "state".to_owned());
        let shape = format!("{} {:?}", dir.display(), settings.save_every);
        let store = build.keep("quota", &shape, || Self::open(dir, settings.save_every, failed));
        build.scope = scope;
        Some(store)
    }

    fn open(dir: &Path, every: Duration, failed: Counter) -> Self {
        Self {
            dir: dir.to_path_buf(),
            every,
            unclaimed: Mutex::new(load(&dir.join(FILE))),
            live: Mutex::default(),
            saving: AtomicBool::new(false),
            failed,
        }
    }

    /// What an earlier process left of the limit of this name.
    pub fn earlier(&self, name: &str) -> Table {
        self.unclaimed.lock().get(name).cloned().unwrap_or_default()
    }

    /// Saves these counters from now on, and keeps saving as long as anybody counts.
    pub fn adopt(self: &Arc<Self>, name: String, who: &Arc<impl Persist + 'static>) {
        self.unclaimed.lock().remove(&name);
        let who: Arc<dyn Persist> = who.clone();
        self.live.lock().insert(name, Arc::downgrade(&who));
    }

    /// Saves at intervals until nobody else holds the store, and once more at the end, however that comes: the control
    /// thread drops its tasks when the process ends.
    pub async fn keep_saving(self: Arc<Self>) {
        if self.saving.swap(true, SeqCst) {
            return;
        }
        let last = Last(self);
        loop {
            tokio::time::sleep(last.0.every).await;
            let store = last.0.clone();
            // The write waits for the disk.
            let saved = tokio::task::spawn_blocking(move || store.save()).await;
            if saved.is_err() {
                last.0.failed.inc();
            }
            if Arc::strong_count(&last.0) == 1 {
                return;
            }
        }
    }

    fn save(&self) {
        let mut tables = self.unclaimed.lock().clone();
        {
            let mut live = self.live.lock();
            live.retain(|_, who| who.strong_count() > 0);
            tables.extend(live.iter().filter_map(|(name, who)| Some((name.clone(), who.upgrade()?.table()))));
        }
        tables.retain(|_, table| !table.is_empty());
        if let Err(e) = write(&self.dir, &tables) {
            self.failed.inc();
            tracing::error!(error = %e, dir = %self.dir.display(), "quota counters could not be saved");
        }
    }
}

/// Saves when it goes.
struct Last(Arc<Store>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.save();
        self.0.saving.store(false, SeqCst);
    }
}

/// A new file beside the old one, on the disk before it takes its place.
fn write(dir: &Path, tables: &BTreeMap<String, Table>) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let body = serde_json::to_vec(tables)?;
    let temporary = dir.join(format!("{FILE}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(format!("{MAGIC} {}\n", digest(&body)).as_bytes())?;
    file.write_all(&body)?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(FILE))?;
    // The name is on the disk once the folder is.
    File::open(dir)?.sync_all()
}

/// What is in the file; nothing if there is none. One that cannot be read is put aside.
fn load(path: &Path) -> BTreeMap<String, Table> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return BTreeMap::new(),
        Err(e) => {
            tracing::error!(error = %e, path = %path.display(), "quota counters cannot be read, counting begins anew");
            return BTreeMap::new();
        }
    };
    parse(&bytes).unwrap_or_else(|| {
        let aside = path.with_extension(format!("corrupt-{}", jiff::Timestamp::now().as_second()));
        let kept = std::fs::rename(path, &aside);
        tracing::error!(path = %path.display(), aside = %aside.display(), kept = kept.is_ok(),
            "the file of quota counters is damaged, counting begins anew");
        BTreeMap::new()
    })
}

fn parse(bytes: &[u8]) -> Option<BTreeMap<String, Table>> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
    let sum = head.strip_prefix(MAGIC)?.trim_start();
    (sum == digest(body)).then(|| serde_json::from_slice(body).ok())?
}

fn digest(body: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_back_and_a_damaged_one_is_put_aside() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join(FILE);
        assert!(load(&path).is_empty(), "no file, no counters");
        let tables = BTreeMap::from([("routes.a/quota/x".to_owned(), Table::default())]);
        write(dir.path(), &tables).expect("written");
        assert_eq!(load(&path), tables);
        let whole = std::fs::read(&path).expect("the file");
        for damaged in [&whole[..whole.len() - 1], &whole[3..], b"", b"\n{}"] {
            std::fs::write(&path, damaged).expect("written");
            assert!(load(&path).is_empty());
            assert!(!path.exists(), "put aside");
        }
        let aside = std::fs::read_dir(dir.path()).expect("a folder").flatten();
        assert!(aside.into_iter().any(|f| f.file_name().to_string_lossy().contains("corrupt-")));
    }
}
