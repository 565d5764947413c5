//! The last lines of a console, for reports that cannot hold all of it.

use std::collections::VecDeque;

/// Lines that are kept, and characters of each.
const MAX_LINES: usize = 40;
const MAX_LINE: usize = 400;

/// The lines that came last.
#[derive(Default)]
pub(super) struct LastLines(VecDeque<String>);

impl LastLines {
    /// Adds a line, and drops the first if there are too many. Control characters that [`super::lines`] leaves
    /// (U+009B begins an escape sequence) become spaces.
    pub(super) fn push(&mut self, line: &str) {
        if self.0.len() == MAX_LINES {
            self.0.pop_front();
        }
        let line = line.chars().take(MAX_LINE);
        self.0.push_back(line.map(|c| if c.is_control() { ' ' } else { c }).collect());
    }

    /// All that are kept.
    pub(super) fn into_lines(self) -> Vec<String> {
        self.0.into()
    }
}
