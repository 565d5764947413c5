//! What a test's patterns see in console lines.

use std::time::{Duration, Instant};

use super::super::lines::LineSplitter;
use super::super::matcher::{Matcher, Position};
use super::test_of;

/// Why a test with `keys` fails, or `None`, and whether all was seen, when `parts` are printed one after
/// the other, with a look at the unfinished line after each.
fn shown(keys: &str, parts: &[&str]) -> (Option<String>, bool) {
    let test = test_of(keys);
    let now = Instant::now();
    let mut matcher = Matcher::new(&test, now);
    let (mut lines, mut position) = (LineSplitter::new().unwrap(), Position::default());
    for part in parts {
        lines.push(part.as_bytes(), |line| matcher.line(line, &mut position, now));
        if let Some(line) = lines.unfinished() {
            matcher.unfinished(&line, &mut position, now);
        }
    }
    (matcher.failure.clone(), matcher.all_seen())
}

#[test]
fn patterns_come_in_order_and_may_share_a_line() {
    let keys = "expect = ['Linux', 'version [0-9]+', 'init']";
    for (parts, all) in [
        (&["Linux version 6\n", "init\n"][..], true),
        (&["Linux version 6 init"], true),
        (&["Lin", "ux ver", "sion 6\nin", "it"], true),
        (&["version 6 Linux\n", "init\n"], false),
        (&["Linux\n", "init\n", "version 6\n"], false),
        (&["Lin\n", "ux version 6\ninit\n"], false),
    ] {
        assert_eq!(shown(keys, parts), (None, all), "{parts:?}");
    }
}

#[test]
fn what_was_seen_unfinished_is_not_seen_again() {
    let keys = "expect = ['a', 'a']";
    assert_eq!(shown(keys, &["a", "b", "\n"]), (None, false));
    assert_eq!(shown(keys, &["a", "ba", "\n"]), (None, true));
    assert_eq!(shown(keys, &["a", "\na"]), (None, true));
}

#[test]
fn a_character_that_comes_in_two_does_not_matter() {
    let test = test_of("expect = ['x.', 'y']");
    let now = Instant::now();
    let mut matcher = Matcher::new(&test, now);
    let (mut lines, mut position) = (LineSplitter::new().unwrap(), Position::default());
    for byte in "xüüy\n".bytes() {
        lines.push(&[byte], |line| matcher.line(line, &mut position, now));
        if let Some(line) = lines.unfinished() {
            matcher.unfinished(&line, &mut position, now);
        }
    }
    assert!(matcher.all_seen());
}

#[test]
fn a_failure_wins_and_stays() {
    let (failure, all) = shown("expect = 'up'", &["up BUG: up\n", "up\n"]);
    assert_eq!(failure.unwrap(), r"the console shows '\bBUG:': up BUG: up");
    assert!(!all);
    let (failure, _) = shown("fail-on = 'x'", &[&"x".repeat(4000), "\n"]);
    assert!(failure.unwrap().len() < 300, "a long line is not shown whole");
    for harmless in ["DEBUG: x", "Oopsie", "kernel panic", "WARNING: x"] {
        assert_eq!(shown("", &[harmless, "\n"]).0, None, "{harmless}");
    }
    let warns = |line| shown("fail-on-warning = true", &[line, "\n"]).0.is_some();
    assert!(warns("WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2"));
    assert!(warns("[    2.862730] WARNING: possible recursive locking detected"));
    assert!(warns("[    2.862730][    T1] WARNING: CPU: 0"));
    assert!(!warns("[    2.862730] Speculative Return Stack Overflow: WARNING: See https://"));
    assert!(shown("end = 'panic'", &["Kernel panic - not syncing\n"]).0.is_none());
}

#[test]
fn a_patterns_time_starts_with_the_pattern_before_it() {
    let test = test_of("expect = ['a', { pattern = 'b', timeout = '10s' }, 'c']");
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut matcher = Matcher::new(&test, start);
    assert_eq!(matcher.deadline(), None);
    matcher.line("a", &mut Position::default(), after(100));
    assert_eq!(matcher.deadline(), Some(after(110)));
    matcher.check(after(109));
    assert_eq!(matcher.failure.as_deref(), None);
    matcher.check(after(110));
    assert_eq!(matcher.failure.as_deref(), Some("'b' was not seen within 10s (after 'a')"));
    assert_eq!(matcher.deadline(), None);
}
