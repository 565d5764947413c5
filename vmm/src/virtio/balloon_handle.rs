//! The state that the balloon shares with its owner, on another thread.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::ConfigSpace;
use super::balloon::PAGE;
use super::queue::Interrupt;
use crate::memory::buffers::Buffers;
use crate::sync::lock;

/// The number of known statistics (5.5.6.4; from 10 on include/uapi/linux/virtio_balloon.h).
const KINDS: usize = 16;
/// Most entries of the guest's list that are read.
const MAX_ENTRIES: usize = 64;
/// Offsets in `struct virtio_balloon_config`.
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// A guest's memory statistics. Reported by the guest; unverified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    values: [Option<u64>; KINDS],
    /// Reports since the driver started.
    pub updates: u64,
}

impl Statistics {
    /// The reported statistics, by tag: memory in bytes, all others are counts.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u64)> {
        self.values.into_iter().enumerate().filter_map(|(tag, value)| Some((tag, value?)))
    }
}

/// What is saved of a balloon: its target, its actual size and the pattern of free pages.
#[derive(Debug, Serialize, Deserialize)]
pub struct BalloonSaved {
    target: u32,
    actual: u32,
    poison: u32,
    /// What the guest was last told of hints.
    #[serde(default)]
    hint: u32,
}

/// The command to take named pages back, and the greatest that is no run: 0 is that the guest has named all (virtio 1.2,
/// 5.5.6.5).
const HINT_DONE: u32 = 1;

/// A run of free page hinting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hinting {
    /// What the guest is to do: a run's number, or to take its pages back.
    pub host_command: u32,
    /// What the guest does.
    pub guest_command: Option<u32>,
    /// The number of the last run.
    last: u32,
    /// The run ends when the guest has named all.
    ends_itself: bool,
}

/// The configuration space and related state.
#[derive(Default)]
pub(super) struct BalloonState {
    /// The machine's memory, in pages.
    ram: u32,
    /// The balloon's target and actual size, in pages.
    target: AtomicU32,
    actual: AtomicU32,
    /// The pattern that the guest fills free pages with, if it relies on that.
    poison: AtomicU32,
    poisons: AtomicBool,
    hinting: Mutex<Hinting>,
    statistics: Mutex<Option<Statistics>>,
    /// Newer statistics are requested.
    wanted: AtomicBool,
    /// The driver's last statistics were counted.
    counted: AtomicBool,
    driver: Mutex<Option<ConnectedDriver>>,
}

/// The driver, while it is ready.
struct ConnectedDriver {
    /// Keeps the registers of the configuration space; they keep this state.
    interrupt: Weak<Interrupt>,
    /// The kick of the statistics queue.
    kick: Option<Arc<EventFd>>,
    /// It names free pages when it is asked to.
    hints: bool,
}

impl BalloonState {
    pub(super) fn new(ram: u64) -> Self {
        Self { ram: u32::try_from(ram / PAGE).unwrap_or(u32::MAX), ..Self::default() }
    }

    pub(super) fn save(&self) -> BalloonSaved {
        let [target, actual, poison] =
            [&self.target, &self.actual, &self.poison].map(|value| value.load(Ordering::SeqCst));
        BalloonSaved { target, actual, poison, hint: lock(&self.hinting).host_command }
    }

    pub(super) fn restore(&self, saved: &BalloonSaved) {
        self.target.store(saved.target.min(self.ram), Ordering::SeqCst);
        self.actual.store(saved.actual, Ordering::SeqCst);
        self.poison.store(saved.poison, Ordering::SeqCst);
        // A run is not continued: the guest takes its pages back.
        let host_command = saved.hint.min(HINT_DONE);
        *lock(&self.hinting) = Hinting { host_command, last: saved.hint, ..Hinting::default() };
    }

    pub(super) fn connect(
        &self,
        interrupt: &Arc<Interrupt>,
        kick: Option<Arc<EventFd>>,
        poisons: bool,
        hints: bool,
    ) {
        self.poisons.store(poisons, Ordering::SeqCst);
        let driver = ConnectedDriver { interrupt: Arc::downgrade(interrupt), kick, hints };
        *lock(&self.driver) = Some(driver);
        // Of a machine that was saved; to one that knows it, it is no news.
        if lock(&self.hinting).host_command == HINT_DONE {
            self.show();
        }
    }

    /// Interrupts the driver, if there is one, for what has changed in the configuration space.
    fn show(&self) {
        let driver = lock(&self.driver);
        if let Some(interrupt) = driver.as_ref().and_then(|driver| driver.interrupt.upgrade()) {
            interrupt.config_changed();
        }
    }

    /// The guest says that it follows `command`. A run that ends itself is over when it says that of none.
    pub(super) fn follow_hints(&self, command: u32) {
        let mut hinting = lock(&self.hinting);
        let was = hinting.guest_command.replace(command);
        let is_over =
            hinting.ends_itself && command <= HINT_DONE && was == Some(hinting.host_command);
        if is_over && hinting.host_command > HINT_DONE {
            hinting.host_command = HINT_DONE;
            drop(hinting);
            self.show();
        }
    }

    /// Whether pages that the guest names now are of the present run.
    pub(super) fn is_hinted(&self) -> bool {
        let Hinting { host_command, guest_command, .. } = *lock(&self.hinting);
        host_command > HINT_DONE && guest_command == Some(host_command)
    }

    /// Changes what the guest is told of hints.
    fn command_hints(&self, change: impl FnOnce(&mut Hinting)) -> Result<()> {
        let hints = lock(&self.driver).as_ref().is_some_and(|driver| driver.hints);
        ensure!(hints, "hinting: the guest has no driver that does it, or not yet");
        change(&mut lock(&self.hinting));
        self.show();
        Ok(())
    }

    /// The driver is gone, and with it its statistics.
    pub(super) fn disconnect(&self) {
        *lock(&self.driver) = None;
        *lock(&self.statistics) = None;
        *lock(&self.hinting) = Hinting::default();
        self.actual.store(0, Ordering::SeqCst);
        self.poison.store(0, Ordering::SeqCst);
        self.wanted.store(false, Ordering::SeqCst);
        self.counted.store(false, Ordering::SeqCst);
    }

    pub(super) fn pages_may_become_zero(&self) -> bool {
        !self.poisons.load(Ordering::SeqCst) || self.poison.load(Ordering::SeqCst) == 0
    }

    /// Stores the driver's statistics; returns whether newer ones are requested.
    pub(super) fn take_statistics(&self, list: &mut Buffers) -> bool {
        let mut statistics = lock(&self.statistics);
        let statistics = statistics.get_or_insert_default();
        for _ in 0..MAX_ENTRIES {
            let Some([t0, t1, value @ ..]) = list.read_array::<10>() else { break };
            let tag = usize::from(u16::from_le_bytes([t0, t1]));
            if let Some(place) = statistics.values.get_mut(tag) {
                *place = Some(u64::from_le_bytes(value));
            }
        }
        let again = self.wanted.swap(false, Ordering::SeqCst);
        // The same statistics may be read more than once before the buffer is returned.
        let counted = self.counted.swap(!again, Ordering::SeqCst);
        statistics.updates += u64::from(!again && !counted);
        again
    }
}

impl ConfigSpace for BalloonState {
    fn read(&self) -> Vec<u8> {
        let [target, actual, poison] =
            [&self.target, &self.actual, &self.poison].map(|field| field.load(Ordering::SeqCst));
        let fields = [target, actual, lock(&self.hinting).host_command, poison];
        fields.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn write(&self, offset: usize, value: u32) {
        match offset {
            ACTUAL => self.actual.store(value, Ordering::SeqCst),
            POISON => self.poison.store(value, Ordering::SeqCst),
            _ => {}
        }
    }
}

/// Sets the size of a machine's balloon, and returns what the guest reports, whether the machine runs or not. From any
/// thread; no call waits for the guest.
#[derive(Clone)]
pub struct BalloonHandle(Arc<BalloonState>);

impl BalloonHandle {
    pub(super) fn new(state: Arc<BalloonState>) -> Self {
        Self(state)
    }

    /// Sets the balloon's target, in bytes. An error if the machine has less memory.
    pub fn set_target(&self, bytes: u64) -> Result<()> {
        let ram = u64::from(self.0.ram) * PAGE;
        ensure!(
            bytes <= ram,
            "a balloon of {} MiB: the machine has {} MiB, ask for less",
            bytes >> 20,
            ram >> 20
        );
        self.0.target.store((bytes / PAGE) as u32, Ordering::SeqCst);
        self.0.show();
        Ok(())
    }

    /// Asks the guest to name its free pages, which it holds until the run's end: that of [`Self::stop_hinting`], or its
    /// own, once it has named all, with `ends_itself`. An error if its driver does not do it.
    ///
    /// Linux may take a page back that it has named, when memory is short, and the page becomes zero after that: what a
    /// guest had in it is lost. Free page reporting, which waits for the host, has no such gap.
    pub fn start_hinting(&self, ends_itself: bool) -> Result<()> {
        self.0.command_hints(|hinting| {
            // Never that of the run before, nor one of the two that are none.
            let next = hinting.last.checked_add(1).unwrap_or(0).max(HINT_DONE + 1);
            (hinting.last, hinting.host_command, hinting.ends_itself) = (next, next, ends_itself);
        })
    }

    /// Has the guest take back the pages that it holds.
    pub fn stop_hinting(&self) -> Result<()> {
        self.0.command_hints(|hinting| hinting.host_command = HINT_DONE)
    }

    /// The present run.
    pub fn hinting(&self) -> Hinting {
        *lock(&self.0.hinting)
    }

    /// The balloon's target, in bytes.
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::SeqCst)) * PAGE
    }

    /// The balloon's actual size in bytes, as the guest reports it.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::SeqCst)) * PAGE
    }

    /// The last statistics; `None` if the driver does not report any.
    pub fn statistics(&self) -> Option<Statistics> {
        lock(&self.0.statistics).clone()
    }

    /// Requests newer statistics: [`Statistics::updates`] increases when they arrive.
    pub fn refresh_statistics(&self) {
        if let Some(ConnectedDriver { kick: Some(kick), .. }) = &*lock(&self.0.driver) {
            self.0.wanted.store(true, Ordering::SeqCst);
            // Cannot fail: the device empties the counter.
            let _ = kick.write(1);
        }
    }
}
