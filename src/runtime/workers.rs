//! Threads: N workers and one for control.

use std::future::Future;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use onehop_filters::contract::{clock, worker};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What a blocking task (a file read, a name look-up) may still take once its thread is told to end.
const LAST_BLOCKING: Duration = Duration::from_millis(200);

/// Cores this process may use: its CPU affinity, cut to the quota of its cgroup (v1 or v2, every level of it), rounded
/// down so that the kernel does not throttle a worker in mid-request; at least one.
///
/// The standard library already reads all three.
#[must_use]
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The data plane's threads. Dropping it ends them: tasks are dropped where they stand, so drain first.
pub struct Workers {
    seats: Vec<Seat>,
}

/// The control thread. Dropping it ends it.
pub struct Control {
    seat: Seat,
}

impl Workers {
    /// Starts `n` workers (at least one). Each is known to [`worker::shard`] before it runs anything.
    ///
    /// # Errors
    /// The system refuses a thread or an epoll instance.
    pub fn start(n: usize) -> io::Result<Self> {
        let n = n.max(1);
        worker::plan(n);
        let seats = (0..n)
            .map(|i| Seat::start(format!("worker-{i}"), move || worker::enter(i)))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self { seats })
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.seats.len()
    }

    /// Their runtimes. A handle does not keep its worker alive.
    #[must_use]
    pub fn handles(&self) -> Arc<[Handle]> {
        self.seats.iter().map(|seat| seat.handle.clone()).collect()
    }

    /// Runs a task on worker `i` (counted round), where `make` is called as well. A panic ends the task, never the worker.
    pub fn spawn_on<F>(&self, i: usize, make: impl FnOnce() -> F + Send + 'static) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.seats[i % self.seats.len()].spawn(make)
    }

    /// Runs one task on each worker; `make` is given the worker's number.
    pub fn spawn_all<F>(&self, make: impl FnOnce(usize) -> F + Clone + Send + 'static) -> Vec<JoinHandle<F::Output>>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        (0..self.count())
            .map(|i| {
                let make = make.clone();
                self.spawn_on(i, move || make(i))
            })
            .collect()
    }

    /// Ends all workers and waits for them. All are told before the first is waited for.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        for seat in &mut self.seats {
            seat.tell();
        }
        for seat in &mut self.seats {
            seat.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end();
    }
}

impl Control {
    /// Starts the control thread, shard 0.
    ///
    /// # Errors
    /// The system refuses a thread or an epoll instance.
    pub fn start() -> io::Result<Self> {
        Ok(Self { seat: Seat::start("control".to_owned(), || ())? })
    }

    /// For background tasks.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.seat.handle
    }

    /// Runs a task on the control thread, where `make` is called as well.
    pub fn spawn<F>(&self, make: impl FnOnce() -> F + Send + 'static) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.seat.spawn(make)
    }

    /// Ends the thread and waits for it.
    pub fn stop(mut self) {
        self.seat.tell();
        self.seat.join();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.seat.tell();
        self.seat.join();
    }
}

/// One thread that drives one runtime until it is told to stop.
struct Seat {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Seat {
    fn start(name: String, enter: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().on_thread_unpark(clock::woke).thread_name(format!("{name}-io")).build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name(name).spawn(move || {
            enter();
            drive(runtime, stopped);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    fn spawn<F>(&self, make: impl FnOnce() -> F + Send + 'static) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle.spawn(async move { make().await })
    }

    fn tell(&mut self) {
        self.stop.take();
    }

    fn join(&mut self) {
        // The last owner may be a task of the very thread that is to end; it cannot wait for itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn drive(runtime: Runtime, stopped: oneshot::Receiver<()>) {
    let _ = runtime.block_on(stopped);
    runtime.shutdown_timeout(LAST_BLOCKING);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;

    #[test]
    fn each_worker_is_its_own_thread_and_shard() {
        let workers = Workers::start(3).unwrap();
        let rt = Builder::new_current_thread().build().unwrap();
        let seen: Vec<_> = workers
            .spawn_all(|i| async move { (i, thread::current().name().map(str::to_owned), worker::shard()) })
            .into_iter()
            .map(|task| rt.block_on(task).unwrap())
            .collect();
        let names: BTreeSet<_> = seen.iter().map(|(_, name, _)| name.clone().unwrap()).collect();
        assert_eq!(names, BTreeSet::from(["worker-0", "worker-1", "worker-2"].map(str::to_owned)));
        assert!(seen.iter().all(|(_, _, shard)| *shard != 0 && *shard < worker::shards()));
        workers.stop();
    }

    #[test]
    fn a_panic_ends_the_task_and_not_the_worker() {
        let workers = Workers::start(1).unwrap();
        let rt = Builder::new_current_thread().build().unwrap();
        let failed = rt.block_on(workers.spawn_on(0, || async { panic!("on purpose") }));
        assert!(failed.unwrap_err().is_panic());
        assert_eq!(rt.block_on(workers.spawn_on(0, || async { 7 })).unwrap(), 7);
    }

    #[test]
    fn stopping_drops_tasks_and_joins() {
        struct Flag(Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }
        let dropped = Arc::new(AtomicBool::new(false));
        let control = Control::start().unwrap();
        let flag = Flag(dropped.clone());
        control.spawn(move || async move {
            let _kept = flag;
            std::future::pending::<()>().await;
        });
        control.stop();
        assert!(dropped.load(SeqCst));
    }

    #[test]
    fn at_least_one_core_and_not_more_than_the_machine_has() {
        let present = std::fs::read_to_string("/proc/cpuinfo").unwrap().matches("processor\t").count();
        assert!(cores() >= 1 && (present == 0 || cores() <= present));
    }
}
