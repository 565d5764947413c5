//! Commands and files in a machine that runs, and in one that goes on from its snapshot.

use std::fs;

use super::{IN_A_BOX, SMALL_ELF};
use crate::fixture::{Dir, Outcome, Vmm};

/// tinyvmm with `args`, of the user whose machines are in `folder`.
pub fn tinyvmm(folder: &Dir, args: &[&str]) -> Outcome {
    let vmm = Vmm::new().patiently(IN_A_BOX).env("XDG_RUNTIME_DIR", folder.path("."));
    vmm.args(args).run()
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn commands_and_files_go_in_and_out_of_a_machine_and_of_its_copy() {
    let folder = Dir::new();
    let vmm = SMALL_ELF.with_cmdline("quiet").env("XDG_RUNTIME_DIR", folder.path("."));
    vmm.args(["--name", "first", "--detach"]).run().exits(0);
    let script = "echo out; echo err >&2; exit 7";
    let outcome = tinyvmm(&folder, &["exec", "first", "--", "sh", "-c", script]).exits(7);
    assert_eq!((&*outcome.stdout, &*outcome.stderr), (&b"out\n"[..], "err\n"));
    let (file, back) = (folder.path("file"), folder.path("back"));
    let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at * 7 + at / 251) as u8).collect();
    fs::write(&file, &bytes).unwrap();
    tinyvmm(&folder, &["cp", file.to_str().unwrap(), "first:/tmp/file"]).exits(0).silently();

    let snapshot = folder.path("snap");
    let snapshot = snapshot.to_str().unwrap();
    tinyvmm(&folder, &["ctl", "first", "snapshot", snapshot]).exits(0).silently();
    tinyvmm(&folder, &["--restore", snapshot, "--name", "copy", "--detach"]).exits(0);
    for name in ["copy", "first"] {
        tinyvmm(&folder, &["cp", &format!("{name}:/tmp/file"), back.to_str().unwrap()])
            .exits(0)
            .silently();
        assert!(fs::read(&back).unwrap() == bytes, "{name}");
        fs::remove_file(&back).unwrap();
        tinyvmm(&folder, &["ctl", name, "stop"]).exits(0).silently();
    }
}
