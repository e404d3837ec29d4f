//! `discover: { file: endpoints.json }`: endpoints from a file that something else writes.

mod core;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::contract::mesh::{Discover, Found, Report};
use crate::contract::section::{ConfigError, Node};
use crate::contract::{Build, Entry, Role};

/// The filter.
pub const ENTRY: Entry = Entry {
    name: "file",
    summary: "Endpoints from a file, followed as it changes",
    readme: include_str!("README.md"),
    example: include_str!("example.yaml"),
    schema: |g| g.subschema_for::<PathBuf>(),
    role: Role::Discover(build),
};

/// How often the file is looked at. A look is one `stat`, and sees renames and swapped links alike.
const LOOK: Duration = Duration::from_secs(1);

fn build(section: &Node, build: &mut Build<'_>) -> Result<Arc<dyn Discover>, ConfigError> {
    let path: PathBuf = section.read()?;
    if path.as_os_str().is_empty() {
        return Err(ConfigError::at(section.span, "a file has a name"));
    }
    Ok(Arc::new(File { path: build.path(&path), look: LOOK }))
}

#[derive(Clone)]
struct File {
    path: PathBuf,
    look: Duration,
}

impl Discover for File {
    fn initial(&self) -> Vec<Found> {
        // A file that is not there yet, or is bad, is reported by the watch.
        std::fs::read_to_string(&self.path).ok().and_then(|text| core::parse(&text).ok()).unwrap_or_default()
    }
    fn watch(&self, report: Report) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(Box::pin(follow(self.clone(), report)))
    }
    fn describe(&self) -> String {
        format!("file {}", self.path.display())
    }
}

/// What tells one version of a file from another; the inode changes with every rename.
type Version = (u64, u64, Option<SystemTime>);

async fn follow(file: File, report: Report) {
    let mut seen: Option<Result<Version, String>> = None;
    loop {
        let version = version(&file.path).await;
        if seen.as_ref() != Some(&version) {
            match &version {
                Ok(_) => match read(&file.path).await {
                    Ok(list) => report.found(list),
                    Err(why) => report.failed(format!("{}: {why}", file.path.display())),
                },
                Err(why) => report.failed(format!("{}: {why}", file.path.display())),
            }
            seen = Some(version);
        }
        tokio::time::sleep(file.look).await;
    }
}

async fn version(path: &Path) -> Result<Version, String> {
    use std::os::unix::fs::MetadataExt;
    let meta = tokio::fs::metadata(path).await.map_err(|e| e.to_string())?;
    Ok((meta.ino(), meta.len(), meta.modified().ok()))
}

async fn read(path: &Path) -> Result<Vec<Found>, String> {
    let text = tokio::fs::read_to_string(path).await.map_err(|e| e.to_string())?;
    core::parse(&text)
}
