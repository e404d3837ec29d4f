//! What the kernel says of this process, read when somebody scrapes. Names are Prometheus's conventional ones.

use std::fs;

/// One number.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name.
    pub name: &'static str,
    /// Help line.
    pub help: &'static str,
    /// Value.
    pub value: f64,
}

/// The unit of times in `/proc`: part of the kernel's interface to programs (`USER_HZ`), not the kernel's own tick.
const USER_HZ: f64 = 100.0;

/// Everything that can be read; what the system does not tell (or `/proc` is not there for) is left out.
#[must_use]
pub fn read() -> Vec<Metric> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces and parentheses; field 3 follows the last one.
    let times: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    let ticks = |field: usize| times.get(field - 3).and_then(|t| t.parse::<f64>().ok()).map(|t| t / USER_HZ);
    let kib = |key: &str| line(&status, key).map(|kib| kib * 1024.0);
    let cpu = ticks(14).zip(ticks(15)).map(|(user, system)| user + system);
    let boot = fs::read_to_string("/proc/stat").ok().and_then(|s| line(&s, "btime"));
    // Reading the folder opens one descriptor more.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let open = fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count().saturating_sub(1) as f64);
    #[expect(clippy::cast_precision_loss, reason = "a limit for people")]
    let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.map(|n| n as f64);
    [
        ("process_resident_memory_bytes", "Resident memory size in bytes.", kib("VmRSS:")),
        ("process_virtual_memory_bytes", "Virtual memory size in bytes.", kib("VmSize:")),
        ("process_threads", "Threads in the process.", line(&status, "Threads:")),
        ("process_open_fds", "Number of open file descriptors.", open),
        ("process_max_fds", "Maximum number of open file descriptors.", max),
        ("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", cpu),
        (
            "process_start_time_seconds",
            "Start time of the process since the unix epoch in seconds.",
            boot.zip(ticks(22)).map(|(boot, since)| boot + since),
        ),
    ]
    .into_iter()
    .filter_map(|(name, help, value)| Some(Metric { name, help, value: value? }))
    .collect()
}

/// The first number of the line that starts with `key`.
fn line(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|l| l.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}
