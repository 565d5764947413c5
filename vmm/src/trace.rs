//! `--trace-exits`: which ports and registers a guest's exits were for.

use std::collections::BTreeMap;
use std::fmt;

/// Most addresses that a trace tells apart: a guest may touch any number.
const MOST: usize = 1000;

/// What a guest did at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// IN from this port.
    In(u16),
    /// OUT to this port.
    Out(u16),
    /// A read of this guest physical address.
    Read(u64),
    /// A write to this guest physical address.
    Write(u64),
    /// Any, after too many others.
    Other,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::In(port) => write!(f, "in    {port:#x}"),
            Self::Out(port) => write!(f, "out   {port:#x}"),
            Self::Read(address) => write!(f, "read  {address:#x}"),
            Self::Write(address) => write!(f, "write {address:#x}"),
            Self::Other => f.write_str("other"),
        }
    }
}

/// How often each access made a CPU exit to tinyvmm.
#[derive(Default)]
pub struct ExitTrace(BTreeMap<Access, u64>);

impl ExitTrace {
    /// Counts `access`.
    pub fn add(&mut self, access: Access) {
        self.add_many(access, 1);
    }

    fn add_many(&mut self, access: Access, times: u64) {
        let known = self.0.len() < MOST || self.0.contains_key(&access);
        *self.0.entry(if known { access } else { Access::Other }).or_default() += times;
    }

    /// Adds what `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(access, times)| self.add_many(*access, *times));
    }
}

impl fmt::Display for ExitTrace {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
        writeln!(
            f,
            "exits to tinyvmm, by address (those that KVM handles, or collects for later, are not here):"
        )?;
        rows.iter().try_for_each(|(access, times)| writeln!(f, "{times:>9}  {access}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_touches_everything_fills_no_memory() {
        let mut trace = ExitTrace::default();
        (0..10_000).for_each(|address| trace.add(Access::Read(address)));
        trace.add(Access::Read(0));
        let mut sum = ExitTrace::default();
        sum.merge(&trace);
        assert_eq!(sum.0.len(), MOST + 1);
        assert_eq!(sum.0[&Access::Read(0)], 2);
        assert_eq!(sum.0[&Access::Other], 9_000);
        assert!(sum.to_string().contains("     9000  other\n        2  read  0x0\n"));
    }
}
