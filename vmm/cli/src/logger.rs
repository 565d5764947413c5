//! tinyvmm's own messages: to stderr, a line each; and, if that is asked for, as Firecracker writes them.

use std::fmt::Display;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result};
use log::{LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use tinyvmm::sync::lock;

struct Messages;

/// A place that messages go to in lines like those of Firecracker's log.
struct Lines {
    /// Writes to it do not wait. `None`: standard output.
    file: Option<File>,
    show_level: bool,
    /// Lines tell the place in the source.
    show_origin: bool,
    /// The machine's name.
    id: String,
}

static LINES: Mutex<Option<Lines>> = Mutex::new(None);
/// Messages go there only.
static ALONE: AtomicBool = AtomicBool::new(false);

/// From now on messages go to standard output, as Firecracker's do, and not to stderr.
pub fn write_as_firecracker(id: &str, show_level: bool, show_origin: bool) {
    *lock(&LINES) = Some(Lines { file: None, show_level, show_origin, id: id.to_owned() });
    ALONE.store(true, Ordering::Relaxed);
}

/// From now on messages of the machine `id` go to `file`, too, or to where they went; what is `None` stays as it is.
pub fn also_to(file: Option<File>, show_level: Option<bool>, show_origin: Option<bool>, id: &str) {
    let mut lines = lock(&LINES);
    if file.is_none() && lines.is_none() {
        return;
    }
    let old = lines.take();
    let (level, origin) = old.as_ref().map_or((false, false), |o| (o.show_level, o.show_origin));
    *lines = Some(Lines {
        file: file.or(old.and_then(|old| old.file)),
        show_level: show_level.unwrap_or(level),
        show_origin: show_origin.unwrap_or(origin),
        id: id.to_owned(),
    });
}

impl Lines {
    fn write(&self, record: &Record) {
        // Firecracker's has no zone either, but is in the local one.
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
            // Where nobody reads it, it is lost.
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
            tell(format_args!("{level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Tells the user `message`, in a line on stderr. Where nobody reads it, it is lost: a message
/// is never worth a machine that cannot be stopped.
pub fn tell(message: impl Display) {
    write_in_time(&std::io::stderr(), format!("tinyvmm: {message}\n").as_bytes());
}

/// Writes `line` if that can be done soon.
fn write_in_time(file: &impl AsFd, line: &[u8]) {
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let writable = poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&patience));
    if writable.is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::write(file, line);
    }
}

/// Shows messages up to `level` from now on.
pub fn init(level: LevelFilter) {
    // Fails only when called twice, which changes nothing.
    let _ = log::set_logger(&Messages);
    log::set_max_level(level);
}

/// A level by its name, in any case, as Firecracker has them.
pub fn level(name: &str) -> Result<LevelFilter> {
    let found = if name.eq_ignore_ascii_case("warning") { "warn" } else { name }.parse();
    found
        .ok()
        .with_context(|| format!("level {name}: say Error, Warning, Info, Debug, Trace or Off"))
}
