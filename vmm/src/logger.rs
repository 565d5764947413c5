//! tinyvmm's own messages: to stderr, a line each.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

struct Stderr;

/// A file that messages go to besides stderr, in lines like those of Firecracker's logs.
pub struct LogFile {
    /// Where to; writes to it do not wait.
    pub file: File,
    /// Lines tell the message's level.
    pub show_level: bool,
    /// Lines tell the place in the source.
    pub show_origin: bool,
    /// The machine's name.
    pub id: String,
}

static LOG_FILE: OnceLock<LogFile> = OnceLock::new();

/// From now on messages go to `file`, too. False if they go to one already.
pub fn also_to(file: LogFile) -> bool {
    LOG_FILE.set(file).is_ok()
}

impl LogFile {
    fn write(&self, record: &Record) {
        let now = humantime::format_rfc3339_nanos(SystemTime::now());
        let thread = std::thread::current();
        let mut line = format!("{now} [{}:{}", self.id, thread.name().unwrap_or_default());
        if self.show_level {
            line += &format!(":{}", record.level());
        }
        if let (true, Some(file)) = (self.show_origin, record.file()) {
            line += &format!(":{file}:{}", record.line().unwrap_or_default());
        }
        // Where nobody reads it, it is lost.
        let _ = (&self.file).write(format!("{line}] {}\n", record.args()).as_bytes());
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Libraries log what a guest does wrong; a guest must not fill the host's logs.
        let ours =
            metadata.target().starts_with("tinyvmm") || log::max_level() >= LevelFilter::Debug;
        ours && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            if let Some(file) = LOG_FILE.get() {
                file.write(record);
            }
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
