//! Requests in slots, each with its own descriptors, its own memory and its own part of the disk, in any order.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES};

use super::{LEN, header, range};
use crate::virtio::test_driver::{DATA, Driver, NEXT, WRITE, rings};

pub const SLOTS: usize = 16;
/// Bytes of the disk for each: a block of a layer.
pub const PART: usize = LEN / SLOTS;
/// Memory of each: a header, data, a status.
const ROOM: u64 = 0x2000;

fn room(slot: usize) -> u64 {
    DATA + slot as u64 * ROOM
}

/// Makes a request of `kind` for `count` sectors from `sector` of the slot's part on available; it writes `sent`.
pub fn offer(
    driver: &mut Driver,
    queue: usize,
    slot: usize,
    kind: u32,
    sector: usize,
    sent: &[u8],
) {
    let at = (slot * PART / 512 + sector) as u64;
    let zeroes = range(at, (PART / 512 - sector) as u32, 0);
    let (sent, at) = match kind {
        VIRTIO_BLK_T_WRITE_ZEROES => (&zeroes[..], 0),
        VIRTIO_BLK_T_IN => (&[0xdd; PART][sector * 512..], at),
        _ => (sent, at),
    };
    driver.write(room(slot), &header(kind, at));
    driver.write(room(slot) + 0x200, sent);
    driver.write(room(slot) + ROOM - 1, &[0xee]);
    let (table, head) = (rings(queue)[0], slot as u16 * 3);
    let sends = matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_WRITE_ZEROES);
    let next = if sends || kind == VIRTIO_BLK_T_IN { head + 1 } else { head + 2 };
    let flags = if sends { NEXT } else { NEXT | WRITE };
    driver.set_desc(table, head, room(slot), 16, NEXT, next);
    driver.set_desc(table, head + 1, room(slot) + 0x200, sent.len() as u32, flags, head + 2);
    driver.set_desc(table, head + 2, room(slot) + ROOM - 1, 1, WRITE, 0);
    driver.offer(queue, head);
}

/// The next slot whose request of `queue` is completed, and its status.
pub fn take(driver: &mut Driver, queue: usize) -> Option<(usize, u32)> {
    let slot = usize::from(driver.take_used(queue)?.0 / 3);
    Some((slot, driver.read(room(slot) + ROOM - 1, 1)[0].into()))
}

/// What the slot's request has read: its whole part.
pub fn read(driver: &Driver, slot: usize) -> Vec<u8> {
    driver.read(room(slot) + 0x200, PART)
}

/// Marsaglia's xorshift64.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        Self(crate::random::bytes().map(u64::from_le_bytes).unwrap() | 1)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
