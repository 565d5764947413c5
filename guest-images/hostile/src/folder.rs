//! Requests to a folder of the host (Linux's include/uapi/linux/fuse.h) that name what is outside of it.

use crate::machine::{read, write};
use crate::random::Random;
use crate::virtio::{Device, NEXT, WRITE};

/// The queue of ordinary requests (virtio 1.2, 5.11.2).
const QUEUE: u64 = 1;
const HEADER_LEN: u64 = 40;
/// Where the answer is behind the request, and the room for it.
const ANSWER_AT: u64 = 0x2000;
const ANSWER_LEN: u32 = 0x1000;
/// How often it is looked for, some 100 ms: what serves the folder may be gone.
const PATIENCE: u32 = 10_000_000;

const LINK: u32 = 13;
const OPEN: u32 = 14;
const WRITE_FILE: u32 = 16;
const CREATE: u32 = 35;
const INIT: (u32, &[u32]) = (26, &[7, 31, 0x2_0000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
/// Requests, what each has before its names, and how many names.
const KINDS: [(u32, &[u32], u32); 14] = [
    (1, &[], 1),                   // LOOKUP
    (5, &[], 0),                   // READLINK
    (6, &[], 2),                   // SYMLINK
    (8, &[0o100_666, 0, 0, 0], 1), // MKNOD
    (9, &[0o777, 0], 1),           // MKDIR
    (10, &[], 1),                  // UNLINK
    (11, &[], 1),                  // RMDIR
    (12, &[1, 0], 2),              // RENAME, within the folder
    (LINK, &[], 1),
    (OPEN, &[2, 0], 0),
    (WRITE_FILE, &[], 1),
    (21, &[1, 0], 2), // SETXATTR
    (27, &[0, 0], 0), // OPENDIR
    (CREATE, &[2, 0o666, 0, 0], 1),
];
/// Requests whose answer begins with the number of a file.
const FOR_FILES: [u32; 6] = [1, 6, 8, 9, LINK, CREATE];

/// Names, of which those with slashes and dots are what no kernel asks for.
const NAMES: [&[u8]; 12] = [
    b"inside\0",
    b"link\0",
    b"..\0",
    b".\0",
    b"\0",
    b"../outside\0",
    b"/outside\0",
    b"link/outside\0",
    b"inside/../../outside\0",
    b"outside\0",
    b"no end",
    b"in\0side\0",
];

/// What is known of the folder, and the request that is being written.
pub struct Folder {
    device: Device,
    /// Numbers of files, of which the first is the folder's own.
    nodes: [u64; 4],
    /// The number of an open file.
    open: u64,
    requests: u16,
    end: u64,
    /// Whether there was an answer to the last request.
    pub is_served: bool,
}

impl Folder {
    /// Greets what serves the folder.
    pub fn open(device: Device) -> Self {
        device.init();
        let nodes = [1, 1, u64::MAX, 0];
        let mut folder = Self { device, nodes, open: 0, requests: 0, end: 0, is_served: false };
        folder.begin(INIT.1);
        folder.send(INIT.0, 0);
        folder
    }

    fn begin(&mut self, words: &[u32]) {
        self.end = self.device.data(0) + HEADER_LEN;
        words.iter().for_each(|word| self.add(&word.to_le_bytes()));
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            write(self.end, *byte);
            self.end += 1;
        }
    }

    /// Sends the request, as one of this kind for the file `node`. Returns where its answer is, if it succeeded.
    fn send(&mut self, kind: u32, node: u64) -> Option<u64> {
        let (start, device) = (self.device.data(0), self.device);
        let len = (self.end - start) as u32;
        write(start, len);
        write(start + 4, kind);
        write(start + 8, u64::from(self.requests) + 1);
        write(start + 16, node);
        (24..HEADER_LEN).step_by(8).for_each(|at| write(start + at, 0u64));
        let answer = start + ANSWER_AT;
        write(answer + 4, u32::MAX);
        let head = self.requests % 8 * 2;
        device.set_descriptor(QUEUE, head, start, len, NEXT, head + 1);
        device.set_descriptor(QUEUE, head + 1, answer, ANSWER_LEN, WRITE, 0);
        device.offer(QUEUE, head);
        device.kick(QUEUE);
        self.requests = self.requests.wrapping_add(1);
        let used = device.rings(QUEUE).used + 2;
        self.is_served = (0..PATIENCE).any(|_| read::<u16>(used) == self.requests);
        (self.is_served && read::<u32>(answer + 4) == 0).then_some(answer + 16)
    }

    /// Any request, for any file, with any names.
    pub fn attack(&mut self, random: &mut Random) {
        let (kind, words, names) = random.one_of(&KINDS);
        self.begin(words);
        match kind {
            LINK => self.add(&random.one_of(&self.nodes).to_le_bytes()),
            WRITE_FILE => {
                let (offset, len) =
                    (random.below(2) * (u64::MAX / 2), random.one_of(&[1, 7, 0xffff_ffff]));
                for long in [self.open, offset, len, 0, 0] {
                    self.add(&long.to_le_bytes());
                }
            }
            _ => {}
        }
        (0..names).for_each(|_| self.add(random.one_of(&NAMES)));
        let Some(answer) = self.send(kind, random.one_of(&self.nodes)) else { return };
        if FOR_FILES.contains(&kind) {
            self.nodes[1 + random.below(3) as usize] = read(answer);
        }
        match kind {
            OPEN => self.open = read(answer),
            CREATE => self.open = read(answer + 128),
            _ => {}
        }
    }
}
