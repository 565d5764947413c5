//! MP table: CPUs and interrupts for kernels without ACPI (Intel MultiProcessor Specification 1.4, chapter 4).

use anyhow::{Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use super::apic;
use crate::config::Cpus;
use crate::layout;
use crate::memory::GuestRam;

const VERSION_1_4: u8 = 4;
const HEADER_LEN: usize = 44;
/// Version registers of the APICs that KVM has.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const ENABLED: u8 = 1;
const BOOT_CPU: u8 = 1 << 1;
/// A P6, with FPU and APIC: CPUID has the rest.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 1 | 1 << 9;
/// The only bus: what is on it interrupts by edges that are active high, unless an entry says otherwise.
const ISA: u8 = 0;
/// Interrupt types (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// The pin at which a PC's second PIC is: no interrupt of its own.
const CASCADE: u8 = 2;
const ALL_CPUS: u8 = 0xff;

/// Writes the table of a machine with these `cpus`, and the pointer that kernels look for.
pub fn write(ram: &GuestRam, cpus: Cpus) -> Result<()> {
    let (table, at) = (table(cpus), layout::MP_TABLE.start);
    ensure!(at + table.len() as u64 <= layout::MP_TABLE.end, "the MP table is too large");
    ram.write_slice(&table, GuestAddress(at))?;
    // Its length in units of 16 bytes, version, checksum; a table is there, and virtual wire mode.
    let rest = [1, VERSION_1_4, 0, 0, 0, 0, 0, 0];
    let pointer = [*b"_MP_", (at as u32).to_le_bytes()].concat();
    let pointer = with_checksum([&pointer[..], &rest].concat(), 10);
    Ok(ram.write_slice(&pointer, GuestAddress(layout::MP_POINTER))?)
}

fn table(cpus: Cpus) -> Vec<u8> {
    // Ids stay below 255: `capabilities::check` saw to it.
    let ids = (0..cpus.count()).map(|index| apic::id(cpus, index) as u8);
    let ioapic = ids.clone().max().unwrap_or_default() + 1;
    let cpu = |id| {
        let flags = if id == 0 { ENABLED | BOOT_CPU } else { ENABLED };
        let rest = [SIGNATURE, FEATURES, 0, 0].map(u32::to_le_bytes);
        [&[0, id, LAPIC_VERSION, flags], rest.as_flattened()].concat()
    };
    let mut entries: Vec<Vec<u8>> = ids.map(cpu).collect();
    entries.push([&[1, ISA], &b"ISA   "[..]].concat());
    entries.push([[2, ioapic, IOAPIC_VERSION, ENABLED], layout::IOAPIC.to_le_bytes()].concat());
    let pins = (0..layout::IOAPIC_PINS as u8).filter(|pin| *pin != CASCADE);
    entries.extend(pins.map(|pin| vec![3, INT, 0, 0, ISA, pin, ioapic, pin]));
    let line = |(kind, line)| vec![4, kind, 0, 0, ISA, 0, ALL_CPUS, line];
    entries.extend([(EXTINT, 0), (NMI, 1)].map(line));
    let (count, entries) = (entries.len() as u16, entries.concat());
    let len = (HEADER_LEN + entries.len()) as u16;
    let parts: [&[u8]; 9] = [
        b"PCMP",
        &len.to_le_bytes(),
        &[VERSION_1_4, 0],       // and the checksum
        b"TINYVMM tinyvmm     ", // OEM and product
        &[0; 6],                 // no table of the OEM's
        &count.to_le_bytes(),
        &layout::LAPIC.to_le_bytes(),
        &[0; 4], // no extended table
        &entries,
    ];
    with_checksum(parts.concat(), 7)
}

/// `bytes` with such a byte at `at` that all of them sum to zero.
fn with_checksum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    bytes[at] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_table_of_the_largest_machine_fits_and_has_its_entries() {
        let ram = crate::memory::of_ranges(&[(0, 1 << 20)]);
        write(&ram, "255".parse().unwrap()).unwrap();
        let mut pointer = [0; 16];
        ram.read_slice(&mut pointer, GuestAddress(layout::MP_POINTER)).unwrap();
        assert_eq!((&pointer[..4], sum(&pointer)), (b"_MP_".as_slice(), 0));
        let at = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
        let mut header = [0; HEADER_LEN];
        ram.read_slice(&mut header, GuestAddress(at.into())).unwrap();
        let word = |at: usize| u16::from_le_bytes(header[at..at + 2].try_into().unwrap());
        let mut table = vec![0; word(4).into()];
        ram.read_slice(&mut table, GuestAddress(at.into())).unwrap();
        assert_eq!((&table[..4], sum(&table)), (b"PCMP".as_slice(), 0));
        let (mut rest, mut counts) = (&table[HEADER_LEN..], [0; 5]);
        while let Some(kind) = rest.first() {
            counts[usize::from(*kind)] += 1;
            rest = &rest[if *kind == 0 { 20 } else { 8 }..];
        }
        assert_eq!(counts, [255, 1, 1, 23, 2]);
        assert_eq!(word(34), counts.iter().sum::<u16>());
    }
}
