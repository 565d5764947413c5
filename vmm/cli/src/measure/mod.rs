//! What is measured of a machine: when its boot passed what, with how many exits, and what these were for.

pub mod exits;
mod instructions;
mod trace;

use std::sync::{Mutex, Once, OnceLock};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use serde::Serialize;
use tinyvmm::sync::lock;
use tinyvmm::timeline::{Access, Mark, Observer};

use self::exits::{ExitCounts, KvmCounters};
use self::instructions::Instructions;
use self::trace::ExitTrace;

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

/// What was measured: the marks of the first boot, and exits.
pub struct Record {
    start: Instant,
    marks: Mutex<Vec<Reached>>,
    counters: Mutex<KvmCounters>,
    instructions: OnceLock<Instructions>,
    trace: Option<Mutex<ExitTrace>>,
}

impl Record {
    /// A record of a process that was started at `start`. With `trace` it counts exits by address.
    pub fn since(start: Instant, trace: bool) -> Self {
        let record = Self {
            start,
            marks: Mutex::default(),
            counters: Mutex::default(),
            instructions: OnceLock::new(),
            trace: trace.then(Mutex::default),
        };
        record.note(Mark::Start, start);
        record
    }

    /// Only the first time that a mark is reached counts, and nothing after the end.
    fn note(&self, mark: Mark, at: Instant) {
        let exits = self.exits();
        let mut marks = lock(&self.marks);
        if marks.iter().all(|other| ![mark, Mark::End].contains(&other.name)) {
            let ms = at.saturating_duration_since(self.start);
            let instructions = self.instructions.get().and_then(Instructions::read);
            marks.push(Reached { name: mark, ms, exits, instructions });
        }
        if mark == Mark::End {
            self.forget_exits();
        }
    }

    /// Instructions are counted from now on, where that can be: on this thread and on those that it starts.
    pub fn count_instructions(&self) {
        match Instructions::count() {
            Ok(counter) => _ = self.instructions.set(counter),
            Err(error) => log::debug!("instructions are not counted: {error}"),
        }
    }

    /// No machine is counted any more: its counters keep it in the kernel.
    pub fn forget_exits(&self) {
        *lock(&self.counters) = KvmCounters::default();
    }

    /// Exits so far since the machine's last reset; `None` where nobody asked, or KVM does not tell.
    pub fn exits(&self) -> Option<ExitCounts> {
        lock(&self.counters).read()
    }

    /// What was reached, in the order of time.
    pub fn marks(&self) -> Vec<Reached> {
        let mut marks = lock(&self.marks).clone();
        marks.sort_by_key(|mark| mark.ms);
        marks
    }

    /// A table of exits by address, if they were counted.
    pub fn trace(&self) -> Option<String> {
        self.trace.as_ref().map(|trace| lock(trace).to_string())
    }
}

impl Observer for Record {
    fn reached(&self, mark: Mark) {
        self.note(mark, Instant::now());
    }

    fn made_cpu(&self, cpu: &VcpuFd) {
        if let Err(error) = lock(&self.counters).add(cpu) {
            // Once: there are many CPUs, and a guest may reset for ever.
            static LOGGED: Once = Once::new();
            LOGGED.call_once(|| {
                log::warn!("exits are not counted, Linux 5.14 or later could ({error})");
            });
        }
    }

    fn exited(&self, access: Access) {
        if let Some(trace) = &self.trace {
            lock(trace).add(access);
        }
    }
}

fn as_ms<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_nanos() as f64 / 1e6)
}
