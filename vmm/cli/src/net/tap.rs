//! The host's tap devices (Documentation/networking/tuntap.rst), and descriptors that were inherited.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::{io, mem};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{FileType, fstat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{SocketType, sockopt};
use tinyvmm::wire::HEADER;

// include/uapi/linux/if_tun.h
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Opens the tap `name`, which is there.
pub fn open(name: &str) -> Result<OwnedFd> {
    let terminated = CString::new(name)?;
    // SAFETY: the call reads a name that ends with a zero byte. /sys may be that of another network namespace.
    let index = unsafe { libc::if_nametoindex(terminated.as_ptr()) };
    ensure!(
        index != 0,
        "there is none: sudo ip tuntap add {name} mode tap user $USER && sudo ip link set {name} up"
    );
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let file = file.context("cannot open /dev/net/tun")?;
    let mut request = request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = FLAGS as i16;
    // SAFETY: the request reads and writes an ifreq (drivers/net/tun.c), as this is one.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if done != 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EBUSY) => anyhow!("another machine uses it: name another"),
            Some(libc::EPERM) => anyhow!("it is another user's: make it with user $USER"),
            Some(libc::EINVAL) => anyhow!("it is no tap, or one of several queues: name another"),
            _ => anyhow!(error),
        });
    }
    sized(file.into())
}

/// Refuses a descriptor that is no tap with headers of virtio.
pub fn check(tap: OwnedFd) -> Result<OwnedFd> {
    let mut request = request();
    // SAFETY: the request writes an ifreq, as this is one.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) };
    ensure!(done == 0, "it is neither a socket nor a tap");
    // SAFETY: the request has set this member, and any bits are a number.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    ensure!(flags & FLAGS == FLAGS, "it is not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR");
    sized(tap)
}

/// Sets the size of the header before each frame.
fn sized(tap: OwnedFd) -> Result<OwnedFd> {
    let size = HEADER as i32;
    // SAFETY: the request reads a number.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) };
    ensure!(done == 0, "TUNSETVNETHDRSZ: {}", io::Error::last_os_error());
    Ok(tap)
}

fn request() -> libc::ifreq {
    // SAFETY: it has names and numbers only, which may be zero.
    unsafe { mem::zeroed() }
}

/// A descriptor for the same file as `number`.
pub fn duplicate(number: i32) -> Result<OwnedFd> {
    // SAFETY: it is used for this call alone, which refuses a number that is not open.
    let given = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_dupfd_cloexec(given, 3)
        .map_err(|_| anyhow!("this process was given no descriptor {number}"))
}

/// Whether it is a socket, which has to be a stream.
pub fn is_socket(end: &OwnedFd) -> Result<bool> {
    if FileType::from_raw_mode(fstat(end)?.st_mode) != FileType::Socket {
        return Ok(false);
    }
    let kind = sockopt::socket_type(end)?;
    ensure!(kind == SocketType::STREAM, "the socket is no stream: say one of SOCK_STREAM");
    Ok(true)
}
