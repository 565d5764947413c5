//! A new identity for a machine that was made of another one's snapshot.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent_wire::Identity;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::system::sethostname;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::sys;

/// include/uapi/linux/random.h
const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;
/// include/uapi/linux/sockios.h
const SIOCGIFNAME: u32 = 0x8910;
const SIOCSIFHWADDR: u32 = 0x8924;
const SIOCGIFHWADDR: u32 = 0x8927;
/// struct ifreq: a card's name, then its number, or a struct sockaddr of a kind and an address.
const REQUEST: usize = 40;
const NAME: usize = 16;
/// Cards' numbers begin with 1; these are looked at.
const CARDS: i32 = 256;
/// include/uapi/linux/if_arp.h
const ARPHRD_ETHER: u16 = 1;

/// Takes what `identity` has, the seed first: all else may draw random numbers. An error names the part that failed,
/// and the parts after it are taken all the same.
pub fn take(identity: &Identity) -> Result<(), String> {
    let seed = identity.seed.as_deref().map_or(Ok(()), reseed);
    let name = identity.host_name.as_deref().map_or(Ok(()), sethostname);
    let id = identity.machine_id.as_deref().map_or(Ok(()), write_machine_id);
    let macs = identity.macs.iter().map(|(old, new)| set_mac(*old, *new)).fold(Ok(()), Result::and);
    let time = identity.time_ns.map_or(Ok(()), set_time);
    let parts = [
        ("random numbers", seed),
        ("host name", name),
        ("machine-id", id),
        ("MAC address", macs),
        ("time", time),
    ];
    for (part, done) in parts {
        done.map_err(|error| format!("{part}: error {}", error.raw_os_error()))?;
    }
    Ok(())
}

/// Mixes `seed` into the kernel's random numbers, and has each CPU draw anew (drivers/char/random.c).
fn reseed(seed: &[u8]) -> Result<(), Errno> {
    let device = open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // struct rand_pool_info
    let (bits, len) = (seed.len() as u32 * 8, seed.len() as u32);
    let pool: Vec<u8> = [&bits.to_ne_bytes(), &len.to_ne_bytes(), seed].concat();
    sys::control(device.as_fd(), RNDADDENTROPY, &pool)?;
    match sys::control(device.as_fd(), RNDRESEEDCRNG, &[]) {
        // Before Linux 4.14 there is no such request.
        Err(Errno::INVAL | Errno::NOTTY) => Ok(()),
        done => done,
    }
}

fn write_machine_id(id: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o444);
    let file = match open("/etc/machine-id", flags, mode) {
        // A root without /etc has no use for it.
        Err(Errno::NOENT) => return Ok(()),
        file => file?,
    };
    rustix::io::write(&file, &[id, b"\n"].concat()).map(drop)
}

/// Gives the card that has the address `old` the `new` one. The card may be up: virtio_net allows that
/// (IFF_LIVE_ADDR_CHANGE).
fn set_mac(old: [u8; 6], new: [u8; 6]) -> Result<(), Errno> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    for number in 1..=CARDS {
        let mut request = [0u8; REQUEST];
        request[NAME..NAME + 4].copy_from_slice(&number.to_ne_bytes());
        let found = sys::exchange(socket.as_fd(), SIOCGIFNAME, &mut request)
            .and_then(|()| sys::exchange(socket.as_fd(), SIOCGIFHWADDR, &mut request));
        let (kind, address) = request[NAME..NAME + 8].split_at(2);
        if found.is_ok() && kind == ARPHRD_ETHER.to_ne_bytes() && address == old {
            request[NAME + 2..NAME + 8].copy_from_slice(&new);
            return sys::control(socket.as_fd(), SIOCSIFHWADDR, &request);
        }
    }
    Err(Errno::NODEV)
}

fn set_time(ns: u64) -> Result<(), Errno> {
    let (tv_sec, tv_nsec) = ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64);
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec })
}
