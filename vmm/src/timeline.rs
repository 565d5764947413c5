//! When a boot passed what, and with how many exits. Nothing is kept unless someone asked.

use std::sync::{Arc, Mutex, Once, OnceLock};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::exits::{ExitCounts, KvmCounters};
use crate::instructions::Instructions;
use crate::sync::lock;

/// What a boot passes on its way, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The process starts.
    Start,
    /// Flags and configuration file are understood.
    Configured,
    /// KVM has made the virtual machine.
    VmCreated,
    /// Guest memory is mapped.
    MemoryReady,
    /// Kernel and initrd are in it.
    KernelLoaded,
    /// CPU 0 is about to run.
    CpuEntered,
    /// The guest sends its first byte to the serial port.
    FirstOutput,
    /// The kernel says that it starts init; a kernel with `quiet` does not say so.
    InitStarted,
    /// Init says so itself, through [`crate::devices::guest_report`].
    InitMark,
    /// The machine's end, or its first reset.
    End,
}

/// A mark that was reached.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Reached {
    /// Which.
    pub name: Mark,
    /// Milliseconds since the process was started.
    #[serde(serialize_with = "as_ms")]
    pub ms: Duration,
    /// Exits until then; `None` where KVM does not tell.
    pub exits: Option<ExitCounts>,
    /// Instructions of the guest until then; `None` where nobody asked, or the host does not count them.
    pub instructions: Option<u64>,
}

/// The marks of a machine's first boot. Clones share them.
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<Kept>>);

struct Kept {
    start: Instant,
    reached: Mutex<Vec<Reached>>,
    counters: Mutex<KvmCounters>,
    instructions: OnceLock<Instructions>,
}

/// When this process was started, going by the processor time that it has used: called early, it has
/// not waited for anything yet.
pub fn process_start() -> Instant {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = Duration::try_from(used).unwrap_or_default();
    let now = Instant::now();
    now.checked_sub(used).unwrap_or(now)
}

impl Timeline {
    /// A timeline that keeps what it is told; one by `default` does not.
    pub fn since(start: Instant) -> Self {
        let timeline = Self(Some(Arc::new(Kept {
            start,
            reached: Mutex::default(),
            counters: Mutex::default(),
            instructions: OnceLock::new(),
        })));
        timeline.note(Mark::Start, start);
        timeline
    }

    /// The boot is at `mark` now. Only the first time counts, and nothing after the end.
    pub fn reach(&self, mark: Mark) {
        self.note(mark, Instant::now());
    }

    fn note(&self, mark: Mark, at: Instant) {
        let Some(kept) = &self.0 else { return };
        let exits = lock(&kept.counters).read();
        let mut reached = lock(&kept.reached);
        if reached.iter().all(|other| ![mark, Mark::End].contains(&other.name)) {
            let ms = at.saturating_duration_since(kept.start);
            let instructions = kept.instructions.get().and_then(Instructions::read);
            reached.push(Reached { name: mark, ms, exits, instructions });
        }
        if mark == Mark::End {
            self.forget_exits();
        }
    }

    /// Instructions are counted from now on, where that can be: on this thread and on those that it starts.
    pub fn count_instructions(&self) {
        let Some(kept) = &self.0 else { return };
        match Instructions::count() {
            Ok(counter) => _ = kept.instructions.set(counter),
            Err(error) => log::debug!("instructions are not counted: {error}"),
        }
    }

    /// No machine is counted any more: its counters keep it in the kernel.
    pub fn forget_exits(&self) {
        if let Some(kept) = &self.0 {
            *lock(&kept.counters) = KvmCounters::default();
        }
    }

    /// Exits of `cpu` are counted from now on.
    pub fn count_exits_of(&self, cpu: &VcpuFd) {
        if let Some(kept) = &self.0
            && let Err(error) = lock(&kept.counters).add(cpu)
        {
            // Once: there are many CPUs, and a guest may reset for ever.
            static LOGGED: Once = Once::new();
            LOGGED.call_once(|| {
                log::warn!("exits are not counted, Linux 5.14 or later could ({error})");
            });
        }
    }

    /// Exits so far since the machine's last reset; `None` where nobody asked, or KVM does not tell.
    pub fn exits(&self) -> Option<ExitCounts> {
        self.0.as_ref().and_then(|kept| lock(&kept.counters).read())
    }

    /// What was reached, in the order of time.
    pub fn reached(&self) -> Vec<Reached> {
        let mut reached =
            self.0.as_ref().map(|kept| lock(&kept.reached).clone()).unwrap_or_default();
        reached.sort_by_key(|mark| mark.ms);
        reached
    }
}

fn as_ms<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_nanos() as f64 / 1e6)
}
