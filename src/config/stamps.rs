//! How files looked when they were read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How files looked: cheap to compare, and different after every way of replacing a file (in place, by rename, by the
/// swapped symbolic link of a Kubernetes secret). Take it before reading: what is written meanwhile is then seen as a
/// change, never missed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamps(Vec<(PathBuf, Option<Stamp>)>);

type Stamp = (u64, u64, u64, i64, i64, i64, i64);

impl Stamps {
    /// Of these files, now.
    pub fn of<'a>(files: impl Iterator<Item = &'a Path>) -> Self {
        Self(files.map(|path| (path.to_owned(), stamp(path))).collect())
    }

    /// Whether the files look as they did.
    #[must_use]
    pub fn current(&self) -> bool {
        self.0.iter().all(|(path, was)| stamp(path) == *was)
    }

    /// The same files, now.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::of(self.0.iter().map(|(path, _)| path.as_path()))
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let m = fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
}
