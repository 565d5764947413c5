//! `tinyvmm ... -- COMMAND`: a machine as a step of a script.

use std::fs::File;
use std::process::Stdio;

use serde_json::Value;

use super::{CLOUD_ELF, Console, Kernel, SMALL_ELF};
use crate::fixture::{Outcome, Vmm};
use crate::terminal::Terminal;

/// Runs `words` in a guest.
fn vmm(words: &[&str]) -> Vmm {
    with_flags(&[], words)
}

fn with_flags(flags: &[&str], words: &[&str]) -> Vmm {
    CLOUD_ELF.with_cmdline("").args(flags).args(["--"]).args(words)
}

fn printed(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_a_command_prints_is_all_that_is_printed() {
    let script = "echo $1; echo 'to stderr' >&2; seq 3000 | tail -n 1; exit 7";
    for kernel in [CLOUD_ELF, SMALL_ELF] {
        // All that the kernel says, and more, is on its console.
        let vmm = kernel.with_cmdline("loglevel=8 FROM=cmdline").args(["--", "sh", "-c", script]);
        let outcome = vmm.args(["sh", "it's \"a b\" \\ $HOME"]).run().exits(7);
        assert_eq!(printed(&outcome), "it's \"a b\" \\ $HOME\n3000\n");
        assert_eq!(outcome.stderr, "to stderr\n");
    }
    let script =
        "echo $FROM $HOME $PWD; test -t 0 || echo no terminal; echo >/dev/kmsg '<0>urgent'";
    let outcome = CLOUD_ELF.with_cmdline("FROM=cmdline").args(["--", "sh", "-c", script]).run();
    let home = ["/ro", "ot"].concat();
    assert_eq!(printed(&outcome.silently()), format!("cmdline {home} {home}\nno terminal\n"));
}

/// A guest whose kernel has no driver for vsock.
fn without_vsock(kernel: Kernel, words: &[&str]) -> Vmm {
    kernel.with_cmdline("initcall_blacklist=virtio_vsock_init").args(["--"]).args(words)
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_without_vsock_runs_it_on_its_console() {
    for kernel in [CLOUD_ELF, SMALL_ELF] {
        let script = "echo out; echo err >&2; read line; echo got $line; cat; exit 7";
        let vmm = without_vsock(kernel, &["sh", "-c", script]).stdin(Stdio::piped());
        let running = vmm.start().prints("out\nerr\n").types("a line\nanother\n").ends_input();
        let outcome = running.wait().exits(7).silently();
        assert_eq!(printed(&outcome), "out\nerr\ngot a line\nanother\n");
    }
    let terminal = Terminal::new();
    terminal.resize(50, 132);
    let running = terminal.start(without_vsock(SMALL_ELF, &["sh", "-c", "stty size; sleep 1000"]));
    terminal.shows("50 132\r").types("\x03");
    running.wait().exits(130);
}

/// `data` in LZ4's legacy frame, as distributions' initrds are: nothing in it says where it ends. Each block is one run of
/// literals (lz4's doc/lz4_Block_format.md and lz4_Frame_format.md).
fn lz4_legacy(data: &[u8]) -> Vec<u8> {
    let mut frame = 0x184c_2102u32.to_le_bytes().to_vec();
    for chunk in data.chunks(8 << 20) {
        let more = chunk.len() - 15;
        let mut block = vec![0xf0];
        block.resize(1 + more / 255, 0xff);
        block.push((more % 255) as u8);
        block.extend(chunk);
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(block);
    }
    frame
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_command_runs_with_an_initrd_that_does_not_say_where_it_ends() {
    let plain = lz4_legacy(&std::fs::read(CLOUD_ELF.initrd()).unwrap());
    let padded = [&plain, [0; 6].as_slice()].concat();
    for initrd in [plain, padded] {
        let vmm = CLOUD_ELF.bare("").file("initrd.lz4", initrd);
        let vmm = vmm.args(["--initrd", "initrd.lz4", "--", "echo", "it runs"]);
        assert_eq!(printed(&vmm.run().exits(0).silently()), "it runs\n");
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn exit_statuses_are_passed_through() {
    vmm(&["true"]).run().exits(0).silently();
    vmm(&["false"]).run().exits(1).silently();
    let outcome = vmm(&["no-such-command"]).run().exits(127);
    assert!(outcome.stderr.contains("no-such-command: not found"), "{}", outcome.stderr);
    assert_eq!(printed(&outcome), "");
    vmm(&["sh", "-c", "kill -KILL $$"]).run().exits(137).silently();
    vmm(&["sh", "-c", "exit 255"]).run().exits(255).silently();
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_machine_that_ends_without_a_status_is_reported() {
    vmm(&["poweroff", "-f"]).run().exits(125).says(&["the guest powered off"]);
    let outcome = vmm(&["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 9"]).run();
    let outcome = outcome.exits(125).says(&["kernel panic in the guest"]);
    assert_eq!(Console::of(&outcome).count("Kernel panic - not syncing: sysrq"), 1, "last words");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_command_at_a_terminal_has_its_size_and_kind() {
    let terminal = Terminal::new();
    terminal.resize(50, 132);
    let vmm = vmm(&["sh", "-c", "stty size; echo $TERM"]).env("TERM", "xterm-256color");
    let running = terminal.start(vmm);
    running.wait().exits(0);
    terminal.shows("50 132\r").shows("\nxterm-256color\r");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn keys_signals_and_the_size_of_a_terminal_are_the_commands() {
    let terminal = Terminal::new();
    let script = "trap 'stty size' WINCH; echo ready; read line; echo \"got $line.\"; while :; do sleep 0.1; done";
    let running = terminal.start(vmm(&["sh", "-c", script]));
    terminal.shows("ready\r\n").types("some keys\n").shows("got some keys.\r\n");
    terminal.resize(20, 70);
    running.signal(libc::SIGWINCH); // which only its own terminal would send
    terminal.shows("20 70\r\n").types("\x03");
    running.wait().exits(130);
    // Ctrl-A x is ours.
    let terminal = Terminal::new();
    let running = terminal.start(vmm(&["sh", "-c", "echo ready; cat"]));
    terminal.shows("ready\r\n").types("\x01x");
    running.wait().exits(125);
    // A signal of another process.
    let running = vmm(&["sh", "-c", "echo ready; exec sleep 1000"]).start().prints("ready");
    running.signal(libc::SIGTERM);
    running.wait().exits(143).silently();
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn input_and_output_are_bytes_to_their_end() {
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at * 7 + at / 251) as u8).collect();
    for kernel in [CLOUD_ELF, SMALL_ELF] {
        let command = |words: &[&str]| kernel.with_cmdline("").args(["--"]).args(words);
        let vmm = command(&["cat"]).file("in", &bytes);
        let input = File::open(vmm.dir().path("in")).unwrap();
        let outcome = vmm.stdin(input).run().exits(0).silently();
        assert!(outcome.stdout == bytes, "{} bytes come back", outcome.stdout.len());
        // Some of it is enough.
        let vmm = command(&["head", "-c", "5"]).file("in", &bytes);
        let input = File::open(vmm.dir().path("in")).unwrap();
        assert_eq!(vmm.stdin(input).run().exits(0).silently().stdout, &bytes[..5]);
        // So it is for who reads here.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let running = command(&["yes"]).stdout(writer).start();
        std::io::Read::read_exact(&mut reader, &mut [0; 10]).unwrap();
        drop(reader);
        running.wait().exits(141).silently();
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_it_has_written_to_a_disk_is_there() {
    let vmm = SMALL_ELF.with_cmdline("").sparse_file("disk", 1 << 20);
    let script = "head -c 300000 /dev/zero | tr '\\0' x >/dev/vda";
    let outcome = vmm.args(["--disk", "disk", "--", "sh", "-c", script]).run().exits(0).silently();
    let written = outcome.file("disk");
    assert!(written.bytes().take(300_000).all(|byte| byte == b'x'));
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn input_reaches_the_command_whole_and_ends() {
    passes_through(&[]);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_serial_port_in_memory_does_all_that_one_at_ports_does() {
    passes_through(&["--uart=memory"]);
}

#[track_caller]
fn passes_through(flags: &[&str]) {
    let lines: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    let vmm = with_flags(flags, &["sh", "-c", "cat; echo end"]).stdin(Stdio::piped());
    let outcome = vmm.start().types(&lines).ends_input().wait().exits(0).silently();
    assert_eq!(printed(&outcome), lines + "end\n");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_boot_report_counts_exits_by_kind() {
    let outcome = with_flags(&["--boot-report=report.json", "--cpus=2"], &["true"]).run().exits(0);
    let report: Value = serde_json::from_str(&outcome.file("report.json")).unwrap();
    let exits = |of: &Value, kind: &str| of["exits"][kind].as_u64().unwrap();
    for kind in ["io", "halt", "page_fault"] {
        assert!(exits(&report, kind) > 0, "{kind}: {report}");
        assert!(exits(&report, "total") > exits(&report, kind), "{kind}: {report}");
    }
    let marks = report["marks"].as_array().unwrap();
    let init = marks.iter().find(|mark| mark["name"] == "init-mark").expect("init marks");
    assert!(exits(init, "total") < exits(&report, "total"), "{report}");
    // All but the guest's memory: a fraction of it.
    let memory = |name: &str| report["memory_kib"][name].as_u64().unwrap();
    assert!(memory("vmm") < 8 << 10 && memory("guest") > 32 << 10, "{report}");
}
