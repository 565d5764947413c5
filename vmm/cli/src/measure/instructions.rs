//! Counts the instructions that a guest executes, with the processor's counter, where the host has one.

use std::fs::File;
use std::io::{Error, Read, Result};
use std::os::fd::FromRawFd;

/// Values of include/uapi/linux/perf_event.h: kind and number of the event, and bits of `struct perf_event_attr`.
const HARDWARE: u32 = 0;
const INSTRUCTIONS: u64 = 1;
const INHERIT: u64 = 1 << 1;
const EXCLUDE_HOST: u64 = 1 << 19;
/// Bytes of `perf_event_attr`'s first version, which every kernel knows.
const ATTR_SIZE: u32 = 64;
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// Counts what guests execute on this thread, and on all threads that it starts from now on.
pub struct Instructions(File);

impl Instructions {
    /// Starts to count at zero. Fails where the processor has no counter, as in most virtual machines, or this user may
    /// not count (perf_event_paranoid).
    pub fn count() -> Result<Self> {
        count(HARDWARE, INSTRUCTIONS, EXCLUDE_HOST).map(Self)
    }

    /// Instructions so far.
    pub fn read(&self) -> Option<u64> {
        read(&self.0)
    }
}

fn count(kind: u32, what: u64, flags: u64) -> Result<File> {
    let kind_and_size = u64::from(kind) | u64::from(ATTR_SIZE) << 32;
    let attr: [u64; ATTR_SIZE as usize / 8] = [kind_and_size, what, 0, 0, 0, flags | INHERIT, 0, 0];
    let (this_thread, any_cpu, no_group) = (0, -1, -1);
    // SAFETY: the kernel reads as many bytes of `attr` as it says to have, and writes none (perf_event_open(2)).
    let fd = unsafe {
        let number = libc::SYS_perf_event_open;
        libc::syscall(number, attr.as_ptr(), this_thread, any_cpu, no_group, CLOSE_ON_EXEC)
    };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn read(mut file: &File) -> Option<u64> {
    let mut number = [0; 8];
    file.read_exact(&mut number).ok()?;
    Some(u64::from_ne_bytes(number))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::thread;

    use super::*;

    /// Counts page faults instead of instructions, which every kernel can.
    #[test]
    fn what_threads_do_is_counted_too() {
        const SOFTWARE: u32 = 1;
        const PAGE_FAULTS: u64 = 2;
        let file = match count(SOFTWARE, PAGE_FAULTS, 0) {
            Ok(file) => file,
            Err(error) => return assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}"),
        };
        let before = read(&file).unwrap();
        let touch = || vec![1u8; 64 << 20].iter().map(|byte| u64::from(*byte)).sum::<u64>();
        assert_eq!(thread::spawn(touch).join().unwrap(), 64 << 20);
        assert!(read(&file).unwrap() > before + 16, "64 MiB are 16 pages at least");
    }
}
