//! The messages that this crate has logged in the tests' process.

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

/// Keeps messages from now on.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Lines).unwrap();
        log::set_max_level(LevelFilter::Warn);
    });
}

/// The number of messages with `text`.
pub fn count(text: &str) -> usize {
    lock(&LINES).iter().filter(|line| line.contains(text)).count()
}
