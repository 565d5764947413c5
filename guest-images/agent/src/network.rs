//! A network card's addresses and routes, by ioctl(2): netdevice(7), ipv6(7), include/uapi/linux/{route,ipv6_route}.h.

use core::net::{IpAddr, Ipv6Addr};

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::{sys, wait};

const SIOCADDRT: u32 = 0x890b;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCSIFADDR: u32 = 0x8916;
const SIOCSIFNETMASK: u32 = 0x891c;
const SIOCSIFMTU: u32 = 0x8922;
const SIOCGIFINDEX: u32 = 0x8933;
/// IFF_UP; RTF_UP and RTF_GATEWAY.
const UP: u8 = 1;
const GATEWAY: u16 = 2;
/// Bytes of a struct ifreq, and where what is after the name begins.
const REQUEST: usize = 40;
const VALUE: usize = 16;
/// How often a card is looked for, every 10 ms: its driver may be starting.
const TRIES: u32 = 200;

fn open(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

fn request(card: &[u8]) -> Result<[u8; REQUEST], Errno> {
    let mut request = [0; REQUEST];
    request
        .get_mut(..card.len())
        .filter(|name| name.len() < VALUE)
        .ok_or(Errno::INVAL)?
        .copy_from_slice(card);
    Ok(request)
}

fn control(card: &[u8], number: u32, value: &[u8]) -> Result<(), Errno> {
    let mut request = request(card)?;
    request[VALUE..VALUE + value.len()].copy_from_slice(value);
    sys::control(open(AddressFamily::INET)?.as_fd(), number, &request)
}

fn index(card: &[u8]) -> Result<u32, Errno> {
    let mut request = request(card)?;
    sys::exchange(open(AddressFamily::INET)?.as_fd(), SIOCGIFINDEX, &mut request)?;
    Ok(u32::from_ne_bytes([request[16], request[17], request[18], request[19]]))
}

/// Has the card send and receive, packets of at most `mtu` bytes; 0: as many as it likes.
pub fn raise(card: &[u8], mtu: u32) -> Result<(), Errno> {
    let mut tries = 0;
    while index(card) == Err(Errno::NODEV) && tries < TRIES {
        wait(10);
        tries += 1;
    }
    if mtu > 0 {
        control(card, SIOCSIFMTU, &mtu.to_ne_bytes())?;
    }
    control(card, SIOCSIFFLAGS, &[UP])
}

fn address(text: &[u8]) -> Result<IpAddr, Errno> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::INVAL)?;
    text.parse().map_err(|_| Errno::INVAL)
}

/// struct sockaddr_in.
fn socket_address(octets: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = 2; // AF_INET
    bytes[4..8].copy_from_slice(&octets);
    bytes
}

/// The mask whose first `bits` are set.
fn mask(bits: u32) -> [u8; 4] {
    u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0).to_be_bytes()
}

/// Gives the card an address, with as many `bits` of its network. One of each version: of IPv4 it replaces another.
pub fn add_address(card: &[u8], text: &[u8], bits: u32) -> Result<(), Errno> {
    match address(text)? {
        IpAddr::V4(own) => {
            control(card, SIOCSIFADDR, &socket_address(own.octets()))?;
            control(card, SIOCSIFNETMASK, &socket_address(mask(bits)))
        }
        IpAddr::V6(own) => {
            // struct in6_ifreq
            let mut bytes = [0; 24];
            bytes[..16].copy_from_slice(&own.octets());
            bytes[16..20].copy_from_slice(&bits.to_ne_bytes());
            bytes[20..].copy_from_slice(&index(card)?.to_ne_bytes());
            sys::control(open(AddressFamily::INET6)?.as_fd(), SIOCSIFADDR, &bytes)
        }
    }
}

/// Leads to a network by the card, directly or, if `gateway` is not empty, by that neighbour.
pub fn add_route(card: &[u8], to: &[u8], bits: u32, gateway: &[u8]) -> Result<(), Errno> {
    let gateway = if gateway.is_empty() { None } else { Some(address(gateway)?) };
    let flags = u16::from(UP) | if gateway.is_some() { GATEWAY } else { 0 };
    match (address(to)?, gateway) {
        (IpAddr::V4(to), None | Some(IpAddr::V4(_))) => {
            let gateway = match gateway {
                Some(IpAddr::V4(gateway)) => gateway.octets(),
                _ => [0; 4],
            };
            let name = [card, &[0]].concat();
            // struct rtentry: destination at 8, gateway at 24, mask at 40, flags at 56, the card's name at 88.
            let mut bytes = [0; 120];
            bytes[8..24].copy_from_slice(&socket_address(to.octets()));
            bytes[24..40].copy_from_slice(&socket_address(gateway));
            bytes[40..56].copy_from_slice(&socket_address(mask(bits)));
            bytes[56..58].copy_from_slice(&flags.to_ne_bytes());
            bytes[88..96].copy_from_slice(&name.as_ptr().addr().to_ne_bytes());
            sys::control(open(AddressFamily::INET)?.as_fd(), SIOCADDRT, &bytes)
        }
        (IpAddr::V6(to), None | Some(IpAddr::V6(_))) => {
            let gateway = match gateway {
                Some(IpAddr::V6(gateway)) => gateway,
                _ => Ipv6Addr::UNSPECIFIED,
            };
            // struct in6_rtmsg: destination, source, gateway, type, bits of destination and source, metric, info, flags, card.
            let mut bytes = [0; 80];
            bytes[..16].copy_from_slice(&to.octets());
            bytes[32..48].copy_from_slice(&gateway.octets());
            bytes[52..54].copy_from_slice(&(bits as u16).to_ne_bytes());
            bytes[56..60].copy_from_slice(&1024u32.to_ne_bytes()); // the metric of ip(8)
            bytes[72..76].copy_from_slice(&u32::from(flags).to_ne_bytes());
            bytes[76..].copy_from_slice(&index(card)?.to_ne_bytes());
            sys::control(open(AddressFamily::INET6)?.as_fd(), SIOCADDRT, &bytes)
        }
        _ => Err(Errno::INVAL),
    }
}
