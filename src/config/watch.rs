//! Tells when a configuration changed on disk.
//!
//! Folders are watched, not files: an editor and an atomic rename replace the file, a Kubernetes ConfigMap swaps the
//! `..data` symlink beside it. Events only wake us; what decides is the content, once it stands still.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::load::{Source, folder};

/// Quiet time after which a write counts as complete.
const SETTLE: Duration = Duration::from_millis(150);
/// How often the content is looked at without an event: some network file systems send none.
const POLL: Duration = Duration::from_secs(10);

/// Calls `on_change` after each change of the sources' content. Runs until dropped. Standard input and given text never
/// change.
///
/// What counts as unchanged is the content at the time of the call, not of the first poll: call this before loading,
/// and no change in between is missed.
pub fn watch(sources: Vec<Source>, on_change: impl Fn() + Send) -> impl Future<Output = ()> + Send {
    let paths: Vec<PathBuf> = sources
        .into_iter()
        .filter_map(|s| match s {
            Source::Path(path) => Some(path),
            Source::Stdin | Source::Text { .. } => None,
        })
        .collect();
    let known = fingerprint(&paths);
    follow_changes(paths, known, on_change)
}

async fn follow_changes(paths: Vec<PathBuf>, mut known: Option<u64>, on_change: impl Fn() + Send) {
    if paths.is_empty() {
        return std::future::pending().await;
    }
    // Room for one: events say "look", not what happened.
    let (wake, mut woken) = mpsc::channel(1);
    // Look once after the watches are set: something may have changed before.
    let _ = wake.try_send(());
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|e| !e.kind.is_access()) {
            let _ = wake.try_send(());
        }
    });
    let mut watcher = watcher.inspect_err(|e| tracing::warn!("files are polled, not watched: {e}")).ok();
    let mut watched = BTreeSet::new();
    loop {
        // Folders may come, go and be re-pointed; watching again is cheap.
        follow(&mut watcher, &folders(&paths), &mut watched);
        let _ = tokio::time::timeout(POLL, woken.recv()).await;
        let settled = settle(&paths, &mut woken).await;
        if settled.is_some() && settled != known {
            known = settled;
            on_change();
        }
    }
}

/// The content once it has not changed for [`SETTLE`]; `None` while a file is missing or empty: a save is under way.
async fn settle(paths: &[PathBuf], woken: &mut mpsc::Receiver<()>) -> Option<u64> {
    let mut seen = fingerprint(paths);
    loop {
        tokio::time::sleep(SETTLE).await;
        while woken.try_recv().is_ok() {}
        let now = fingerprint(paths);
        if now == seen {
            return now;
        }
        seen = now;
    }
}

/// Hash over names and contents.
fn fingerprint(paths: &[PathBuf]) -> Option<u64> {
    let mut hasher = foldhash::quality::FixedState::with_seed(0).build_hasher();
    for path in paths {
        let files = if path.is_dir() { folder(path).ok()? } else { vec![path.clone()] };
        if files.is_empty() {
            return None;
        }
        for file in files {
            let bytes = std::fs::read(&file).ok().filter(|b| !b.is_empty())?;
            file.hash(&mut hasher);
            bytes.hash(&mut hasher);
        }
    }
    Some(hasher.finish())
}

/// The folders to watch: a file's own, and those its symlinks lead through.
fn folders(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for path in paths {
        let home = if path.is_dir() { Some(path.as_path()) } else { path.parent() };
        let home = home.map(|h| if h.as_os_str().is_empty() { Path::new(".") } else { h });
        all.extend(home.map(Path::to_path_buf));
        let target = std::fs::canonicalize(path).ok();
        let real = target.as_deref().and_then(|t| if t.is_dir() { Some(t) } else { t.parent() });
        all.extend(real.map(Path::to_path_buf));
    }
    all
}

fn follow(watcher: &mut Option<RecommendedWatcher>, wanted: &BTreeSet<PathBuf>, watched: &mut BTreeSet<PathBuf>) {
    let Some(watcher) = watcher else { return };
    for gone in watched.difference(wanted) {
        let _ = watcher.unwatch(gone);
    }
    // A folder that was replaced has the same name and a dead watch: watch again even if we did before.
    *watched = wanted
        .iter()
        .filter(|folder| match watcher.watch(folder, RecursiveMode::NonRecursive) {
            Ok(()) => true,
            Err(e) => {
                tracing::warn!("cannot watch {}: {e}", folder.display());
                false
            }
        })
        .cloned()
        .collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A watched path; `changed` waits for the next report, `quiet` asserts that none comes.
    struct Watched {
        reports: mpsc::UnboundedReceiver<()>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Watched {
        async fn new(path: &Path) -> Self {
            let (tx, reports) = mpsc::unbounded_channel();
            let sources = vec![Source::Path(path.to_path_buf())];
            let task = tokio::spawn(watch(sources, move || {
                let _ = tx.send(());
            }));
            // The first poll takes the fingerprint and sets the watches.
            tokio::task::yield_now().await;
            Self { reports, task }
        }
        async fn changed(&mut self) {
            let wait = tokio::time::timeout(Duration::from_secs(5), self.reports.recv());
            assert_eq!(wait.await.ok().flatten(), Some(()), "the change was not seen");
        }
        async fn quiet(&mut self) {
            let wait = tokio::time::timeout(SETTLE * 4, self.reports.recv());
            assert!(wait.await.is_err(), "reported without a change");
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    #[tokio::test]
    async fn an_atomic_rename_is_seen_each_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("a.yaml");
        fs::write(&file, "version: 1\n").expect("write");
        let mut watched = Watched::new(&file).await;
        for text in ["version: 1 # b\n", "version: 1 # c\n"] {
            let temporary = dir.path().join(".a.yaml.tmp");
            fs::write(&temporary, text).expect("write");
            fs::rename(&temporary, &file).expect("rename");
            watched.changed().await;
        }
    }

    #[tokio::test]
    async fn a_write_in_place_is_reported_once_and_a_touch_never() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("a.yaml");
        fs::write(&file, "version: 1\n").expect("write");
        let mut watched = Watched::new(&file).await;
        // Truncated, half written, complete: one change.
        fs::write(&file, "").expect("write");
        fs::write(&file, "vers").expect("write");
        fs::write(&file, "version: 1\nroutes: []\n").expect("write");
        watched.changed().await;
        fs::write(&file, "version: 1\nroutes: []\n").expect("write");
        watched.quiet().await;
    }

    #[tokio::test]
    async fn a_missing_file_is_a_save_under_way() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("a.yaml");
        fs::write(&file, "version: 1\n").expect("write");
        let mut watched = Watched::new(&file).await;
        fs::remove_file(&file).expect("remove");
        watched.quiet().await;
        fs::write(&file, "version: 1 # again\n").expect("write");
        watched.changed().await;
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_config_map_swap_is_seen_each_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let link = |target: &str| {
            std::os::unix::fs::symlink(target, dir.path().join("..new")).expect("symlink");
            fs::rename(dir.path().join("..new"), dir.path().join("..data")).expect("rename");
        };
        for (version, text) in [("..v1", "version: 1\n"), ("..v2", "version: 1 # 2\n"), ("..v3", "version: 1 # 3\n")] {
            fs::create_dir(dir.path().join(version)).expect("mkdir");
            fs::write(dir.path().join(version).join("a.yaml"), text).expect("write");
        }
        link("..v1");
        let file = dir.path().join("a.yaml");
        std::os::unix::fs::symlink("..data/a.yaml", &file).expect("symlink");
        for path in [file.as_path(), dir.path()] {
            let mut watched = Watched::new(path).await;
            link("..v2");
            watched.changed().await;
            link("..v3");
            watched.changed().await;
            link("..v1");
            watched.changed().await;
        }
    }

    #[tokio::test]
    async fn a_file_that_joins_a_folder_is_a_change() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join("a.yaml"), "version: 1\n").expect("write");
        let mut watched = Watched::new(dir.path()).await;
        fs::write(dir.path().join("notes.txt"), "x").expect("write");
        watched.quiet().await;
        fs::write(dir.path().join("b.yaml"), "routes: []\n").expect("write");
        watched.changed().await;
    }
}
