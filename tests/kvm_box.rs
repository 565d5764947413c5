//! The KVM box: a command in it has the caller's terminal, pipes and exit status.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::fixture::Vmm;
use crate::terminal::Terminal;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/kvm-box");

/// Runs `script` in the box, on the terminal where it is started.
fn boxed(script: &str) -> Vmm {
    let command = ["setsid", "--ctty", SCRIPT, "--box", "--", "bash", "-c", script];
    // A box takes its time to start.
    Vmm::started_by(&command).patiently(Duration::from_secs(120))
}

/// Keys, Ctrl-C among them, and the size reach the command; the terminal is as it was afterwards.
#[test]
#[ignore = "starts the KVM box, so scripts/check runs it outside of that"]
fn a_terminal_is_the_command_s() {
    let script = "trap 'stty size; exit 7' WINCH; trap 'echo interrupted' INT; \
                  echo terms:$TERM; stty size; cat; while sleep 0.1; do :; done";
    let terminal = Terminal::new();
    terminal.resize(31, 101);
    let before = terminal.settings();
    let running = terminal.start(boxed(script).env("TERM", "odd"));
    terminal.shows("terms:odd\r\n").shows("31 101\r\n");
    assert!(terminal.is_raw(), "the keys are the box's");
    terminal.types("hello\r").shows("hello\r\nhello\r\n");
    terminal.types("\x03").shows("interrupted\r\n");
    terminal.resize(40, 120);
    terminal.shows("40 120\r\n");
    running.wait().exits(7);
    assert_eq!(terminal.settings(), before);
}

/// A signal ends the box; so does Ctrl-C while there is no command yet.
#[test]
#[ignore = "starts the KVM box, so scripts/check runs it outside of that"]
fn the_terminal_is_as_it_was_after_signals() {
    let terminal = Terminal::new();
    let before = terminal.settings();
    let running = terminal.start(boxed("echo here; cat"));
    terminal.shows("here\r\n");
    running.signal(libc::SIGTERM);
    running.wait().exits(143);
    assert_eq!(terminal.settings(), before);
}

/// All bytes pass both ways, and only those.
#[test]
#[ignore = "starts the KVM box, so scripts/check runs it outside of that"]
fn pipes_are_the_command_s() {
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut command = Command::new(Path::new(SCRIPT));
    command.args(["--box", "--", "sh", "-c", "! test -t 0 && echo here >&2 && cat && exit 9"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let typed = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&typed).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "here\n");
    assert!(output.stdout == bytes, "{} bytes of {}", output.stdout.len(), bytes.len());
}

/// A box that is frozen has a status of its own: a command that does not end is something else.
#[test]
#[ignore = "starts the KVM box, so scripts/check runs it outside of that"]
fn a_frozen_box_is_told_from_a_command_that_does_not_end() {
    let run = |script: &str| {
        let mut command = Command::new(SCRIPT);
        command.args(["--box", "--silence", "10", "--timeout", "60", "--", "sh", "-c", script]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // After some signs of life: stops all processes but the first one and this shell.
    let (status, said) = run("sleep 5; kill -s STOP -- -1; sleep 1000");
    assert!(status == Some(125) && said.contains("frozen for 10 s"), "{status:?}: {said}");
    let (status, said) = run("while :; do :; done");
    assert!(status == Some(124) && said.contains("see --timeout"), "{status:?}: {said}");
}
