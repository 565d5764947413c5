//! A process that serves a device: it speaks vhost-user (QEMU, docs/interop/vhost-user.rst), has the guest's memory, and
//! follows the virtqueues in it by itself.
//!
//! What it answers may be anything, or nothing: that breaks its device, and no more.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{FrontendReq, VhostUserConfigFlags};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures as ProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;

/// Features that a transport offers for every device.
const COMMON: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// The header's flags: version 1; and that of an answer.
const VERSION: u32 = 1;
const ANSWER: u32 = 1 << 2;

/// A connection. Clones share it.
#[derive(Clone)]
pub struct Backend(Arc<Connection>);

struct Connection {
    frontend: Frontend,
    socket: UnixStream,
    features: u64,
    config: Vec<u8>,
    has_memory: AtomicBool,
    is_lost: AtomicBool,
}

/// A virtqueue that a back end is to serve.
pub struct Ring<'a> {
    /// Its index.
    pub index: usize,
    /// The number of its descriptors.
    pub size: u16,
    /// The index in the available ring from which it is served.
    pub next: u16,
    /// Guest addresses of the descriptors, the available and the used ring.
    pub places: [u64; 3],
    /// Written by the driver, when there are requests.
    pub kick: &'a EventFd,
    /// Written by the back end, when it has completed some.
    pub call: &'a EventFd,
}

impl Backend {
    /// Greets the process at the other end of `socket`, which is to have `queues` queues, and `config_len` bytes of
    /// configuration space, if any. Waits for its answers; who shuts the socket down ends that.
    ///
    /// # Errors
    ///
    /// It speaks something else, lacks what is needed, or is gone.
    pub fn greet(socket: UnixStream, queues: usize, config_len: u32) -> Result<Self> {
        let mut frontend = Frontend::from_stream(socket.try_clone()?, queues as u64);
        frontend.set_owner()?;
        let features = frontend.get_features()?;
        ensure!(features & COMMON == COMMON, "it lacks features of virtio: {features:#x}");
        let own = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        ensure!(features & own != 0, "it has no protocol features");
        let offered = frontend.get_protocol_features()?;
        let needed =
            if config_len > 0 { ProtocolFeatures::CONFIG } else { ProtocolFeatures::empty() };
        ensure!(offered.contains(needed), "it has no configuration of a device");
        frontend.set_protocol_features(needed)?;
        frontend.set_features(features & (COMMON | own))?;
        let mut config = Vec::new();
        if config_len > 0 {
            let room = vec![0; config_len as usize];
            let flags = VhostUserConfigFlags::empty();
            config = frontend.get_config(0, config_len, flags, &room)?.1;
        }
        let (has_memory, is_lost) = Default::default();
        Ok(Self(Arc::new(Connection { frontend, socket, features, config, has_memory, is_lost })))
    }

    /// The features of virtio that it has.
    pub fn features(&self) -> u64 {
        self.0.features
    }

    /// The configuration space.
    pub fn config(&self) -> &[u8] {
        &self.0.config
    }

    /// It does nothing any more.
    pub fn lose(&self) {
        self.0.is_lost.store(true, Ordering::SeqCst);
        // It may be gone; if not, it ends.
        let _ = self.0.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Whether that is so.
    pub fn is_lost(&self) -> bool {
        self.0.is_lost.load(Ordering::SeqCst)
    }

    /// Has it serve `rings`, in `ram`, for a driver that has accepted `features`.
    pub fn start(&self, ram: &GuestRam, features: u64, rings: &[Ring]) -> Result<()> {
        let mut frontend = self.0.frontend.clone();
        let own = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        frontend.set_features(features & self.0.features | own)?;
        if !self.0.has_memory.swap(true, Ordering::SeqCst) {
            frontend.set_mem_table(&memory_table(ram)?)?;
        }
        for ring in rings {
            let [descriptors, available, used] = ring.places.map(|place| host_address(ram, place));
            let addresses = VringConfigData {
                queue_max_size: ring.size,
                queue_size: ring.size,
                flags: 0,
                desc_table_addr: descriptors?,
                avail_ring_addr: available?,
                used_ring_addr: used?,
                log_addr: None,
            };
            frontend.set_vring_num(ring.index, ring.size)?;
            frontend.set_vring_base(ring.index, ring.next)?;
            frontend.set_vring_addr(ring.index, &addresses)?;
            frontend.set_vring_call(ring.index, ring.call)?;
            frontend.set_vring_kick(ring.index, ring.kick)?;
            frontend.set_vring_enable(ring.index, true)?;
        }
        Ok(())
    }

    /// Has it serve queue `index` no more, with nothing in flight. Returns the index in the available ring up to which it
    /// has served.
    ///
    /// # Errors
    ///
    /// TimedOut: it has not answered by `until`. [`VhostBackend::get_vring_base`] would wait on.
    pub fn stop(&self, index: usize, until: Instant) -> io::Result<u16> {
        let [request, size, index] = [FrontendReq::GET_VRING_BASE as u32, 8, index as u32];
        let message = [request, VERSION, size, index, 0].map(u32::to_le_bytes);
        (&self.0.socket).write_all(message.as_flattened())?;
        let mut answer = [[0; 4]; 5];
        self.receive(answer.as_flattened_mut(), until)?;
        let [kind, flags, len, which, next] = answer.map(u32::from_le_bytes);
        let expected = (request, VERSION | ANSWER, size, index);
        match u16::try_from(next) {
            Ok(next) if (kind, flags, len, which) == expected => Ok(next),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    fn receive(&self, mut room: &mut [u8], until: Instant) -> io::Result<()> {
        while !room.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            self.0.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match (&self.0.socket).read(room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => room = &mut room[len..],
                Err(_) if Instant::now() >= until => return Err(ErrorKind::TimedOut.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The socket, whose hang-up is the end of the process.
impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// All of `ram`, as a back end maps it. Unplugged blocks are there as well.
fn memory_table(ram: &GuestRam) -> Result<Vec<VhostUserMemoryRegionInfo>> {
    let region = |region: &crate::memory::RamRegion| {
        let file = region.shared().context("RAM that other processes cannot have")?;
        Ok(VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.host_address(),
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        })
    };
    ram.iter().map(region).collect()
}

/// The address in this process of a guest's: a back end knows rings by those.
fn host_address(ram: &GuestRam, place: u64) -> Result<u64> {
    let region = ram.find_region(GuestAddress(place)).context("a ring that is not in RAM")?;
    Ok(region.host_address() + (place - region.start_addr().0))
}
