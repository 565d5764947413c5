//! What differs between processors: addresses, registers, boot protocols, firmware tables. One folder each.

#[cfg(target_arch = "x86_64")]
#[path = "x86_64/mod.rs"]
mod chosen;

pub use self::chosen::*;
