//! tinyvmm's own messages: to stderr, a line each.

use std::fmt::Display;
use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Libraries log what a guest does wrong; a guest must not fill the host's logs.
        let ours =
            metadata.target().starts_with("tinyvmm") || log::max_level() >= LevelFilter::Debug;
        ours && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            tell(format_args!("{level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Tells the user `message`, in a line on stderr. Where nobody reads it, it is lost: a message
/// is never worth a machine that cannot be stopped.
pub fn tell(message: impl Display) {
    let mut stderr = std::io::stderr();
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let writable = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&patience));
    if writable.is_ok_and(|ready| ready > 0) {
        let _ = stderr.write(format!("tinyvmm: {message}\n").as_bytes());
    }
}

/// Shows messages up to `level` from now on.
pub fn init(level: LevelFilter) {
    // Fails only when called twice, which changes nothing.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
