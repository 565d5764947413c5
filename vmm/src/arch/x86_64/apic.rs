//! APIC ids: how processors are numbered (Intel SDM volume 3, 9.9.1).
//!
//! Each level of the topology has a bit field of its own, so that ids have gaps where a level is not a power of two.

use crate::config::Cpus;

/// Bits of an APIC id that number the threads of a core.
pub const fn thread_bits(cpus: Cpus) -> u32 {
    cpus.threads.next_power_of_two().trailing_zeros()
}

/// Bits of an APIC id below the socket's number.
pub const fn socket_shift(cpus: Cpus) -> u32 {
    thread_bits(cpus) + cpus.cores.next_power_of_two().trailing_zeros()
}

/// APIC id of the `index`-th CPU.
pub const fn id(cpus: Cpus, index: u32) -> u32 {
    let thread = index % cpus.threads;
    let core = index / cpus.threads % cpus.cores;
    let socket = index / cpus.threads / cpus.cores;
    socket << socket_shift(cpus) | core << thread_bits(cpus) | thread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_number_each_level_in_its_own_bits() {
        let ids = |text: &str| {
            let cpus: Cpus = text.parse().unwrap();
            (0..cpus.count()).map(|index| id(cpus, index)).collect::<Vec<_>>()
        };
        assert_eq!(ids("4"), [0, 1, 2, 3]);
        assert_eq!(ids("6,sockets=2,cores=3"), [0, 1, 2, 4, 5, 6]);
        assert_eq!(ids("8,sockets=2,cores=2,threads=2"), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
