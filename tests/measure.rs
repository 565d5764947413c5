//! What a guest reports of itself, and what tinyvmm reports of a boot.

use serde_json::Value;

use crate::fixture::Vmm;
use crate::guests::{self, guest};

#[test]
fn a_guest_ends_with_the_status_that_it_reports() {
    let vmm = Vmm::new().guest(guests::marks_and_exits_with_42);
    let outcome = vmm.run().exits(42).prints("marked");
    outcome.says(&["the guest ended with status 42"]).leaves_nothing();
}

#[test]
fn a_boot_report_has_each_step_in_order_with_exits_and_memory() {
    let vmm = Vmm::new().guest(guests::marks_and_exits_with_42);
    let outcome = vmm.args(["--boot-report=report.json"]).run().exits(42);
    let report: Value = serde_json::from_str(&outcome.file("report.json")).unwrap();
    assert_eq!((&report["schema"], &report["exit_code"]), (&1.into(), &42.into()));
    assert_eq!(report["end"], "exit");
    let marks = report["marks"].as_array().unwrap();
    let names = marks.iter().map(|mark| mark["name"].as_str().unwrap());
    // The kernel is loaded while the machine is made.
    let names: Vec<&str> = names.filter(|name| *name != "kernel-loaded").collect();
    let all = "start configured vm-created memory-ready cpu-entered first-output init-started \
               init-mark end";
    assert_eq!((names.join(" ").as_str(), marks.len()), (all, names.len() + 1));
    let ms = |mark: &Value| mark["ms"].as_f64().unwrap();
    assert!(marks.is_sorted_by_key(ms), "{marks:?}");
    assert!(ms(&marks[0]) == 0.0 && ms(&marks[1]) > 0.0, "{marks:?}");
    assert_eq!(report["exits"], marks.last().unwrap()["exits"]);
    let memory = |name: &str| report["memory_kib"][name].as_u64().unwrap();
    assert!(memory("guest") > 0 && memory("vmm") > 0);
    assert!(memory("peak") >= memory("vmm"));
}

#[test]
fn a_boot_report_is_a_table_for_people() {
    let vmm = Vmm::new().guest(guests::marks_and_exits_with_42);
    let outcome = vmm.args(["--boot-report"]).run().exits(42);
    for words in ["boot report: exit", "until", "init-mark", "memory in KiB: guest"] {
        assert!(outcome.stderr.contains(words), "'{words}' is not in: {}", outcome.stderr);
    }
}

#[test]
fn a_report_that_cannot_be_written_is_reported_with_its_name() {
    let vmm = Vmm::new().guest(guests::hello).args(["--boot-report=no/such/folder"]);
    vmm.run().refuses(3, &["boot report no/such/folder", "No such file"]);
}

/// The count of `access` in a table of exits.
fn count(table: &str, access: &str) -> Option<u32> {
    let mut rows = table.lines().filter_map(|line| line.trim().split_once("  "));
    rows.find(|(_, what)| *what == access).map(|(count, _)| count.parse().unwrap())
}

#[test]
fn traced_exits_are_counted_by_port() {
    let outcome = Vmm::new().guest(guests::marks_and_exits_with_42).args(["--trace-exits"]).run();
    let table = outcome.exits(42).stderr;
    assert_eq!(count(&table, "out   0x700"), Some(1), "{table}");
    assert_eq!(count(&table, "out   0x701"), Some(1), "{table}");
}

guest!(
    /// Reads a virtio device's first register and writes another, and ends with the byte that it read as its status.
    reads_and_writes_registers,
    "mov ebx, 0xd0000000",
    "mov ecx, [rbx]",
    "mov dword ptr [rbx + 0x30], 0",
    "out8 {report} + 1, cl",
    "sleep",
);

#[test]
fn a_virtio_register_is_read_without_an_exit_and_written_with_one() {
    let vmm = Vmm::new().guest(reads_and_writes_registers).args(["--trace-exits"]);
    let table = vmm.run().exits(b'v'.into()).stderr;
    assert_eq!(count(&table, "write 0xd0000030"), Some(1), "{table}");
    assert!(!table.contains("read "), "{table}");
}

#[test]
fn a_command_needs_somewhere_to_run_and_room_on_the_command_line() {
    let vmm = || Vmm::new().guest(guests::hello);
    vmm().args(["--", "true"]).run().refuses(125, &["-- true", "--initrd"]);
    let with_initrd = || vmm().file("initrd", "x").args(["--initrd", "initrd"]);
    let whole = ["--cmdline=x", "--cmdline-only", "--", "true"];
    with_initrd().args(whole).run().refuses(125, &["--cmdline-only"]);
    // The machine does not start again.
    let resets = Vmm::new().guest(guests::acpi_reset).file("initrd", "x");
    let resets = resets.args(["--initrd", "initrd", "--", "true"]);
    resets.run().exits(125).says(&["the guest rebooted"]);
    with_initrd().args(["--", "a b", "c"]).run().exits(125).says(&["the guest powered off"]);
}
