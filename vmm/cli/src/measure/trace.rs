//! `--trace-exits`: counts a guest's exits by port and address.

use std::collections::BTreeMap;
use std::fmt;

use tinyvmm::timeline::Access;

/// Most addresses that are counted separately: a guest can access any number.
const MAX_ADDRESSES: usize = 1000;

/// Exits to tinyvmm by access; `None` sums up further ones after the first [`MAX_ADDRESSES`].
#[derive(Default)]
pub struct ExitTrace(BTreeMap<Option<Access>, u64>);

impl ExitTrace {
    /// Counts `access`.
    pub fn add(&mut self, access: Access) {
        let access = Some(access);
        let known = self.0.len() < MAX_ADDRESSES || self.0.contains_key(&access);
        *self.0.entry(if known { access } else { None }).or_default() += 1;
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
        rows.into_iter().try_for_each(|(access, times)| {
            write!(f, "{times:>9}  ")?;
            match access {
                Some(Access::In(port)) => writeln!(f, "in    {port:#x}"),
                Some(Access::Out(port)) => writeln!(f, "out   {port:#x}"),
                Some(Access::Read(address)) => writeln!(f, "read  {address:#x}"),
                Some(Access::Write(address)) => writeln!(f, "write {address:#x}"),
                None => writeln!(f, "other"),
            }
        })
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
        assert_eq!(trace.0.len(), MAX_ADDRESSES + 1);
        assert_eq!(trace.0[&Some(Access::Read(0))], 2);
        assert_eq!(trace.0[&None], 9_000);
        assert!(trace.to_string().contains("     9000  other\n        2  read  0x0\n"));
    }
}
