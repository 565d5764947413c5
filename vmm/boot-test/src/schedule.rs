//! Decides which machines run side by side: as many as CPUs and memory allow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::run::Run;
use super::test::Test;

/// Memory of a machine besides its RAM, in bytes: a generous guess.
const OVERHEAD: u64 = 16 << 20;
/// The interval of checks of `interrupt`.
const TICK: Duration = Duration::from_millis(50);

/// A run of a test.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub test: &'a Test,
    /// Index of the test in the spec.
    pub index: usize,
    /// Index of the repetition.
    pub repetition: u32,
}

/// The CPUs and the memory for all machines that run at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    pub cpus: u32,
    /// In bytes.
    pub memory: u64,
}

impl Capacity {
    /// The capacity of this host, with `cpus` CPUs or all of the host's.
    pub fn of_host(cpus: Option<u32>) -> Self {
        let has = || thread::available_parallelism().map_or(1, usize::from).try_into();
        let cpus = cpus.unwrap_or_else(|| has().unwrap_or(u32::MAX));
        Self { cpus, memory: available_memory().unwrap_or(u64::MAX) }
    }

    /// Whether `test` may run beside `running`. Alone, every machine may.
    pub fn allows(self, test: &Test, running: &[Job]) -> bool {
        if running.is_empty() {
            return true;
        }
        if test.alone
            || running.iter().any(|other| other.test.alone || share_a_disk(test, other.test))
        {
            return false;
        }
        let all = || running.iter().map(|job| job.test).chain([test]);
        let cpus: u64 = all().map(|test| u64::from(test.machine.needs.cpus)).sum();
        let needs = all().map(|test| test.machine.needs.memory.saturating_add(OVERHEAD));
        let memory = needs.fold(0u64, u64::saturating_add);
        cpus <= self.cpus.into() && memory <= self.memory
    }
}

/// Whether one of them writes to a disk that the other has: tinyvmm locks such a disk.
fn share_a_disk(one: &Test, other: &Test) -> bool {
    one.machine.needs.disks.iter().any(|disk| {
        let others = &other.machine.needs.disks;
        others.iter().any(|theirs| theirs.path == disk.path && !(disk.shared && theirs.shared))
    })
}

/// Runs all `waiting` jobs, in turn and within `capacity`, and passes each run to `done`. Once `interrupt` is set no
/// more are started.
pub fn run_all<'a>(
    mut waiting: Vec<Job<'a>>,
    capacity: Capacity,
    interrupt: &AtomicBool,
    run: impl Fn(Job<'a>) -> Result<Run> + Sync,
    mut done: impl FnMut(Job<'a>, Run),
) {
    let (run, (sender, results)) = (&run, mpsc::channel());
    let mut running: Vec<Job> = Vec::new();
    thread::scope(|scope| {
        while !running.is_empty() || !waiting.is_empty() {
            while let Some(index) =
                waiting.iter().position(|job| capacity.allows(job.test, &running))
            {
                let job = waiting.remove(index);
                let sender = sender.clone();
                // The receiver outlives all senders.
                let run = move || run(job).unwrap_or_else(|error| Run::not_started(&error));
                let work = move || drop(sender.send((job, run())));
                match thread::Builder::new().spawn_scoped(scope, work) {
                    Ok(_) => running.push(job),
                    Err(error) => done(job, Run::not_started(&error.into())),
                }
            }
            if let Ok((job, run)) = results.recv_timeout(TICK) {
                let is_other = |at: &Job| (at.index, at.repetition) != (job.index, job.repetition);
                running.retain(is_other);
                done(job, run);
            }
            if interrupt.load(Ordering::Relaxed) {
                waiting.clear();
            }
        }
    });
}

/// Bytes that new programs can have without swapping (proc(5), MemAvailable).
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}
