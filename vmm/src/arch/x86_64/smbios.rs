//! SMBIOS tables: what `dmidecode` shows (DSP0134, SMBIOS 3.0).

use anyhow::{Result, ensure};
use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress};

use crate::config::Cpus;
use crate::layout;
use crate::memory::GuestRam;

const MAKER: &str = "tinyvmm";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const ENTRY_LEN: u8 = 0x18;

/// The structure table as it grows. A structure's handle is its index.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    handles: u16,
}

impl Table {
    /// Adds a structure of type `kind`: its formatted part after the header, then its strings
    /// (6.1.3). Returns its handle.
    fn add(&mut self, kind: u8, formatted: &[u8], strings: &[&str]) -> u16 {
        let handle = self.handles;
        self.handles += 1;
        self.bytes.extend([kind, formatted.len() as u8 + 4]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(formatted);
        for string in strings {
            self.bytes.extend(string.as_bytes());
            self.bytes.push(0);
        }
        // The string set ends with an empty string; without strings it is two zero bytes.
        self.bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        handle
    }
}

/// Writes the tables of a machine with `mem` bytes of RAM; the entry point is at the start of
/// [`layout::SMBIOS`].
pub fn write(ram: &GuestRam, cpus: Cpus, mem: u64, uuid: Uuid) -> Result<()> {
    let table = structures(cpus, mem, uuid);
    let at = layout::SMBIOS.start + 0x20;
    ensure!(at + table.len() as u64 <= layout::SMBIOS.end, "the SMBIOS tables are too large");
    ram.write_slice(&table, GuestAddress(at))?;
    ram.write_slice(&entry_point(at, table.len() as u32), GuestAddress(layout::SMBIOS.start))?;
    Ok(())
}

/// The 64-bit entry point (5.2.2).
fn entry_point(table: u64, len: u32) -> Vec<u8> {
    let mut entry = b"_SM3_".to_vec();
    entry.extend([0, ENTRY_LEN, 3, 0, 0, 1, 0]); // checksum, length, version 3.0.0, revision 1
    entry.extend(len.to_le_bytes());
    entry.extend(table.to_le_bytes());
    entry[5] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    entry
}

fn structures(cpus: Cpus, mem: u64, uuid: Uuid) -> Vec<u8> {
    let mut table = Table::default();
    // Type 0, firmware: characteristics "not supported", "is a virtual machine".
    let mut firmware = vec![1, 2, 0, 0, 3, 0];
    firmware.extend((1u64 << 3).to_le_bytes());
    firmware.extend([0, 1 << 4, 0, 0, 0xff, 0xff, 0, 0]);
    table.add(0, &firmware, &[MAKER, VERSION, "01/01/2026"]);
    // Type 1, system. The UUID's first three fields are little-endian (7.2.1).
    let mut system = vec![1, 2, 3, 0];
    system.extend(uuid.to_bytes_le());
    system.extend([6, 0, 0]); // woken by the power switch
    table.add(1, &system, &[MAKER, "Virtual Machine", VERSION]);
    for _ in 0..cpus.sockets {
        table.add(4, &processor(cpus), &["CPU", MAKER]);
    }
    add_memory(&mut table, mem);
    table.add(127, &[], &[]); // the end
    table.bytes
}

/// Type 4, a populated and enabled processor (7.5).
fn processor(cpus: Cpus) -> Vec<u8> {
    let small = |n: u32| n.min(255) as u8;
    let (cores, threads) = (cpus.cores, cpus.cores * cpus.threads);
    let mut formatted = vec![1, 3, 1, 2];
    formatted.extend([0; 8]); // id: the guest has CPUID for that
    formatted.extend([0, 0]); // version; voltage
    formatted.extend([0; 6]); // clocks: unknown
    formatted.extend([0x41, 6]); // populated and enabled; no socket
    formatted.extend([0xff; 6]); // caches: none described
    formatted.extend([0, 0, 0, small(cores), small(cores), small(threads)]);
    formatted.extend((1u16 << 2).to_le_bytes()); // 64-bit capable
    formatted.extend(1u16.to_le_bytes()); // family "other"
    for count in [cores, cores, threads] {
        formatted.extend((count as u16).to_le_bytes());
    }
    formatted
}

/// Types 16, 17 and 19: one memory array with one module, mapped at each range of RAM.
fn add_memory(table: &mut Table, mem: u64) {
    let mut array = vec![1, 3, 3]; // other, system memory, no error correction
    array.extend(0x8000_0000u32.to_le_bytes()); // the capacity is in the long field
    array.extend(0xfffeu16.to_le_bytes());
    array.extend(1u16.to_le_bytes());
    array.extend(mem.to_le_bytes());
    let array = table.add(16, &array, &[]);
    let mut module = array.to_le_bytes().to_vec();
    module.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]); // no error data; widths unknown
    module.extend(0x7fffu16.to_le_bytes()); // the size is in the long field, in MiB
    module.extend([9, 0, 1, 0, 7]); // DIMM, of no set; "RAM 0"; type RAM
    module.extend([0; 2 + 2 + 4 + 1]); // details, speed, strings, attributes
    module.extend(((mem >> 20) as u32).to_le_bytes());
    module.extend([0; 2 + 6]); // configured speed, voltages: unknown
    table.add(17, &module, &["RAM 0"]);
    for range in layout::ram_ranges(mem) {
        let mut mapped = u32::MAX.to_le_bytes().to_vec(); // the addresses are in the long fields
        mapped.extend(u32::MAX.to_le_bytes());
        mapped.extend(array.to_le_bytes());
        mapped.push(1);
        mapped.extend(range.start.to_le_bytes());
        mapped.extend((range.end - 1).to_le_bytes());
        table.add(19, &mapped, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_point_sums_to_zero() {
        let entry = entry_point(layout::SMBIOS.start + 0x20, 0x1234);
        assert_eq!(entry.len(), usize::from(ENTRY_LEN));
        assert_eq!(entry.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
    }

    #[test]
    fn structures_follow_each_other_to_the_end() {
        let bytes = structures(Cpus { sockets: 2, cores: 2, threads: 2 }, 5 << 30, Uuid::nil());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < bytes.len() {
            kinds.push(bytes[at]);
            at += usize::from(bytes[at + 1]);
            at += bytes[at..].windows(2).position(|end| end == [0, 0]).unwrap() + 2;
        }
        assert_eq!(kinds, [0, 1, 4, 4, 16, 17, 19, 19, 127]);
    }
}
