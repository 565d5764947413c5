//! Splits a guest's output into lines of bounded length, without escape sequences and control characters.

use std::collections::VecDeque;

use anyhow::Result;
use regex_lite::Regex;

/// Longest line, in bytes: a longer one is split.
const MAX_LINE: usize = 4096;
/// Control characters but tabs, and escape sequences (ECMA-48, 5.3 and 5.4), which end with the line at the latest:
/// with parameters, as a colour; with a text, as a title; others.
const UNSEEN: &str = r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b]*\x07?|[ -/]*[0-~]?)|[\x00-\x08\x0a-\x1f\x7f-\u{9f}]";
/// How many of the last lines are kept, and how many characters of each.
const MAX_LAST_LINES: usize = 40;
const MAX_LAST_LINE: usize = 400;

/// Splits console output into lines.
pub struct LineSplitter {
    line: Vec<u8>,
    unseen: Regex,
}

impl LineSplitter {
    pub fn new() -> Result<Self> {
        Ok(Self { line: Vec::new(), unseen: Regex::new(UNSEEN)? })
    }

    /// Calls `each` with every line that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= MAX_LINE {
                each(&self.seen());
                self.line.clear();
            }
        }
    }

    /// The printable part of an unfinished line, e.g. a prompt; `None` if that is empty.
    pub fn unfinished(&self) -> Option<String> {
        Some(self.seen()).filter(|line| !line.is_empty())
    }

    fn seen(&self) -> String {
        self.unseen.replace_all(&String::from_utf8_lossy(&self.line), "").into_owned()
    }
}

/// The last lines of a console, for reports that cannot have all of it.
#[derive(Default)]
pub struct LastLines(VecDeque<String>);

impl LastLines {
    /// Adds a line, and drops the first if there are too many.
    pub fn push(&mut self, line: &str) {
        if self.0.len() == MAX_LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.chars().take(MAX_LAST_LINE).collect());
    }

    /// The lines that are kept.
    pub fn into_lines(self) -> Vec<String> {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(parts: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let mut lines = LineSplitter::new().unwrap();
        let mut all = Vec::new();
        for part in parts {
            lines.push(part, |line| all.push(line.to_owned()));
        }
        (all, lines.unfinished())
    }

    #[test]
    fn lines_are_put_together_from_parts() {
        let (all, rest) = lines(&[b"on", b"e\r\ntwo\n\nlog", b"in: "]);
        assert_eq!(all, ["one", "two", ""]);
        assert_eq!(rest.as_deref(), Some("login: "));
        assert_eq!(lines(&[b"x\r\n"]).1, None);
    }

    #[test]
    fn escape_sequences_are_left_out() {
        for (text, shown) in [
            ("\x1b[1;32mgreen\x1b[0m!", "green!"),
            ("\x1b]0;a title\x07text", "text"),
            ("\x1b]0;a title\x1b\\text", "text"),
            ("\x1b(Bplain\x1b=\x1b7", "plain"),
            ("a\tb\x00\x08\x7fc", "a\tbc"),
            ("ümlaut", "ümlaut"),
            ("\x1b]never closed", ""),
            ("\x1b[\x1b[31mtwice", "twice"),
            ("a\u{9b}2Jb\x1b", "a2Jb"),
        ] {
            let (all, _) = lines(&[text.as_bytes(), b"\nnext\n"]);
            assert_eq!(all, [shown, "next"], "{text:?}");
        }
        assert_eq!(lines(&[b"\x1b", b"[3", b"1mx\n"]).0, ["x"], "cut anywhere");
    }

    proptest! {
        #[test]
        fn whatever_is_printed_lines_are_short_and_clean(parts: Vec<Vec<u8>>, long in 0..3 * MAX_LINE) {
            let flood = vec![b'x'; long];
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).chain([&*flood]).collect();
            let (all, rest) = lines(&parts);
            for line in all.iter().chain(&rest) {
                // A byte that is no UTF-8 becomes a character of three.
                prop_assert!(line.len() <= 3 * MAX_LINE);
                prop_assert!(!line.contains(|c: char| c.is_ascii_control() && c != '\t'));
            }
        }
    }
}
