//! What a guest prints, as lines to look at: without escape sequences and control characters, and
//! never long, whatever the guest does.

/// Longest line, in bytes: a longer one is looked at in parts.
pub(super) const MAX_LINE: usize = 4096;

/// Takes console output apart.
#[derive(Default)]
pub(super) struct LineSplitter {
    line: Vec<u8>,
    escape: Escape,
}

/// Where in an escape sequence the output is (ECMA-48, 5.3 and 5.4).
#[derive(Clone, Copy, Default, PartialEq)]
enum Escape {
    /// Nowhere.
    #[default]
    Text,
    /// After ESC.
    Start,
    /// In parameters, until a byte from `@` on: a colour, a place on the screen.
    Control,
    /// In a text for the terminal, until BEL or ESC: a title.
    String,
}

impl LineSplitter {
    /// Calls `each` with every line that `bytes` complete.
    pub(super) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for byte in bytes {
            let text = self.keep(*byte);
            if text {
                self.line.push(*byte);
            }
            if *byte == b'\n' || self.line.len() >= MAX_LINE {
                each(&String::from_utf8_lossy(&self.line));
                self.line.clear();
            }
        }
    }

    /// What is printed of a line that goes on, e.g. a prompt; `None` if that is nothing.
    pub(super) fn unfinished(&self) -> Option<String> {
        (!self.line.is_empty()).then(|| String::from_utf8_lossy(&self.line).into_owned())
    }

    /// Whether `byte` is text; steps over escape sequences.
    fn keep(&mut self, byte: u8) -> bool {
        // However broken a sequence is, it ends with the line.
        if byte == b'\n' {
            self.escape = Escape::Text;
            return false;
        }
        let (next, text) = match (self.escape, byte) {
            (_, 0x1b) => (Escape::Start, false),
            (Escape::Text, b'\t') => (Escape::Text, true),
            (Escape::Text, _) => (Escape::Text, byte >= 0x20 && byte != 0x7f),
            (Escape::Start, b'[') => (Escape::Control, false),
            (Escape::Start, b']' | b'P' | b'X' | b'^' | b'_') => (Escape::String, false),
            // Intermediate bytes, as in ESC ( B.
            (Escape::Start, 0x20..0x30) => (Escape::Start, false),
            (Escape::Start, _) => (Escape::Text, false),
            (Escape::Control, 0x40..) => (Escape::Text, false),
            (Escape::Control, _) => (Escape::Control, false),
            (Escape::String, 0x07) => (Escape::Text, false),
            (Escape::String, _) => (Escape::String, false),
        };
        self.escape = next;
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(parts: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let mut lines = LineSplitter::default();
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
