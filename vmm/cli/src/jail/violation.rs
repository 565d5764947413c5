//! A violation: a thread makes a system call that its filter forbids. The process logs that and ends.

use std::fmt::{self, Write};
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

use super::raw;
use crate::terminal;

/// The exit code of a violation.
static EXIT_CODE: AtomicU8 = AtomicU8::new(0);

/// From now on a violation ends the process with `exit_code`.
pub(super) fn watch(exit_code: u8) -> Result<()> {
    EXIT_CODE.store(exit_code, Ordering::Relaxed);
    register_signal_handler(libc::SIGSYS, on_violation).context("cannot handle SIGSYS")
}

/// Runs on the violating thread: only what signal-safety(7) allows, and system calls that every filter allows.
extern "C" fn on_violation(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    terminal::restore_now();
    let call = raw::forbidden_call(info);
    let mut line = MessageBuffer::default();
    let _ = write!(line, "tinyvmm: the jail has ended this process: its thread ");
    let name = raw::thread_name();
    let name = name.split(|byte| *byte == 0).next().and_then(|name| str::from_utf8(name).ok());
    let _ = line.write_str(name.unwrap_or("?"));
    let _ = line.write_str(" made the system call ");
    let name =
        usize::try_from(call).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
    let _ =
        writeln!(line, "{name} ({call}), which it never needs: a bug of tinyvmm's, or an attack");
    let stderr = io::stderr();
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&patience))
        .is_ok_and(|ready| ready > 0)
    {
        let _ = rustix::io::write(&stderr, &line.bytes[..line.len]);
    }
    raw::exit_now(EXIT_CODE.load(Ordering::Relaxed).into());
}

/// Text in a buffer that is not allocated.
struct MessageBuffer {
    bytes: [u8; 256],
    len: usize,
}

impl Default for MessageBuffer {
    fn default() -> Self {
        Self { bytes: [0; 256], len: 0 }
    }
}

impl Write for MessageBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}
