//! Which machines run side by side: as many as there are CPUs and memory for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::run::Run;
use super::test::Test;

/// What a machine takes besides its RAM, in bytes: a generous guess.
const OVERHEAD: u64 = 16 << 20;
/// How often `interrupt` is looked at.
const TICK: Duration = Duration::from_millis(50);

/// One run of one test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    pub(super) test: &'a Test,
    /// Of the test, in the spec.
    pub(super) index: usize,
    /// Which of its repetitions.
    pub(super) repetition: u32,
}

impl Job<'_> {
    fn id(self) -> (usize, u32) {
        (self.index, self.repetition)
    }
}

/// What machines that run at the same time may take together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pub(super) cpus: u32,
    /// In bytes.
    pub(super) memory: u64,
}

impl Capacity {
    /// That of this host, with `cpus` CPUs or as many as it has.
    pub(super) fn of_host(cpus: Option<u32>) -> Self {
        let has = || thread::available_parallelism().map_or(1, usize::from).try_into();
        let cpus = cpus.unwrap_or_else(|| has().unwrap_or(u32::MAX));
        Self { cpus, memory: available_memory().unwrap_or(u64::MAX) }
    }

    /// Whether `test` may run beside `running`. Alone, every machine may.
    pub(super) fn allows(self, test: &Test, running: &[&Test]) -> bool {
        if running.is_empty() {
            return true;
        }
        if test.alone || running.iter().any(|other| other.alone || share_a_disk(test, other)) {
            return false;
        }
        let all = || running.iter().copied().chain([test]);
        let cpus: u64 = all().map(|test| u64::from(test.machine.needs.cpus)).sum();
        let needs = all().map(|test| test.machine.needs.memory.saturating_add(OVERHEAD));
        let memory = needs.fold(0u64, u64::saturating_add);
        cpus <= self.cpus.into() && memory <= self.memory
    }
}

/// Whether one of them writes to a disk that the other has: that is locked.
fn share_a_disk(one: &Test, other: &Test) -> bool {
    one.machine.needs.disks.iter().any(|disk| {
        let others = &other.machine.needs.disks;
        others.iter().any(|theirs| theirs.path == disk.path && !(disk.shared && theirs.shared))
    })
}

/// Runs all `jobs`, within `capacity`, and passes each run to `done`. Once `interrupt` is set
/// no more are started.
pub(super) fn run_all<'a>(
    jobs: Vec<Job<'a>>,
    capacity: Capacity,
    interrupt: &AtomicBool,
    run: impl Fn(Job<'a>) -> Run + Sync,
    mut done: impl FnMut(Job<'a>, Run),
) {
    let run = &run;
    let (sender, results) = mpsc::channel();
    let mut waiting = jobs;
    let mut running: Vec<Job> = Vec::new();
    thread::scope(|scope| {
        while !running.is_empty() || !waiting.is_empty() {
            while let Some(job) = next(&mut waiting, &running, capacity) {
                let sender = sender.clone();
                // The receiver lives until the last has sent.
                let work = move || drop(sender.send((job, run(job))));
                match thread::Builder::new().spawn_scoped(scope, work) {
                    Ok(_) => running.push(job),
                    Err(error) => done(job, Run::not_started(&error.into())),
                }
            }
            match results.recv_timeout(TICK) {
                Ok((job, run)) => {
                    running.retain(|other| other.id() != job.id());
                    done(job, run);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if interrupt.load(Ordering::Relaxed) {
                waiting.clear();
            }
        }
    });
}

/// Takes the first job that may be started now.
fn next<'a>(
    waiting: &mut Vec<Job<'a>>,
    running: &[Job<'a>],
    capacity: Capacity,
) -> Option<Job<'a>> {
    let tests: Vec<&Test> = running.iter().map(|job| job.test).collect();
    let index = waiting.iter().position(|job| capacity.allows(job.test, &tests))?;
    Some(waiting.remove(index))
}

/// Bytes that new programs can have without swapping (proc(5), MemAvailable).
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}
