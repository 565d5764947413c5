//! The last lines of a console, for reports that cannot hold all of it.

use std::collections::VecDeque;

/// Lines that are held, and bytes of each.
const MAX_LINES: usize = 40;
const MAX_LINE: usize = 400;

/// The lines that came last.
#[derive(Default)]
pub(super) struct Tail(VecDeque<String>);

impl Tail {
    /// Adds a line, and forgets one if there are too many.
    pub(super) fn push(&mut self, line: &str) {
        if self.0.len() == MAX_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.chars().take(MAX_LINE).collect());
    }

    /// All that are held.
    pub(super) fn into_lines(self) -> Vec<String> {
        self.0.into()
    }
}
