//! The configuration of memory.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use anyhow::{Result, ensure};

use super::Size;
use crate::layout;

/// The memory of a machine at its start, and what can be plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    /// Memory at the start.
    pub boot: Size,
    /// Memory that can be plugged while the machine runs. 0: there is no virtio-mem device.
    pub more: Size,
    /// Size of a block, in bytes; `None`: the smallest possible one.
    pub block: Option<u64>,
}

impl Mem {
    /// Smallest block, one huge page, in bytes; a block is this times a power of two.
    pub const MIN_BLOCK: u64 = 2 * layout::MIB;
    /// Most memory that can be plugged, in bytes; more than any host addresses.
    const MAX_MORE: u64 = 1 << 46;

    /// A machine with `boot` bytes, to which nothing can be plugged.
    pub const fn fixed(boot: Size) -> Self {
        Self { boot, more: Size::new(0), block: None }
    }

    /// Memory at the start, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.boot.bytes()
    }

    /// Size of a block in bytes: large enough for KVM to have a slot for each block.
    pub fn block(&self) -> u64 {
        let smallest = || {
            let least = self.more.bytes().div_ceil(layout::MAX_BLOCKS);
            least.next_power_of_two().max(Self::MIN_BLOCK)
        };
        self.block.unwrap_or_else(smallest)
    }

    /// The guest addresses at which memory can be plugged, if it can.
    pub fn room(&self) -> Option<Range<u64>> {
        (self.more.bytes() > 0).then(|| layout::room(self.bytes(), self.more.bytes()))
    }

    /// Checks the pluggable memory, as far as that does not depend on the host.
    pub(super) fn validate_room(&self, hugepages: bool) -> Result<()> {
        let more = self.more.bytes();
        if more == 0 {
            return Ok(());
        }
        ensure!(!hugepages, "--mem {self}: pages of --hugepages cannot be plugged, leave one out");
        ensure!(
            more <= Self::MAX_MORE,
            "--mem {self}: too much, the most to be added is {}",
            Size::new(Self::MAX_MORE)
        );
        let (block, mib) = (self.block(), self.block() / layout::MIB);
        ensure!(
            block >= Self::MIN_BLOCK && block.is_power_of_two(),
            "blocks of {mib} MiB: say a power of two from 2 on"
        );
        ensure!(
            more.is_multiple_of(block),
            "--mem {self}: memory is added in blocks of {mib} MiB, choose a max that is whole blocks above it"
        );
        ensure!(
            more / block <= layout::MAX_BLOCKS,
            "blocks of {mib} MiB: there can be {} of them, choose larger ones",
            layout::MAX_BLOCKS
        );
        Ok(())
    }
}

impl FromStr for Mem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (boot, rest) = text.split_once(',').map_or((text, None), |(a, b)| (a, Some(b)));
        let boot: Size = boot.parse()?;
        let Some(rest) = rest else { return Ok(Self::fixed(boot)) };
        let (max, block) = rest.split_once(",block=").map_or((rest, None), |(a, b)| (a, Some(b)));
        let max = max.strip_prefix("max=").ok_or_else(|| {
            let point = if rest.starts_with(|c: char| c.is_ascii_digit()) {
                ", and a fraction with a point, as in 4.5G"
            } else {
                ""
            };
            format!("say SIZE,max=SIZE, as in 512M,max=8G{point}")
        })?;
        let max: Size = max.parse()?;
        let block = block.map(|size| Ok::<_, String>(size.parse::<Size>()?.bytes())).transpose()?;
        let more = max.bytes().checked_sub(boot.bytes());
        let more = more.ok_or_else(|| {
            format!("max={max} is less than {boot}: say how much there can be in all")
        })?;
        Ok(Self { more: Size::new(more), block, ..Self::fixed(boot) })
    }
}

impl fmt::Display for Mem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.boot.fmt(f)?;
        match self.more.bytes() {
            0 => Ok(()),
            more => write!(f, ",max={}", Size::new(self.bytes().saturating_add(more))),
        }?;
        match self.block {
            Some(bytes) => write!(f, ",block={}", Size::new(bytes)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_can_grow_is_read_and_shown() {
        for text in ["512M", "512M,max=8G", "3G,max=100G", "256M,max=1T", "1G,max=2G,block=4M"] {
            let mem: Mem = text.parse().unwrap();
            assert_eq!(mem.to_string(), text);
            mem.validate_room(false).unwrap();
        }
        assert_eq!("1G,max=1G".parse(), Ok(Mem::fixed(Size::new(layout::GIB))));
        for text in ["1G,max=512M", "1G,", "1G,min=2G", "1G,max", "1G,max=2G,max=3G"] {
            text.parse::<Mem>().unwrap_err();
        }
        let mem = |text: &str| text.parse::<Mem>().unwrap();
        assert!(mem("512M,max=8G").validate_room(true).is_err());
        assert!(mem("511M,max=8G").validate_room(false).is_err());
        assert!(mem("1M,max=16000P").validate_room(false).is_err());
        let small = Mem { block: Some(layout::MIB), ..mem("512M,max=8G") };
        assert!(small.validate_room(false).is_err());
        let many = Mem { block: Some(Mem::MIN_BLOCK), ..mem("1G,max=100G") };
        assert!(many.validate_room(false).is_err());
    }

    #[test]
    fn there_is_a_slot_for_each_block() {
        let mem = |text: &str| text.parse::<Mem>().unwrap();
        assert_eq!(mem("512M,max=8G").block(), 2 * layout::MIB);
        assert_eq!(mem("1G,max=101G").block(), 4 * layout::MIB);
        assert!(
            mem("1G,max=17000G").more.bytes() / mem("1G,max=17000G").block() <= layout::MAX_BLOCKS
        );
        assert_eq!(mem("512M").room(), None);
        let room = mem("3G,max=4G").room().unwrap();
        assert_eq!(room, 4 * layout::GIB..5 * layout::GIB);
        assert_eq!(mem("4G,max=5G").room().unwrap().start, 6 * layout::GIB);
    }
}
