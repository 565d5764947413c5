//! `tinyvmm ... -- COMMAND`: a machine as a step of a script.

use std::process::Stdio;

use serde_json::Value;

use super::{CLOUD_ELF, Console};
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
    let outcome =
        vmm(&["sh", "-c", script, "sh", "it's \"a b\" \\ $HOME"]).run().exits(7).silently();
    assert_eq!(printed(&outcome), "it's \"a b\" \\ $HOME\nto stderr\n3000\n");
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
    let outcome = vmm(&["no-such-command"]).run().exits(127).silently();
    assert!(printed(&outcome).contains("no-such-command: not found"), "{}", printed(&outcome));
    vmm(&["sh", "-c", "kill -KILL $$"]).run().exits(137).silently();
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
