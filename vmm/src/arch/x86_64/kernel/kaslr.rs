//! Kernel address space layout randomization: what a bzImage's own decompressor does to an unpacked
//! kernel (arch/x86/boot/compressed/kaslr.c, and handle_relocations in misc.c).
//!
//! A kernel that was built for it is followed by a table of little-endian words: 0, the sites of
//! 64-bit addresses; 0, the sites of 32-bit distances to what does not move (not since Linux 6.15);
//! 0, the sites of 32-bit addresses. A site is the low half of a virtual address.

use anyhow::{Context, Result, ensure};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::elf::Layout;
use crate::memory::{self, GuestRam};
use crate::{layout, random};

/// The most bytes that a table may have; Debian's have some 3 MiB.
pub const MAX_TABLE: u64 = 64 << 20;
/// `hdr.loadflags`: the kernel may randomize its other mappings, too (boot.rst).
const KASLR_FLAG: u8 = 1 << 1;
/// `__START_KERNEL_map` (arch/x86/include/asm/page_64_types.h).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// `KERNEL_IMAGE_SIZE` of kernels that can be randomized (the same file).
const KERNEL_ROOM: u64 = layout::GIB;
/// Page tables of the kernel's image have 2 MiB pages (`MIN_KERNEL_ALIGN`).
const ALIGN: u64 = 2 << 20;

/// A little-endian word of the table: 0, or a site. There are hundreds of thousands.
type Word = [u8; 4];

/// Sites, by what has to be done to them.
struct Table<'a> {
    add64: &'a [Word],
    subtract32: &'a [Word],
    add32: &'a [Word],
}

/// Moves the loaded kernel to a random virtual address, if `table` says how; its physical one stays.
/// Returns the load flags by which it knows. A table that cannot be is left alone.
pub fn randomize(ram: &GuestRam, layout: &Layout, table: &[u8]) -> Result<u8> {
    if table.is_empty() {
        return Ok(0);
    }
    let (words, rest) = table.as_chunks();
    let parse = || {
        ensure!(rest.is_empty(), "a table of {} bytes", table.len());
        Ok((slots(layout)?, Table::parse(words, layout)?))
    };
    let (slots, table) = match parse() {
        Ok(checked) => checked,
        Err(error) => {
            log::debug!("no KASLR: {error:#}");
            return Ok(0);
        }
    };
    let random: [u8; 8] = random::bytes()?;
    table.apply(ram, layout, u64::from_le_bytes(random) % slots * ALIGN)?;
    Ok(KASLR_FLAG)
}

/// At how many addresses the kernel can be (find_random_virt_addr).
fn slots(layout: &Layout) -> Result<u64> {
    let first = layout.segments.iter().min_by_key(|segment| segment.address);
    let first = first.context("nothing is loaded")?;
    let mapped = first.virtual_address.wrapping_sub(first.address) == KERNEL_MAP;
    ensure!(mapped && first.address.is_multiple_of(ALIGN), "not linked as Linux is");
    let room = KERNEL_ROOM.checked_sub(layout.memory_end().next_multiple_of(ALIGN));
    Ok(1 + room.context("too large")? / ALIGN)
}

impl<'a> Table<'a> {
    /// Every site of the result is in the memory of `layout`.
    fn parse(words: &'a [Word], layout: &Layout) -> Result<Self> {
        let lists: Vec<&[Word]> = words.splitn(5, |word| *word == [0; 4]).collect();
        let (add64, subtract32, add32) = match lists[..] {
            [[], add64, add32] => (add64, &[][..], add32),
            [[], add64, subtract32, add32] => (add64, subtract32, add32),
            _ => anyhow::bail!("a table of {} lists", lists.len()),
        };
        let start = layout.memory_start();
        let room = layout.memory_end() - start;
        for (list, len) in [(add64, 8), (subtract32, 4), (add32, 4)] {
            let last = room.checked_sub(len).context("no kernel")?;
            let within = |site: &Word| address(*site).wrapping_sub(start) <= last;
            ensure!(list.iter().all(within), "a site outside of the kernel");
        }
        Ok(Self { add64, subtract32, add32 })
    }

    fn apply(&self, ram: &GuestRam, layout: &Layout, delta: u64) -> Result<()> {
        let start = layout.memory_start();
        let len = usize::try_from(layout.memory_end() - start)?;
        let kernel = ram.get_slice(GuestAddress(start), len)?;
        let at = |site: &Word| (address(*site) - start) as usize;
        let add64 = |value: u64| value.wrapping_add(delta);
        memory::change_each(kernel, self.add64.iter().map(at), add64)?;
        let subtract32 = |value: u32| value.wrapping_sub(delta as u32);
        memory::change_each(kernel, self.subtract32.iter().map(at), subtract32)?;
        let add32 = |value: u32| value.wrapping_add(delta as u32);
        memory::change_each(kernel, self.add32.iter().map(at), add32)
    }
}

/// Guest physical address of a site in the upper half of 4 GiB.
fn address(site: Word) -> u64 {
    u64::from(u32::from_le_bytes(site)).wrapping_sub(KERNEL_MAP & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::super::Entry;
    use super::super::elf::Segment;
    use super::*;

    const START: u64 = 16 * layout::MIB;
    const BASE: u32 = 0x8100_0000;

    /// A kernel of two pages with a page between them.
    fn kernel() -> Layout {
        let segment = |page: u64| Segment {
            offset: 0,
            file_len: 4096,
            address: START + page * 4096,
            mem_len: 4096,
            virtual_address: KERNEL_MAP + START + page * 4096,
        };
        let segments = vec![segment(0), segment(2)];
        Layout { segments, entry: Entry::Linux64(START), end: 0, params: None }
    }

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn words(words: &[u32]) -> Vec<Word> {
        words.iter().map(|word| word.to_le_bytes()).collect()
    }

    /// The kernel's memory, after this table was used to move it by `delta`.
    fn moved(words: &[u32], delta: u64) -> Result<GuestRam> {
        let ram = memory::allocate(32 * layout::MIB, memory::Backing::default())?;
        ram.write_obj(0xffff_ffff_8100_1234u64, GuestAddress(START))?;
        ram.write_obj(0x8100_5678u32, GuestAddress(START + 0x2000))?;
        ram.write_obj(0x10u32, GuestAddress(START + 0x2ffc))?;
        Table::parse(&self::words(words), &kernel())?.apply(&ram, &kernel(), delta)?;
        Ok(ram)
    }

    #[test]
    fn each_list_does_what_the_decompressor_does() {
        let table = [0, BASE, 0, BASE + 0x2ffc, 0, BASE + 0x2000];
        let ram = moved(&table, 0x1a00_0000).unwrap();
        let read = |offset| ram.read_obj::<u64>(GuestAddress(START + offset)).unwrap();
        assert_eq!(read(0), 0xffff_ffff_9b00_1234);
        assert_eq!(read(0x2000), 0x9b00_5678);
        assert_eq!(ram.read_obj::<u32>(GuestAddress(START + 0x2ffc)).unwrap(), 0xe600_0010);
        // Without the middle list, as since Linux 6.15.
        let ram = moved(&[0, BASE, 0, BASE + 0x2000], 0x20_0000).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(START)).unwrap(), 0xffff_ffff_8120_1234);
    }

    #[test]
    fn a_table_that_cannot_be_is_refused() {
        let tables: [&[u32]; 8] = [
            &[BASE],
            &[0, BASE],
            &[BASE, 0, BASE, 0, BASE],
            &[0, 0, 0, 0],
            &[0, BASE + 0x2ff9, 0, BASE], // across the end of the kernel
            &[0, BASE, 0, BASE + 0x2ffd], // the same
            &[0, BASE, 0, BASE - 4],      // before it
            &[0, BASE, 0, 0x0100_0000],   // no address of the kernel's
        ];
        for table in tables {
            assert!(Table::parse(&words(table), &kernel()).is_err(), "{table:x?}");
        }
    }

    #[test]
    fn a_kernel_is_left_alone_where_it_cannot_be_moved() {
        let ram = memory::allocate(32 * layout::MIB, memory::Backing::default()).unwrap();
        let table = bytes(&[0, BASE, 0, BASE]);
        assert_eq!(randomize(&ram, &kernel(), &table).unwrap(), KASLR_FLAG);
        assert_eq!(randomize(&ram, &kernel(), b"").unwrap(), 0);
        assert_eq!(randomize(&ram, &kernel(), b"junk").unwrap(), 0);
        assert_eq!(randomize(&ram, &kernel(), &[&table[..], b"x"].concat()).unwrap(), 0);
        let mut low = kernel();
        low.segments[0].virtual_address = START;
        assert_eq!(randomize(&ram, &low, &table).unwrap(), 0);
        let mut odd = kernel();
        odd.segments[0].address += 4096;
        odd.segments[0].virtual_address += 4096;
        assert_eq!(randomize(&ram, &odd, &table).unwrap(), 0);
    }

    #[test]
    fn slots_end_where_the_kernel_has_no_room() {
        // 1 GiB, less what is before the kernel and its own 2 MiB.
        assert_eq!(slots(&kernel()).unwrap(), (1024 - 16 - 2) / 2 + 1);
    }

    proptest! {
        /// Whatever the table: nothing outside of the kernel changes, and nothing panics.
        #[test]
        fn a_hostile_table_reaches_nothing_else(
            mut words in prop::collection::vec(
                prop_oneof![Just(0u32), BASE - 8..BASE + 0x3008, any::<u32>()], 0..12),
            delta: u64,
        ) {
            words.insert(0, 0);
            let words = self::words(&words);
            let Ok(table) = Table::parse(&words, &kernel()) else { return Ok(()) };
            let ram = memory::allocate(32 * layout::MIB, memory::Backing::default()).unwrap();
            table.apply(&ram, &kernel(), delta).unwrap();
            for range in [START - 64..START, START + 0x3000..START + 0x3040] {
                for at in range.step_by(8) {
                    prop_assert_eq!(ram.read_obj::<u64>(GuestAddress(at)).unwrap(), 0);
                }
            }
        }
    }
}
