//! Measures a machine: the times and exits at the marks of its boot, and the addresses of its exits.

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
    /// The mark.
    pub name: Mark,
    /// Time since the start of the process.
    #[serde(serialize_with = "as_ms")]
    pub ms: Duration,
    /// Exits until then; `None` where KVM does not count them.
    pub exits: Option<ExitCounts>,
    /// Instructions of the guest until then; `None` unless they are counted.
    pub instructions: Option<u64>,
}

/// The measurements: the marks of the first boot, and exits.
pub struct Record {
    start: Instant,
    marks: Mutex<Vec<Reached>>,
    counters: Mutex<KvmCounters>,
    instructions: OnceLock<Instructions>,
    trace: Option<Mutex<ExitTrace>>,
    /// Called with each mark when it is first reached.
    pub hook: Option<fn(Mark)>,
}

impl Record {
    /// A record of a process that was started at `start`; with `trace` also of exits by address.
    pub fn since(start: Instant, trace: bool) -> Self {
        let record = Self {
            start,
            marks: Mutex::default(),
            counters: Mutex::default(),
            instructions: OnceLock::new(),
            trace: trace.then(Mutex::default),
            hook: None,
        };
        record.note(Mark::Start, start);
        record
    }

    /// Records `mark` at its first time only, and nothing after the end.
    fn note(&self, mark: Mark, at: Instant) {
        let exits = self.exits();
        let mut marks = lock(&self.marks);
        if marks.iter().all(|other| ![mark, Mark::End].contains(&other.name)) {
            let ms = at.saturating_duration_since(self.start);
            let instructions = self.instructions.get().and_then(Instructions::read);
            marks.push(Reached { name: mark, ms, exits, instructions });
            let _ = self.hook.map(|hook| hook(mark));
        }
        if mark == Mark::End {
            self.forget_exits();
        }
    }

    /// Counts instructions from now on, on this thread and those that it starts, if the host can.
    pub fn count_instructions(&self) {
        match Instructions::count() {
            Ok(counter) => _ = self.instructions.set(counter),
            Err(error) => log::debug!("instructions are not counted: {error}"),
        }
    }

    /// Drops the counters of the machine's CPUs, which keep the machine in the kernel.
    pub fn forget_exits(&self) {
        *lock(&self.counters) = KvmCounters::default();
    }

    /// Exits since the machine's last reset; `None` where they are not counted.
    pub fn exits(&self) -> Option<ExitCounts> {
        lock(&self.counters).read()
    }

    /// The marks, in the order of time.
    pub fn marks(&self) -> Vec<Reached> {
        let mut marks = lock(&self.marks).clone();
        marks.sort_by_key(|mark| mark.ms);
        marks
    }

    /// The table of exits by address, if they are counted.
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
            // Once: a machine has many CPUs, and a guest may reset for ever.
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
