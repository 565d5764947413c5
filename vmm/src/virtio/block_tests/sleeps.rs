//! A driver that kicks only if the device asks for it, and sleeps until it gets an interrupt, is never left asleep.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use super::slots::{self, PART, Random, SLOTS};
use super::{Disk, LEN, pattern};
use crate::config::Aio;
use crate::virtio::test_driver::rings;

/// Drives queues as Linux does (virtqueue_add, virtqueue_kick_prepare, virtqueue_enable_cb; virtio_ring.c). A slot's
/// requests are in the queue `slot % queues`.
struct Sleeper<'a> {
    disk: &'a mut Disk,
    event_idx: bool,
    random: Random,
    /// The kind of each slot's request.
    busy: [Option<u32>; SLOTS],
    /// What is in each slot's part of the disk.
    contents: Vec<Vec<u8>>,
    queues: Vec<Indices>,
}

/// What the driver knows of a queue.
#[derive(Clone, Copy, Default)]
struct Indices {
    /// The available index, and what it was when a kick was last thought of.
    avail: u16,
    kicked: u16,
    /// The used index that was looked at.
    seen: u16,
}

impl<'a> Sleeper<'a> {
    fn new(disk: &'a mut Disk, event_idx: bool) -> Self {
        let contents = disk.read(0, LEN).1.chunks(PART).map(<[u8]>::to_vec).collect();
        let without = if event_idx { 0 } else { 1 << VIRTIO_RING_F_EVENT_IDX };
        let features = disk.driver.offered_features() & !without;
        disk.driver.init_with(features);
        let queues = vec![Indices::default(); disk.driver.queue_count()];
        Self { disk, event_idx, random: Random::new(), busy: [None; SLOTS], contents, queues }
    }

    /// Returns the request's queue.
    fn add(&mut self, slot: usize) -> usize {
        let (kind, contents) = (self.random.below(40), &mut self.contents[slot]);
        let kind = match kind {
            0 => VIRTIO_BLK_T_FLUSH,
            1 => VIRTIO_BLK_T_WRITE_ZEROES,
            2..20 => VIRTIO_BLK_T_OUT,
            _ => VIRTIO_BLK_T_IN,
        };
        match kind {
            VIRTIO_BLK_T_OUT => *contents = pattern(PART, self.random.below(256)),
            VIRTIO_BLK_T_WRITE_ZEROES => contents.fill(0),
            _ => {}
        }
        let queue = slot % self.queues.len();
        slots::offer(&mut self.disk.driver, queue, slot, kind, 0, contents);
        self.busy[slot] = Some(kind);
        self.queues[queue].avail = self.queues[queue].avail.wrapping_add(1);
        queue
    }

    fn kick(&mut self, queue: usize) {
        fence(Ordering::SeqCst);
        let used = rings(queue)[2];
        let load =
            |at| self.disk.driver.ram.load::<u16>(GuestAddress(at), Ordering::Relaxed).unwrap();
        let Indices { avail: new, kicked: old, .. } = self.queues[queue];
        let wanted = match self.event_idx {
            // vring_need_event (virtio 1.2, 2.7.10.1); the event is after a ring of 256.
            true => {
                let event = load(used + 4 + 8 * 256);
                new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
            }
            false => load(used) & 1 == 0,
        };
        self.queues[queue].kicked = new;
        if wanted {
            self.disk.driver.kick(queue);
        }
    }

    /// Takes and checks what is completed; returns how many.
    fn take(&mut self) -> usize {
        let mut taken = 0;
        for (queue, indices) in self.queues.iter_mut().enumerate() {
            while let Some((slot, status)) = slots::take(&mut self.disk.driver, queue) {
                indices.seen = indices.seen.wrapping_add(1);
                taken += 1;
                let kind = self.busy[slot].take().expect("a request that is completed once");
                assert_eq!(status, VIRTIO_BLK_S_OK);
                if kind == VIRTIO_BLK_T_IN {
                    let found = slots::read(&self.disk.driver, slot);
                    assert!(found == self.contents[slot], "slot {slot}");
                }
            }
        }
        taken
    }

    /// Sleeps until there is an interrupt, unless something is completed.
    fn sleep(&mut self) {
        let driver = &mut self.disk.driver;
        for (queue, indices) in self.queues.iter().enumerate() {
            match self.event_idx {
                true => driver.set_used_event(queue, indices.seen),
                false => driver.want_interrupts(queue, true),
            }
        }
        fence(Ordering::SeqCst);
        let mut queues = self.queues.iter().enumerate();
        if queues.all(|(queue, indices)| driver.used_index(queue) == indices.seen) {
            driver.wait_until("an interrupt", |driver| driver.take_interrupt());
        }
        if !self.event_idx {
            (0..self.queues.len()).for_each(|queue| driver.want_interrupts(queue, false));
        }
    }

    fn run(&mut self, requests: usize) {
        let (depth, mut answered) = ([1, 2, SLOTS][self.random.below(3)], 0);
        while answered < requests || self.busy.iter().any(Option::is_some) {
            let free = (0..depth).filter(|slot| self.busy[*slot].is_none());
            let free: Vec<_> = free.take(self.random.below(depth + 1)).collect();
            for slot in free.into_iter().filter(|_| answered < requests) {
                let queue = self.add(slot);
                if self.random.below(3) == 0 {
                    self.kick(queue);
                }
            }
            (0..self.queues.len()).for_each(|queue| self.kick(queue));
            if self.random.below(500) == 0 {
                self.disk.driver.paused(|_| {});
            }
            (0..self.random.below(200)).for_each(|_| std::hint::spin_loop());
            let taken = self.take();
            answered += taken;
            if taken == 0 && self.busy.iter().any(Option::is_some) {
                self.sleep();
            }
        }
    }
}

fn is_never_left_asleep(open: impl Fn() -> Option<Disk>) {
    // A number of requests, to look for what is rare.
    let requests = std::env::var("TINYVMM_TEST_REQUESTS").map_or(1000, |n| n.parse().unwrap());
    for event_idx in [true, false] {
        let Some(mut disk) = open() else { return };
        for _ in 0..3 {
            Sleeper::new(&mut disk, event_idx).run(requests / 3);
        }
    }
}

#[test]
fn with_the_page_cache() {
    for aio in [Aio::IoUring, Aio::Threads] {
        is_never_left_asleep(|| Disk::with(aio));
    }
}

#[test]
fn around_the_page_cache() {
    if Disk::direct().is_some() {
        is_never_left_asleep(Disk::direct);
    }
}

#[test]
fn by_threads_alone() {
    is_never_left_asleep(|| Disk::with_jobs_for_all(Aio::Threads));
}

#[test]
fn by_io_uring_alone() {
    is_never_left_asleep(|| Disk::with_jobs_for_all(Aio::IoUring));
}

#[test]
fn below_a_layer() {
    for aio in [Aio::IoUring, Aio::Threads] {
        is_never_left_asleep(|| Disk::below_layer(aio));
    }
}

#[test]
fn with_four_queues() {
    for aio in [Aio::IoUring, Aio::Threads] {
        is_never_left_asleep(|| Disk::with_four_queues(aio));
    }
}
