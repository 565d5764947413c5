//! What the balloon and its owner, on another thread, have in common.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anyhow::{Result, ensure};
use vmm_sys_util::eventfd::EventFd;

use super::ConfigSpace;
use super::balloon::PAGE;
use super::queue::Interrupt;
use crate::memory::buffers::Buffers;
use crate::sync::lock;

/// How many kinds of statistics are known (5.5.6.4; from 10 on include/uapi/linux/virtio_balloon.h).
const KINDS: usize = 16;
/// Most entries that are looked at in the guest's list.
const MAX_ENTRIES: usize = 64;
/// Offsets in `struct virtio_balloon_config`.
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// What a guest tells of its memory. Its word, nothing that was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    values: [Option<u64>; KINDS],
    /// How often the guest has told since its driver started.
    pub updates: u64,
}

impl Statistics {
    /// Those that the guest told, by their tags: memory in bytes, all else counts.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u64)> {
        self.values.into_iter().enumerate().filter_map(|(tag, value)| Some((tag, value?)))
    }
}

/// The configuration space, and what belongs to it.
#[derive(Default)]
pub(super) struct State {
    /// Pages that the machine has.
    ram: u32,
    /// Pages that the balloon is to have, and has.
    target: AtomicU32,
    actual: AtomicU32,
    /// What the guest fills free pages with, and whether it relies on it.
    poison: AtomicU32,
    poisons: AtomicBool,
    statistics: Mutex<Option<Statistics>>,
    /// Newer statistics are wanted.
    wanted: AtomicBool,
    /// Those that the driver has sent were counted.
    counted: AtomicBool,
    driver: Mutex<Option<Driver>>,
}

/// How a driver that is ready is reached.
struct Driver {
    /// Its registers show this state: it is theirs to keep.
    interrupt: Weak<Interrupt>,
    /// Of the queue for statistics.
    kick: Option<Arc<EventFd>>,
}

impl State {
    pub(super) fn new(ram: u64) -> Self {
        Self { ram: u32::try_from(ram / PAGE).unwrap_or(u32::MAX), ..Self::default() }
    }

    pub(super) fn connect(
        &self,
        interrupt: &Arc<Interrupt>,
        kick: Option<Arc<EventFd>>,
        poisons: bool,
    ) {
        self.poisons.store(poisons, Ordering::SeqCst);
        *lock(&self.driver) = Some(Driver { interrupt: Arc::downgrade(interrupt), kick });
    }

    /// The driver has gone, and with it what it told.
    pub(super) fn disconnect(&self) {
        *lock(&self.driver) = None;
        *lock(&self.statistics) = None;
        self.actual.store(0, Ordering::SeqCst);
        self.poison.store(0, Ordering::SeqCst);
        self.wanted.store(false, Ordering::SeqCst);
        self.counted.store(false, Ordering::SeqCst);
    }

    pub(super) fn pages_may_become_zero(&self) -> bool {
        !self.poisons.load(Ordering::SeqCst) || self.poison.load(Ordering::SeqCst) == 0
    }

    /// Keeps what the driver tells; returns whether it is to tell again.
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
        // It may be looked at more than once before it is answered.
        let counted = self.counted.swap(!again, Ordering::SeqCst);
        statistics.updates += u64::from(!again && !counted);
        again
    }
}

impl ConfigSpace for State {
    fn read(&self) -> Vec<u8> {
        // The one between is for hints of free pages, which are not offered.
        let fields = [&self.target, &self.actual, &AtomicU32::new(0), &self.poison];
        fields.into_iter().flat_map(|field| field.load(Ordering::SeqCst).to_le_bytes()).collect()
    }

    fn write(&self, offset: usize, value: u32) {
        match offset {
            ACTUAL => self.actual.store(value, Ordering::SeqCst),
            POISON => self.poison.store(value, Ordering::SeqCst),
            _ => {}
        }
    }
}

/// Sets the size of a machine's balloon and tells what the guest says, while the machine runs or not. From any
/// thread; nothing waits for the guest.
#[derive(Clone)]
pub struct BalloonHandle(Arc<State>);

impl BalloonHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// Asks the guest to put `bytes` of its memory into the balloon, all in all. An error if it has less.
    pub fn set_target(&self, bytes: u64) -> Result<()> {
        let ram = u64::from(self.0.ram) * PAGE;
        ensure!(
            bytes <= ram,
            "a balloon of {} MiB: the machine has {} MiB, ask for less",
            bytes >> 20,
            ram >> 20
        );
        self.0.target.store((bytes / PAGE) as u32, Ordering::SeqCst);
        let driver = lock(&self.0.driver);
        if let Some(interrupt) = driver.as_ref().and_then(|driver| driver.interrupt.upgrade()) {
            interrupt.config_changed();
        }
        Ok(())
    }

    /// Bytes that the balloon is to have.
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::SeqCst)) * PAGE
    }

    /// Bytes that the balloon has, as the guest says.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::SeqCst)) * PAGE
    }

    /// What the guest has told last; `None` if its driver does not tell.
    pub fn statistics(&self) -> Option<Statistics> {
        lock(&self.0.statistics).clone()
    }

    /// Asks the guest for newer statistics: [`Statistics::updates`] counts when they are there.
    pub fn refresh_statistics(&self) {
        if let Some(Driver { kick: Some(kick), .. }) = &*lock(&self.0.driver) {
            self.0.wanted.store(true, Ordering::SeqCst);
            // Cannot fail: the device empties the counter.
            let _ = kick.write(1);
        }
    }
}
