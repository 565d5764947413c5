//! `tinyvmm boot-test`, with guests of a few instructions.

mod outcomes;
mod parallel;
mod results;
mod specs;

use crate::fixture::{Dir, Outcome, Vmm};
use crate::guests;
use tinyvmm::layout;

/// The end of a guest that has printed its text.
#[derive(Clone, Copy)]
enum Then {
    PowerOff,
    Reset,
    Sleep,
}

/// A kernel that prints `text` and then ends as `then` says.
fn printing(text: &str, then: Then) -> Vec<u8> {
    let out = |port: u64, value: u8| {
        let port = u32::try_from(port).unwrap().to_le_bytes();
        [&[0xba], &port[..], &[0xb0, value, 0xee]].concat() // mov edx; mov al; out
    };
    let end = match then {
        Then::PowerOff => out(layout::POWER_PORTS.start, 0x34),
        Then::Reset => out(layout::POWER_PORTS.start + 2, 1),
        Then::Sleep => vec![],
    };
    let end = [&end[..], &[0xf4, 0xeb, 0xfd]].concat(); // hlt, for ever
    let len = u32::try_from(text.len()).unwrap();
    let com1 = u32::try_from(layout::SERIAL_PORTS.start).unwrap();
    // From the end of lea to the text, over mov ecx, mov edx and rep outsb.
    let distance = u32::try_from(5 + 5 + 2 + end.len()).unwrap();
    let code = [
        &[0x48, 0x8d, 0x35][..],
        &distance.to_le_bytes(),
        &[0xb9],
        &len.to_le_bytes(),
        &[0xba],
        &com1.to_le_bytes(),
        &[0xf3, 0x6e],
        &end,
        text.as_bytes(),
    ];
    guests::elf(&code.concat())
}

/// A runner with this spec, and kernels: `hello` and `again` print and power off, `idle` and `prompt` print and sleep,
/// `bug` and `warning` print what Linux does, `reset`, `panic`, `triple` and `status` end otherwise; `status` also
/// writes init's mark.
fn boot_test(spec: &str) -> Vmm {
    let hello = printing("Linux 6.1\r\n\x1b[32mup\x1b[0m and running\r\nbye\r\n", Then::PowerOff);
    let bug = "up\nBUG: kernel NULL pointer dereference\nCall Trace:\n";
    Vmm::new()
        .args(["boot-test", "spec.toml"])
        .file("spec.toml", spec)
        .file("hello", hello)
        .file("again", printing("DEBUG: all is well\n", Then::PowerOff))
        .file("idle", printing("up\n", Then::Sleep))
        .file("prompt", printing("up\nlogin: ", Then::Sleep))
        .file("bug", printing(bug, Then::Sleep))
        .file("warning", printing("WARNING: CPU: 0\n", Then::PowerOff))
        .file("reset", printing("resetting\n", Then::Reset))
        .file("panic", printing("Kernel panic - not syncing: test\n", Then::Reset))
        .file("status", guests::elf(&guests::marks_and_exits_with_42()))
        .file("flood", guests::elf(&guests::flood()))
        .file("triple", guests::elf(&guests::triple_fault()))
}

/// A spec of one machine called `m`, of little memory.
fn one(keys: &str) -> String {
    format!("[defaults]\nmem = '32M'\n[[machine]]\nname = 'm'\n{keys}\n")
}

/// Standard error has a line for each machine that has ended, and no more.
#[track_caller]
fn reports(outcome: Outcome) -> Outcome {
    let number = |line: &str| Some(line.strip_prefix("tinyvmm: [")?.split_once('/')?.0.parse());
    for (index, line) in outcome.stderr.lines().enumerate() {
        assert_eq!(number(line), Some(Ok(index + 1)), "stderr: {}", outcome.stderr);
    }
    assert!(!outcome.stderr.is_empty(), "no line for a machine that has ended");
    outcome
}

/// All tests pass, and nothing is left.
#[track_caller]
fn passes(spec: &str) -> Outcome {
    reports(boot_test(spec).run().exits(0)).leaves_nothing()
}

/// A test fails, for a reason that has all of `words`.
#[track_caller]
fn fails(spec: &str, words: &[&str]) -> Outcome {
    let mut outcome = reports(boot_test(spec).run().exits(1));
    for word in words {
        outcome = outcome.prints(word);
    }
    outcome
}

/// The line of the table that ends with `name`.
#[track_caller]
fn row(outcome: &Outcome, name: &str) -> String {
    let stdout = String::from_utf8_lossy(&outcome.stdout);
    let found = stdout.lines().find(|line| line.ends_with(&format!("  {name}")));
    found.unwrap_or_else(|| panic!("no line for {name}: {stdout}")).to_owned()
}

/// Kept logs, by name.
fn logs(dir: &Dir) -> Vec<String> {
    let folder = std::fs::read_dir(dir.path("boot-test-logs")).into_iter().flatten();
    let mut names: Vec<_> =
        folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
