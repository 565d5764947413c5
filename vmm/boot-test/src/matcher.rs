//! Searches console lines for the expected patterns, in order, and for forbidden ones.

use std::time::{Duration, Instant};

use super::test::{Expected, Test};

/// Longest part of a line in a message, in characters.
const MAX_SHOWN: usize = 200;

/// The state of a test's patterns.
pub struct Matcher<'a> {
    test: &'a Test,
    /// The number of expected patterns that were seen.
    seen: usize,
    /// When the last of these was seen, or the start.
    since: Instant,
    /// Why the test has failed, if it has.
    pub failure: Option<String>,
}

/// The offset in an unfinished line, in bytes, behind which further patterns are searched for.
#[derive(Default)]
pub struct Position(usize);

impl<'a> Matcher<'a> {
    pub fn new(test: &'a Test, now: Instant) -> Self {
        Self { test, seen: 0, since: now, failure: None }
    }

    /// Searches a whole line, whose start may have been searched while it was unfinished.
    pub fn line(&mut self, line: &str, position: &mut Position, now: Instant) {
        self.unfinished(line, position, now);
        *position = Position::default();
    }

    /// Searches an unfinished line.
    pub fn unfinished(&mut self, line: &str, position: &mut Position, now: Instant) {
        if self.failure.is_some() {
            return;
        }
        if let Some(pattern) = self.test.fail_on.iter().find(|pattern| pattern.is_match(line)) {
            let line = line.chars().take(MAX_SHOWN).collect::<String>();
            self.failure = Some(format!("the console shows '{}': {}", pattern, line.trim()));
            return;
        }
        while let Some(expected) = self.missing() {
            // An incomplete character at the end of an unfinished line may get another length later.
            let mut start = position.0.min(line.len());
            while !line.is_char_boundary(start) {
                start += 1;
            }
            let Some(found) = expected.pattern.find_at(line, start) else { return };
            position.0 = found.end();
            self.seen += 1;
            self.since = now;
        }
    }

    /// The next expected pattern.
    fn missing(&self) -> Option<&'a Expected> {
        self.test.expect.get(self.seen)
    }

    /// Whether all expected patterns were seen.
    pub fn all_seen(&self) -> bool {
        self.missing().is_none()
    }

    /// When the next pattern is overdue.
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = self.missing()?.timeout?;
        self.since.checked_add(timeout).filter(|_| self.failure.is_none())
    }

    /// Fails if a pattern is overdue.
    pub fn check(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            let timeout = self.missing().and_then(|expected| expected.timeout).map(shown);
            self.failure = self.not_seen(&format!("within {}", timeout.unwrap_or_default()));
        }
    }

    /// `'PATTERN' was not seen WHEN`, if one is missing.
    pub fn not_seen(&self, when: &str) -> Option<String> {
        let pattern = &self.missing()?.pattern;
        let before = self.seen.checked_sub(1).and_then(|last| self.test.expect.get(last));
        let after = before.map(|last| format!(" (after '{}')", last.pattern));
        Some(format!("'{pattern}' was not seen {when}{}", after.unwrap_or_default()))
    }
}

/// A duration as specs write it.
pub fn shown(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
