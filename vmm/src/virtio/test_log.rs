//! What this crate has logged for the host's user to see, in the process of the tests.

use std::sync::{Mutex, Once};

use log::{LevelFilter, Log, Metadata, Record};

use crate::sync::lock;

struct Lines;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target().starts_with("tinyvmm")
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            lock(&LINES).push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Keeps what is logged from now on.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Lines).unwrap();
        log::set_max_level(LevelFilter::Warn);
    });
}

/// How many lines with `text` were logged.
pub fn count(text: &str) -> usize {
    lock(&LINES).iter().filter(|line| line.contains(text)).count()
}
