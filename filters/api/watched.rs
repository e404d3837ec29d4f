//! Documents that filters are compiled from and that change on disk without the configuration: descriptor sets, schemas,
//! OpenAPI descriptions. One that is bad changes nothing: the last good one stays in force.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use crate::contract::Build;
use crate::contract::metrics::{Counter, Registry};

/// How often files are looked at. A look is one `stat` each, and sees renames and swapped links alike.
const LOOK: Duration = if cfg!(test) { Duration::from_millis(5) } else { Duration::from_secs(1) };
/// Largest document.
const MOST: u64 = 32 << 20;

/// What was compiled, and the files it came from.
pub struct Compiled<T> {
    pub made: T,
    files: Vec<PathBuf>,
    /// As they were when they had been read: a change that comes before the first look is one, too.
    versions: Vec<Version>,
}

impl<T> Compiled<T> {
    /// Right after the files were read.
    pub fn new(made: T, files: Vec<PathBuf>) -> Self {
        let versions = versions(&files);
        Self { made, files, versions }
    }
}

/// Compiles anew; the error is a sentence for the log.
pub type Compile<T> = Box<dyn Fn() -> Result<Compiled<T>, String> + Send + Sync>;

/// What is in force.
pub struct Watched<T> {
    current: ArcSwap<Compiled<T>>,
    /// One task follows the files, however often the configuration is reloaded.
    followed: AtomicBool,
    reloads: [Counter; 2],
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Keeps what was compiled over configurations of the same `shape`, and follows its files.
    pub fn keep(
        build: &mut Build<'_>,
        kind: &'static str,
        shape: &str,
        first: Compiled<T>,
        compile: Compile<T>,
    ) -> Arc<Self> {
        let first = Arc::new(first);
        let route = build.scope.strip_prefix("routes.").unwrap_or(&build.scope).to_owned();
        let metrics: Arc<Registry> = build.metrics.clone();
        let kept = build.keep(kind, shape, || {
            let count = |result| {
                let labels = [("route", route.as_str()), ("filter", kind), ("result", result)];
                metrics.counter(
                    "onehop_document_reloads_total",
                    "Documents read anew after a change, by result",
                    &labels,
                )
            };
            Self {
                current: ArcSwap::from(first.clone()),
                followed: AtomicBool::new(false),
                reloads: [count("ok"), count("failed")],
            }
        });
        let (fresh, followed) = (kept.clone(), Arc::downgrade(&kept));
        build.at_publish(move || fresh.current.store(first));
        build.background(follow(followed, route, compile));
        kept
    }

    /// What is in force now.
    pub fn load(&self) -> Arc<Compiled<T>> {
        self.current.load_full()
    }
}

/// What tells one version of a file from another; the inode changes with every rename.
type Version = Option<(u64, u64, Option<SystemTime>)>;

fn version(path: &Path) -> Version {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.modified().ok()))
}

fn versions(files: &[PathBuf]) -> Vec<Version> {
    files.iter().map(|file| version(file)).collect()
}

async fn follow<T: Send + Sync + 'static>(watched: Weak<Watched<T>>, route: String, compile: Compile<T>) {
    match watched.upgrade() {
        Some(watched) if !watched.followed.swap(true, Relaxed) => {}
        _ => return,
    }
    let mut seen: Option<(Arc<Compiled<T>>, Vec<Version>)> = None;
    loop {
        {
            let Some(watched) = watched.upgrade() else { return };
            let current = watched.load();
            let now = versions(&current.files);
            let before =
                seen.as_ref().filter(|(of, _)| Arc::ptr_eq(of, &current)).map_or(&current.versions, |(_, v)| v);
            // A file that is not there is being replaced.
            if *before != now && now.iter().all(Option::is_some) {
                match compile() {
                    Ok(compiled) => {
                        tracing::info!(route, "the documents changed and are in force");
                        watched.reloads[0].inc();
                        watched.current.store(Arc::new(compiled));
                    }
                    Err(why) => {
                        tracing::warn!(route, "the documents changed and are bad, the last good ones stay: {why}");
                        watched.reloads[1].inc();
                    }
                }
            }
            // As it was before it was read: what was written meanwhile is found by the next look.
            seen = Some((current, now));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Reads a document of bounded size.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let wrong = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(wrong)?.take(MOST + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > MOST { Err(format!("{}: larger than 32 MiB", path.display())) } else { Ok(bytes) }
}

/// Reads a document of YAML or JSON.
pub fn document(path: &Path) -> Result<serde_json::Value, String> {
    let bytes = read(path)?;
    let wrong = |e: String| format!("{}: {}", path.display(), e.lines().next().unwrap_or_default());
    if path.extension().is_some_and(|e| e == "json") {
        return serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()));
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| wrong(e.to_string()))?;
    serde_saphyr::from_str(text).map_err(|e| wrong(e.to_string()))
}
