//! A well-behaved driver: the `virtio-drivers` crate. It shows that a device works, whatever was done to it before.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::machine;
use crate::virtio::Device;

/// Memory for rings, from here on; all of it is free again with the next check.
const DMA: u64 = 0x80_0000;
/// The sector by which the host sees that the disk works: eight letters, and a count.
const ALIVE_SECTOR: usize = 7;
const ALIVE: &[u8; 8] = b"alive at";

static NEXT: AtomicU64 = AtomicU64::new(DMA);

struct Flat;

// SAFETY: memory is mapped one to one; pages are handed out once a check, and belong to nobody else.
unsafe impl Hal for Flat {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let len = (pages * PAGE_SIZE) as u64;
        let start = NEXT.fetch_add(len, Ordering::SeqCst);
        (start..start + len).step_by(8).for_each(|at| machine::write(at, 0u64));
        (start, NonNull::new(start as *mut u8).unwrap_or(NonNull::dangling()))
    }

    // SAFETY: nothing is done.
    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    // SAFETY: the machine's registers are mapped one to one.
    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
    }

    // SAFETY: memory is mapped one to one.
    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    // SAFETY: nothing is done.
    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn transport(device: Device) -> Option<MmioTransport<'static>> {
    let registers = NonNull::new(device.base as *mut _)?;
    // SAFETY: these are the registers of a virtio device, and the attacks on it pause.
    unsafe { MmioTransport::new(registers, 0x1000) }.ok()
}

/// Resets both devices and uses them. Writes `count` to the disk, where the host looks for it.
pub fn check(disk: Device, rng: Device, count: u64) -> Result<(), &'static str> {
    NEXT.store(DMA, Ordering::SeqCst);
    let mut random = [0; 64];
    let mut device = VirtIORng::<Flat, _>::new(transport(rng).ok_or("rng: no device")?)
        .map_err(|_| "rng: not set up")?;
    let got = device.request_entropy(&mut random).map_err(|_| "rng: no answer")?;
    if got != random.len() || random == [0; 64] {
        return Err("rng: no random bytes");
    }
    let mut device = VirtIOBlk::<Flat, _>::new(transport(disk).ok_or("disk: no device")?)
        .map_err(|_| "disk: not set up")?;
    let (mut sector, mut back) = ([0; 512], [0; 512]);
    sector[..64].copy_from_slice(&random);
    device.write_blocks(ALIVE_SECTOR + 1, &sector).map_err(|_| "disk: not written")?;
    device.read_blocks(ALIVE_SECTOR + 1, &mut back).map_err(|_| "disk: not read")?;
    if sector != back {
        return Err("disk: other data");
    }
    sector[..8].copy_from_slice(ALIVE);
    sector[8..16].copy_from_slice(&count.to_le_bytes());
    device.write_blocks(ALIVE_SECTOR, &sector).map_err(|_| "disk: not alive")?;
    device.flush().map_err(|_| "disk: not flushed")
}
