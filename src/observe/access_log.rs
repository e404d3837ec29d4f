//! The access log: records into per-worker buffers, one thread that writes them.
//!
//! A request formats its line straight into its worker's buffer and goes on. The writer takes all buffers every
//! `DELAY`, or sooner when one holds `BATCH` bytes; it sleeps without a timer while nothing is logged. A buffer that
//! is full because the disk or the reader of a pipe is slow makes lines drop, and be counted; it never makes a request wait.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::thread::{self, Thread};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use onehop_filters::contract::metrics::{Counter, Registry};
use onehop_filters::contract::worker;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::record::Record;
use crate::config::plan;

/// How long a line waits at most for others.
const DELAY: Duration = Duration::from_millis(50);
/// Bytes in one buffer that wake the writer before its time.
const BATCH: usize = 32 * 1024;
/// Bytes one buffer may hold; what comes then is dropped.
const CAPACITY: usize = 1024 * 1024;

/// A log that outlives configurations: reuse it while [`AccessLog::fits`] says so.
pub struct AccessLog(Arc<Shared>);

struct Shared {
    path: PathBuf,
    text: bool,
    /// Records whose hash is above are left out: `sample` as a share of `u64::MAX`.
    sample: AtomicU64,
    buffers: Box<[Slot]>,
    writer: OnceLock<Thread>,
    /// The writer knows that there is something to write.
    awake: AtomicBool,
    /// A buffer is past [`BATCH`]: do not wait for `DELAY`.
    urgent: AtomicBool,
    reopen: AtomicBool,
    stop: AtomicBool,
    /// Flushes asked for and done. Contended only at shutdown, by whoever flushes and the writer.
    flushes: Mutex<(u64, u64)>,
    flushed: Condvar,
    written: Counter,
    dropped: Counter,
}

/// Two buffers of one worker. The writer holds one lock at a time, and the worker then takes the other: so a writer that
/// loses its core in the middle of a swap keeps no request waiting. Shard 0 alone is shared, by threads that serve nobody.
#[repr(align(128))]
#[derive(Default)]
struct Slot([Mutex<Buffer>; 2]);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        let [first, second] = &self.0;
        first.try_lock().or_else(|| second.try_lock()).unwrap_or_else(|| first.lock())
    }
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    lines: u64,
    /// Second that `stamp` was made for.
    second: u64,
    /// `2026-01-02T03:04:05`, remade once a second.
    stamp: Vec<u8>,
}

impl AccessLog {
    /// Opens the file and starts the writer.
    ///
    /// # Errors
    /// If the file cannot be opened or the thread not started.
    pub fn open(plan: &plan::AccessLog, registry: &Registry) -> io::Result<Self> {
        let file = open(&plan.path)?;
        let shared = Arc::new(Shared {
            path: plan.path.clone(),
            text: plan.text,
            sample: AtomicU64::new(share(plan.sample)),
            buffers: (0..worker::shards()).map(|_| Slot::default()).collect(),
            writer: OnceLock::new(),
            awake: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            flushes: Mutex::default(),
            flushed: Condvar::new(),
            written: registry.counter("onehop_access_log_lines_total", "Access log lines written.", &[]),
            dropped: registry.counter(
                "onehop_access_log_dropped_total",
                "Access log lines dropped because the log could not take them.",
                &[],
            ),
        });
        let writer = thread::Builder::new().name("access-log".into()).spawn({
            let shared = shared.clone();
            move || shared.run(file)
        })?;
        let _ = shared.writer.set(writer.thread().clone());
        Ok(Self(shared))
    }

    /// Whether this log serves a new plan; then [`AccessLog::set_sample`] is all there is to change.
    #[must_use]
    pub fn fits(&self, plan: &plan::AccessLog) -> bool {
        self.0.path == plan.path && self.0.text == plan.text
    }

    /// Changes the share of successes that is logged.
    pub fn set_sample(&self, sample: f64) {
        self.0.sample.store(share(sample), Relaxed);
    }

    /// Logs one request. Never blocks: the line is in memory, or dropped and counted, when this returns.
    pub fn write(&self, record: &Record<'_>) {
        let shared = &*self.0;
        let sample = shared.sample.load(Relaxed);
        if sample != u64::MAX && !record.must_keep() && hash(record.request_id) > sample {
            return;
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut buffer = shared.buffers[worker::shard()].lock();
        if buffer.bytes.len() >= CAPACITY {
            shared.dropped.inc();
            return;
        }
        buffer.line(record, shared.text, at);
        let full = buffer.bytes.len() >= BATCH;
        drop(buffer);
        // A wake-up costs several microseconds: once per delay, and once more when a batch is full early.
        let first = !shared.awake.load(Relaxed) && !shared.awake.swap(true, AcqRel);
        let early = full && !shared.urgent.load(Relaxed) && !shared.urgent.swap(true, AcqRel);
        if first || early {
            shared.wake();
        }
    }

    /// Opens the path anew, after a rotation; lines so far go to the old file.
    pub fn reopen(&self) {
        self.0.reopen.store(true, Release);
        self.0.wake();
    }

    /// Waits until everything logged so far is written, at most `patience`. Returns whether it is. Blocks: for shutdown.
    pub fn flush(&self, patience: Duration) -> bool {
        let mut flushes = self.0.flushes.lock();
        flushes.0 += 1;
        let mine = flushes.0;
        self.0.wake();
        !self.0.flushed.wait_while_for(&mut flushes, |f| f.1 < mine, patience).timed_out()
    }
}

impl Drop for AccessLog {
    /// The writer writes what is left and ends by itself: dropping a log must not wait for a slow disk.
    fn drop(&mut self) {
        self.0.stop.store(true, Release);
        self.0.wake();
    }
}

impl Buffer {
    fn line(&mut self, record: &Record<'_>, text: bool, at: Duration) {
        if self.second != at.as_secs() || self.stamp.is_empty() {
            self.second = at.as_secs();
            self.stamp.clear();
            let second = i64::try_from(self.second).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
            // Writing to a Vec cannot fail.
            let _ = write!(self.stamp, "{:.0}", second.unwrap_or_default());
            self.stamp.pop_if(|z| *z == b'Z');
        }
        let millis = at.subsec_millis();
        let mut stamp = [0u8; 24];
        let len = self.stamp.len().min(19);
        stamp[..len].copy_from_slice(&self.stamp[..len]);
        let digit = |n: u32| b'0' + u8::try_from(n % 10).unwrap_or(0);
        stamp[len..len + 5].copy_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
        if text {
            record.text(&mut self.bytes, &stamp[..len + 5]);
        } else {
            record.json(&mut self.bytes, &stamp[..len + 5]);
        }
        self.lines += 1;
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn due(&self) -> bool {
        let flushes = self.flushes.lock();
        flushes.0 > flushes.1 || self.stop.load(Acquire) || self.reopen.load(Acquire)
    }

    fn run(&self, mut file: File) {
        let mut spare = Vec::with_capacity(2 * BATCH);
        let mut failing = false;
        loop {
            while !self.awake.load(Acquire) && !self.due() {
                thread::park();
            }
            if !self.urgent.load(Acquire) && !self.due() {
                // Any wake-up ends the wait early; it only makes the batch smaller.
                thread::park_timeout(DELAY);
            }
            let flush = self.flushes.lock().0;
            let stop = self.stop.load(Acquire);
            // Cleared before the buffers are taken: a line that comes later wakes us again.
            self.awake.store(false, Release);
            self.urgent.store(false, Release);
            for half in self.buffers.iter().flat_map(|slot| &slot.0) {
                let lines = {
                    let mut buffer = half.lock();
                    std::mem::swap(&mut buffer.bytes, &mut spare);
                    std::mem::take(&mut buffer.lines)
                };
                if lines > 0 {
                    let result = write_all(&mut file, &spare);
                    let counter = if result.is_ok() { &self.written } else { &self.dropped };
                    counter.add(lines);
                    // Told when it begins, not for every batch: a full disk stays full for a while.
                    if let Err(error) = &result
                        && !failing
                    {
                        tracing::warn!(path = %self.path.display(), %error, "access log lines are lost");
                    }
                    failing = result.is_err();
                }
                spare.clear();
                // What a burst needed is given back.
                spare.shrink_to(4 * BATCH);
            }
            if self.reopen.swap(false, AcqRel) {
                match open(&self.path) {
                    Ok(new) => file = new,
                    Err(error) => {
                        tracing::warn!(path = %self.path.display(), %error, "the access log stays on its old file");
                    }
                }
            }
            self.flushes.lock().1 = flush;
            self.flushed.notify_all();
            if stop {
                return;
            }
        }
    }
}

/// The standard streams are duplicated, not opened by name: `/dev/stdout` cannot be opened when it is a socket.
fn open(path: &Path) -> io::Result<File> {
    match path.to_str() {
        Some("/dev/stdout" | "-") => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        Some("/dev/stderr") => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        _ => OpenOptions::new().append(true).create(true).mode(0o640).open(path),
    }
}

/// Writes everything, also to a descriptor that someone made non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share")]
fn share(sample: f64) -> u64 {
    if sample >= 1.0 { u64::MAX } else { (sample.max(0.0) * u64::MAX as f64) as u64 }
}

/// FNV-1a with a final mix. Made from the request id, so that every hop keeps the same requests.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ fnv >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::Value;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn plan(path: &Path) -> plan::AccessLog {
        plan::AccessLog { path: path.into(), text: false, sample: 1.0 }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).expect("the log");
        text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
    }

    fn ok(id: &[u8]) -> Record<'_> {
        Record { request_id: id, status: 200, ..Record::default() }
    }

    #[test]
    fn lines_from_many_threads_arrive_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("access.log");
        let registry = Registry::default();
        let log = AccessLog::open(&plan(&path), &registry).expect("opens");
        thread::scope(|scope| {
            for n in 0..4 {
                let log = &log;
                scope.spawn(move || {
                    worker::enter(n);
                    for i in 0..500 {
                        log.write(&ok(format!("{n}-{i}").as_bytes()));
                    }
                });
            }
        });
        assert!(log.flush(PATIENCE));
        let mut ids: Vec<_> = lines(&path).iter().map(|l| l["request_id"].as_str().expect("id").to_owned()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 2000);
        assert_eq!(log.0.written.value(), 2000);
        assert_eq!(log.0.dropped.value(), 0);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777 & 0o027, 0);
    }

    #[test]
    fn a_line_is_written_without_a_flush() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        let log = AccessLog::open(&plan(Path::new(&path)), &Registry::default()).expect("opens");
        log.write(&ok(b"one"));
        let mut bytes = [0u8; 1024];
        let n = io::Read::read(&mut reader, &mut bytes).expect("reads");
        let line: Value = serde_json::from_slice(&bytes[..n]).expect("JSON");
        assert_eq!(line["request_id"], "one");
        let ts: jiff::Timestamp = line["ts"].as_str().expect("text").parse().expect("RFC 3339");
        assert!(line["ts"].as_str().expect("text").len() == 24);
        assert!((jiff::Timestamp::now() - ts).total(jiff::Unit::Second).expect("a span").abs() < 60.0);
    }

    #[test]
    fn a_stuck_reader_costs_lines_not_time() {
        let (_reader, writer) = io::pipe().expect("a pipe");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        let log = AccessLog::open(&plan(Path::new(&path)), &Registry::default()).expect("opens");
        let agent = vec![b'a'; 8192];
        let record = Record { user_agent: &agent, ..ok(b"x") };
        for _ in 0..400 {
            log.write(&record);
        }
        assert!(log.0.dropped.value() > 0);
        assert!(!log.flush(Duration::from_millis(10)), "the pipe is full");
    }

    #[test]
    fn a_full_disk_costs_lines_and_is_counted() {
        let log = AccessLog::open(&plan(Path::new("/dev/full")), &Registry::default()).expect("opens");
        log.write(&ok(b"one"));
        assert!(log.flush(PATIENCE));
        assert_eq!((log.0.dropped.value(), log.0.written.value()), (1, 0));
    }

    #[test]
    fn a_busy_writer_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("access.log");
        let log = AccessLog::open(&plan(&path), &Registry::default()).expect("opens");
        let held = log.0.buffers[worker::shard()].0[0].lock();
        log.write(&ok(b"beside"));
        drop(held);
        assert!(log.flush(PATIENCE));
        assert_eq!(lines(&path).len(), 1);
    }

    #[test]
    fn reopen_follows_a_rotation() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let log = AccessLog::open(&plan(&path), &Registry::default()).expect("opens");
        log.write(&ok(b"before"));
        assert!(log.flush(PATIENCE));
        std::fs::rename(&path, &old).expect("renames");
        log.reopen();
        assert!(log.flush(PATIENCE));
        log.write(&ok(b"after"));
        assert!(log.flush(PATIENCE));
        assert_eq!(lines(&old).iter().map(|l| &l["request_id"]).collect::<Vec<_>>(), ["before"]);
        assert_eq!(lines(&path).iter().map(|l| &l["request_id"]).collect::<Vec<_>>(), ["after"]);
    }

    #[test]
    fn errors_are_kept_whatever_the_sample() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("access.log");
        let log =
            AccessLog::open(&plan::AccessLog { sample: 0.25, ..plan(&path) }, &Registry::default()).expect("opens");
        for n in 0..1000u32 {
            let id = n.to_string();
            log.write(&Record { status: 503, ..ok(id.as_bytes()) });
            log.write(&ok(id.as_bytes()));
        }
        assert!(log.flush(PATIENCE));
        let (errors, rest): (Vec<_>, Vec<_>) = lines(&path).into_iter().partition(|l| l["status"] == 503);
        assert_eq!(errors.len(), 1000);
        assert!((180..320).contains(&rest.len()), "{}", rest.len());
        assert!(log.fits(&plan(&path)) && !log.fits(&plan(Path::new("/dev/stdout"))));
        log.set_sample(0.0);
        log.write(&ok(b"1"));
        assert!(log.flush(PATIENCE));
        assert_eq!(lines(&path).len(), errors.len() + rest.len());
    }

    #[test]
    fn dropping_the_log_writes_the_rest() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("access.log");
        let log = AccessLog::open(&plan(&path), &Registry::default()).expect("opens");
        log.write(&ok(b"last"));
        let shared = log.0.clone();
        drop(log);
        // The writer's own handle goes when it is done.
        while Arc::strong_count(&shared) > 1 {
            thread::yield_now();
        }
        assert_eq!(lines(&path).len(), 1);
    }
}
