//! Threads: what runs is a thread; what is stopped is a value.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Once, OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::thread::sched_getaffinity;
use rustix::time::{ClockId, clock_gettime};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

/// The kind of a thread. The program limits the rights of each kind: [`on_thread_start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Starts the others, once these may not start threads themselves.
    Starter,
    /// Runs a vCPU, and the port and MMIO accesses of the guest.
    Vcpu,
    /// Serves a virtio device.
    Device,
    /// Serves a network card.
    Network,
    /// Serves the vsock device.
    Vsock,
    /// Serves a device that another process serves.
    VhostUser,
    /// Serves the virtio device that plugs memory.
    Memory,
    /// Serves the console.
    Console,
    /// Serves a part of the program, with this name.
    Program(&'static str),
}

type Hook = fn(ThreadKind);

static ON_START: OnceLock<Hook> = OnceLock::new();

/// Has each worker's thread call `hook` first, from now on. Only the first call counts.
pub fn on_thread_start(hook: Hook) {
    ON_START.get_or_init(|| hook);
}

fn thread_starts(kind: ThreadKind) {
    if let Some(hook) = ON_START.get() {
        hook(kind);
    }
}

/// Work for a thread of its own, which runs until it is asked to stop, or is done.
pub trait Work: Send + 'static {
    /// The thread's name, at most 15 bytes.
    fn name(&self) -> String;
    /// Returns soon after `stop` is set: `stop` is readable then, and blocking system calls return EINTR.
    fn run(&mut self, stop: &StopFlag);
    /// The kind of its thread.
    fn kind(&self) -> ThreadKind;
    /// Where it stores the processor time of its earlier threads.
    fn cpu_time(&mut self) -> Option<&mut Duration> {
        None
    }
}

/// Asks a worker to stop. Can be polled.
#[derive(Clone)]
pub struct StopFlag(Arc<(AtomicBool, EventFd)>);

impl StopFlag {
    fn new() -> Result<Self> {
        Ok(Self(Arc::new((AtomicBool::new(false), EventFd::new(EFD_NONBLOCK)?))))
    }

    /// Whether the worker has to stop.
    pub fn is_set(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    fn set(&self) {
        self.0.0.store(true, Ordering::Release);
        // Cannot fail: the counter is far below its limit.
        let _ = self.0.1.write(1);
    }
}

impl AsFd for StopFlag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.0.1)
    }
}

/// The descriptor of `event`, to be polled.
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for as long as the `EventFd` that is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Without SA_RESTART: the signal's one effect is that KVM_RUN or a write returns. Also for SIGXFSZ: a write past the
/// host's `ulimit -f` has to fail, not to kill.
fn handle_signals() {
    static SIGNALS: Once = Once::new();
    extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    SIGNALS.call_once(|| {
        for signal in [SIGRTMIN(), libc::SIGXFSZ] {
            if let Err(error) = register_signal_handler(signal, on_signal) {
                log::error!("cannot handle signal {signal}: {error}");
            }
        }
    });
}

/// Bytes of a thread's stack: too few for a huge page of the host's.
const STACK: usize = 1 << 20;

/// A running `W`. Dropping it stops it.
pub struct Worker<W> {
    /// `None` only after `stop`.
    thread: Option<JoinHandle<W>>,
    stop: StopFlag,
    /// Processor time of earlier threads.
    before: Duration,
}

impl<W: Work> Worker<W> {
    /// Starts `work` on a thread of its own.
    pub fn spawn(mut work: W) -> Result<Self> {
        handle_signals();
        let (name, kind) = (work.name(), work.kind());
        let before = work.cpu_time().map_or(Duration::ZERO, |time| *time);
        let builder = thread::Builder::new().stack_size(STACK).name(name.clone());
        let start = move || -> Result<_> {
            let stop = StopFlag::new()?;
            let flag = stop.clone();
            let thread = builder.spawn(move || {
                // The parent process may have blocked it: then nothing would stop this thread.
                let _ = unblock_signal(SIGRTMIN());
                thread_starts(kind);
                work.run(&flag);
                if let Some(time) = work.cpu_time() {
                    let own = clock_gettime(ClockId::ThreadCPUTime);
                    *time += Duration::try_from(own).unwrap_or_default();
                }
                work
            })?;
            Ok((thread, stop))
        };
        let started = on_starter(start).and_then(|started| started);
        let (thread, stop) = started.with_context(|| format!("cannot start thread {name}"))?;
        Ok(Self { thread: Some(thread), stop, before })
    }

    /// Sets the stop flag without waiting. Setting several workers' flags first stops them together.
    pub fn ask_to_stop(&self) {
        self.stop.set();
    }

    /// Processor time of this thread, and of earlier ones with the same work.
    pub fn cpu_time(&self) -> Duration {
        self.before + self.thread.as_ref().and_then(cpu_time_of).unwrap_or_default()
    }

    /// Stops the thread and returns the work; `None` if it panicked.
    pub fn stop(mut self) -> Option<W> {
        self.join()
    }
}

impl<W> Worker<W> {
    fn join(&mut self) -> Option<W> {
        let thread = self.thread.take()?;
        self.stop.set();
        // One signal is not enough: it may arrive just before the thread blocks.
        let mut patience = Duration::from_micros(10);
        while !thread.is_finished() {
            let _ = thread.kill(SIGRTMIN());
            thread::sleep(patience);
            patience = Duration::from_micros(200).min(patience * 2);
        }
        thread.join().ok()
    }
}

impl<W> Drop for Worker<W> {
    fn drop(&mut self) {
        self.join();
    }
}

/// Processor time of `thread`; `None` at its end.
fn cpu_time_of<W>(thread: &JoinHandle<W>) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: the thread is not joined, as that takes the handle; only `clock` is written to.
    let found = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: only `time` is written to. A clock of an ended thread is an error.
    let read = unsafe { libc::clock_gettime(clock, &raw mut time) };
    let known = found == 0 && read == 0;
    known.then(|| Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32))
}

type Start = Box<dyn FnOnce() + Send>;

/// Set once threads may not start others themselves.
static STARTER: OnceLock<mpsc::Sender<Start>> = OnceLock::new();

/// From now on a thread of its own starts workers: a vCPU's thread, whose guest activates a device, has no right to.
pub fn spawn_starter_thread() -> Result<()> {
    let (sender, receiver) = mpsc::channel::<Start>();
    let (ready, is_ready) = mpsc::sync_channel(1);
    thread::Builder::new().stack_size(STACK).name("starter".into()).spawn(move || {
        thread_starts(ThreadKind::Starter);
        let _ = ready.send(());
        receiver.iter().for_each(|start| start());
    })?;
    is_ready.recv()?;
    STARTER.get_or_init(|| sender);
    Ok(())
}

/// Calls `start` on the thread that may start threads.
fn on_starter<T: Send + 'static>(start: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let Some(starter) = STARTER.get() else { return Ok(start()) };
    let (give, take) = mpsc::sync_channel(1);
    let send = move || {
        let _ = give.send(start());
    };
    starter.send(Box::new(send)).ok().context("the thread that starts others is gone")?;
    take.recv().context("the thread that starts others is gone")
}

/// Runs `work` on a thread of its own that nobody waits for: it has to end by itself.
pub fn start(
    name: &'static str,
    kind: ThreadKind,
    work: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let builder = thread::Builder::new().stack_size(STACK).name(name.into());
    let run = move || {
        thread_starts(kind);
        work();
    };
    on_starter(move || builder.spawn(run).map(drop))?
        .with_context(|| format!("cannot start thread {name}"))
}

/// The number of the host's CPUs that this thread may run on.
fn cpus() -> u32 {
    // std's available_parallelism reads files.
    sched_getaffinity(None).map_or(1, |cpus| cpus.count())
}

/// Calls `work` with each of `items` on a thread or two; returns when all are done, or one has failed.
pub fn parallel_for_each<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    if cpus() < 2 || items.len() < 2 {
        return run();
    }
    join_concurrently(run, run).map(|_| ())
}

/// Runs `on_thread` on a thread of its own and `here` at the same time.
pub fn join_concurrently<A: Send, B>(
    on_thread: impl FnOnce() -> Result<A> + Send,
    here: impl FnOnce() -> Result<B>,
) -> Result<(A, B)> {
    handle_signals();
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .stack_size(STACK)
            .name("loader".into())
            .spawn_scoped(scope, on_thread);
        let here = here();
        let on_thread = thread.context("cannot start a thread")?.join();
        let here = here?;
        Ok((on_thread.unwrap_or_else(|_| Err(anyhow!("a thread panicked")))?, here))
    })
}
