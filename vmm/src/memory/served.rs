//! Guest RAM whose pages another process provides as they are touched, by userfaultfd(2).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestRam, HUGE_PAGE, PAGE, RamRegion};

/// The requests of include/uapi/linux/userfaultfd.h: `_IO(0xaa, 0)`, and `_IOWR` of the structures below.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
/// The other process is told of pages that were given back.
const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// Where a region is, for the process that provides its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedRegion {
    /// Its address in this process.
    pub address: u64,
    /// Its bytes.
    pub len: u64,
    /// Where it starts in the file of the memory.
    pub offset: u64,
    /// Bytes of a page.
    pub page: u64,
}

/// A new descriptor for faults, also for those of the kernel in behalf of this process: KVM's are such. Without `device`,
/// which is `/dev/userfaultfd`, this process needs CAP_SYS_PTRACE or vm.unprivileged_userfaultfd (userfaultfd(2)).
pub fn new(device: Option<&File>) -> Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    let fd = match device {
        // SAFETY: no memory is registered yet.
        None => unsafe { userfaultfd(flags) }?,
        Some(device) => {
            let request = USERFAULTFD_IOC_NEW;
            // SAFETY: the request takes flags and no pointer.
            let fd = unsafe { libc::ioctl(device.as_raw_fd(), request, flags.bits()) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            // SAFETY: the descriptor is new, and nobody else's.
            unsafe { OwnedFd::from_raw_fd(fd) }
        }
    };
    let mut api = Api { api: UFFD_API, features: UFFD_FEATURE_EVENT_REMOVE, ioctls: 0 };
    // SAFETY: the request takes this structure, and writes to nothing else.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
    Ok(fd)
}

/// Has who reads `faults` provide the pages of `ram`, which is new: whoever touches one waits for that.
pub fn register(ram: &GuestRam, faults: impl AsFd, hugepages: bool) -> Result<Vec<ServedRegion>> {
    let page = if hugepages { HUGE_PAGE } else { PAGE } as u64;
    let mut offset = 0;
    ram.iter()
        .map(|region: &RamRegion| {
            let (address, len) = (region.host_address(), region.len());
            let mode = UFFDIO_REGISTER_MODE_MISSING;
            let mut range =
                Register { start: address, len: len.next_multiple_of(page), mode, ioctls: 0 };
            let fd = faults.as_fd().as_raw_fd();
            // SAFETY: the request takes this structure. Guest RAM is only touched through volatile accessors, which may
            // find anything in it, and wait for it.
            let registered = unsafe { libc::ioctl(fd, UFFDIO_REGISTER, &raw mut range) };
            done(registered).context("UFFDIO_REGISTER")?;
            region.set_served();
            let served = ServedRegion { address, len, offset, page };
            offset += len;
            Ok(served)
        })
        .collect()
}

fn done(result: libc::c_int) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// What the other process does, for tests.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
    const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
    const UFFD_EVENT_REMOVE: u8 = 0x15;

    /// An event.
    #[derive(Debug)]
    pub enum Fault {
        /// Somebody waits for this page.
        Missing(u64),
        /// What is between these addresses is zero from now on.
        Removed(u64, u64),
    }

    /// The next event of `faults`, if there is one.
    pub fn next(faults: &OwnedFd) -> Option<Fault> {
        let mut message = [0; 32];
        rustix::io::read(faults, &mut message).ok()?;
        let [first, second] = [8, 16].map(|at| {
            let bytes = message[at..].first_chunk().unwrap();
            u64::from_ne_bytes(*bytes)
        });
        match message[0] {
            UFFD_EVENT_PAGEFAULT => Some(Fault::Missing(second / PAGE as u64 * PAGE as u64)),
            UFFD_EVENT_REMOVE => Some(Fault::Removed(first, second)),
            other => panic!("event {other:#x}"),
        }
    }

    /// `struct uffdio_copy`.
    #[repr(C)]
    struct Copy {
        to: u64,
        from: u64,
        len: u64,
        mode: u64,
        copied: i64,
    }

    /// Provides the page at `address`.
    pub fn provide(faults: &OwnedFd, address: u64, page: &[u8; PAGE]) {
        let (from, len) = (page.as_ptr().expose_provenance() as u64, PAGE as u64);
        let mut copy = Copy { to: address, from, len, mode: 0, copied: 0 };
        // SAFETY: the request reads `page`, and fills a page of guest RAM that is not there yet.
        let copied = unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
        done(copied).unwrap();
    }
}
