//! tinyvmm's own messages: to stderr, a line each; on request also in Firecracker's format.

use std::fmt::{self, Display};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use tinyvmm::sync::lock;

struct Messages;

/// A destination for messages in the format of Firecracker's log.
struct FirecrackerLog {
    /// Writes to the file do not block. `None`: standard output.
    file: Option<File>,
    show_level: bool,
    /// FirecrackerLog have their place in the source.
    show_origin: bool,
    /// The machine's name.
    id: String,
}

static LINES: Mutex<Option<FirecrackerLog>> = Mutex::new(None);
/// Messages go to the [`FirecrackerLog`] only.
static ALONE: AtomicBool = AtomicBool::new(false);

/// From now on messages go to standard output, in Firecracker's format, and not to stderr.
pub fn write_as_firecracker(id: &str, show_level: bool, show_origin: bool) {
    *lock(&LINES) = Some(FirecrackerLog { file: None, show_level, show_origin, id: id.to_owned() });
    ALONE.store(true, Ordering::Relaxed);
}

/// Whether the process goes by Firecracker's name.
pub fn is_firecracker() -> bool {
    ALONE.load(Ordering::Relaxed)
}

/// Logs `message`, in Firecracker's own words, if the process goes by its name.
pub fn log_as_firecracker(level: Level, message: fmt::Arguments) {
    if is_firecracker() {
        log::log!(level, "{message}");
    }
}

/// What an error is about: `ours`, after Firecracker's own `words` if the process goes by its name.
pub fn worded(words: &str, ours: String) -> String {
    if is_firecracker() { format!("{words}: {ours}") } else { ours }
}

/// From now on messages of the machine `id` go to `file` as well, or to the present one if it is `None`; other options
/// that are `None` do not change.
pub fn also_to(file: Option<File>, show_level: Option<bool>, show_origin: Option<bool>, id: &str) {
    let mut lines = lock(&LINES);
    if file.is_none() && lines.is_none() {
        return;
    }
    let old = lines.take();
    let (level, origin) = old.as_ref().map_or((false, false), |o| (o.show_level, o.show_origin));
    *lines = Some(FirecrackerLog {
        file: file.or(old.and_then(|old| old.file)),
        show_level: show_level.unwrap_or(level),
        show_origin: show_origin.unwrap_or(origin),
        id: id.to_owned(),
    });
}

impl FirecrackerLog {
    fn write(&self, record: &Record) {
        // Firecracker's time stamp has no zone either, but is in local time.
        let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("-");
        let mut line = format!("{} [{}:{name}", now.trim_end_matches('Z'), self.id);
        if self.show_level {
            line += &format!(":{}", record.level());
        }
        if let (true, Some(file)) = (self.show_origin, record.file()) {
            line += &format!(":{file}:{}", record.line().unwrap_or_default());
        }
        line += &format!("] {}\n", record.args());
        match &self.file {
            // Without a reader the line is lost.
            Some(file) => drop(rustix::io::write(file, line.as_bytes())),
            None => write_in_time(&std::io::stdout(), line.as_bytes()),
        }
    }
}

impl Log for Messages {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Libraries log what a guest does wrong; a guest must not fill the host's logs.
        let ours =
            metadata.target().starts_with("tinyvmm") || log::max_level() >= LevelFilter::Debug;
        ours && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if let Some(lines) = &*lock(&LINES) {
            lines.write(record);
        }
        if !ALONE.load(Ordering::Relaxed) {
            let level = record.level().as_str().to_ascii_lowercase();
            print_message(format_args!("{level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Prints `message` for the user, in a line on stderr. Without a reader the line is lost: no message is worth a machine
/// that cannot be stopped.
pub fn print_message(message: impl Display) {
    write_in_time(&std::io::stderr(), format!("tinyvmm: {message}\n").as_bytes());
}

/// Writes `line` if that takes at most a moment.
fn write_in_time(file: &impl AsFd, line: &[u8]) {
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let writable = poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&patience));
    if writable.is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::write(file, line);
    }
}

/// Prints messages up to `level` from now on.
pub fn init(level: LevelFilter) {
    // Fails only when called twice, which changes nothing.
    let _ = log::set_logger(&Messages);
    log::set_max_level(level);
}

/// Parses the name of a level, in any case, as Firecracker has them.
pub fn level(name: &str) -> Result<LevelFilter> {
    let found = if name.eq_ignore_ascii_case("warning") { "warn" } else { name }.parse();
    found
        .ok()
        .with_context(|| format!("level {name}: say Error, Warning, Info, Debug, Trace or Off"))
}
