//! `--template` with stock kernels: the first run boots, and all go on from what it was then.

use std::collections::HashSet;
use std::process::Stdio;

use super::disk::full;
use super::{Console, IN_A_BOX, Kernel, SMALL_ELF, disk};
use crate::fixture::{Dir, Vmm};

/// What nobody but one run knows.
const SECRET: &str = "rosebud-4711";
const ASK: &str = "echo boot=$(md5sum </proc/1/auxv); echo name=$(uname -n); \
    echo id=$(cat /etc/machine-id); echo random=$(od -An -N16 -tx1 /dev/urandom); echo now=$(date +%s); \
    echo cpus=$(nproc); echo here=$PWD; echo input=$(cat); echo error >&2; exit 5";

/// A machine of `kernel` whose templates are in `folder`.
fn templated(kernel: Kernel, folder: &Dir) -> Vmm {
    let vmm = Vmm::new().patiently(IN_A_BOX).env("XDG_CACHE_HOME", folder.path("cache"));
    let vmm = vmm.env("XDG_RUNTIME_DIR", folder.path("."));
    let vmm = vmm.args(["--kernel".into(), kernel.path()]);
    vmm.args(["--initrd".into(), kernel.initrd()]).args(["--mem", "128M", "--template"])
}

/// The folders of the templates.
fn templates(folder: &Dir) -> Vec<std::path::PathBuf> {
    let found = std::fs::read_dir(folder.path("cache/tinyvmm/templates")).unwrap();
    found.map(|entry| entry.unwrap().path()).collect()
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn each_run_is_a_machine_of_its_own_that_has_not_booted() {
    // Debian's cloud kernel has no /dev/port, without which QEMU's processor, after a restore, lets no program report a
    // status (see guest-images/command-init).
    let folder = Dir::new();
    let (mut seen, mut boots) = (HashSet::new(), HashSet::new());
    for name in [None, None, Some("web")] {
        let vmm = templated(SMALL_ELF, &folder).stdin(Stdio::piped());
        let vmm = vmm.args(name.map(|name| format!("--name={name}")));
        let began = now();
        let running = vmm.args(["--", "sh", "-c", ASK, SECRET]).start();
        let outcome = running.types("some\n").ends_input().wait().exits(5).leaves_nothing();
        assert_eq!(outcome.stderr, "error\n");
        let console = Console::of(&outcome);
        console.has("cpus", "1").has("here", "/root").has("input", "some");
        boots.insert(console.value("boot").to_owned());
        for what in ["id", "random"] {
            let value = console.value(what);
            assert!(!value.is_empty() && seen.insert(value.to_owned()), "{what}={value}");
        }
        if let Some(name) = name {
            console.has("name", name);
        }
        let time = console.number("now");
        assert!((began.saturating_sub(2)..=now() + 2).contains(&time), "{time}, {began}");
    }
    // Where init's stack is: a boot makes another.
    assert_eq!(boots.len(), 1, "{boots:?}");
    let all = templates(&folder);
    assert_eq!(all.len(), 1, "{all:?}");
    for file in std::fs::read_dir(&all[0]).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let has = |text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
        assert!(!has(SECRET.as_bytes()) && !has(b"echo boot="), "{path:?}");
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn disks_cpus_and_the_console_are_as_after_a_boot() {
    let folder = Dir::new();
    let image = full(&folder, "disk", 1 << 20);
    // It shows changes by its times from then on.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let write = "echo cpus=$(nproc); echo disk=$(md5sum </dev/vda); \
        dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=notrunc 2>/dev/null; sync; echo written=$(md5sum </dev/vda)";
    let mut all = HashSet::new();
    for _ in 0..2 {
        let vmm =
            templated(SMALL_ELF, &folder).args(["--cpus", "2"]).args(disk(&image, ",overlay"));
        let outcome = vmm.args(["--", "sh", "-c", write]).run().exits(0);
        let console = Console::of(&outcome);
        console.has("cpus", "2");
        assert_ne!(console.value("disk"), console.value("written"));
        all.insert(outcome.stdout.clone());
    }
    assert_eq!((all.len(), templates(&folder).len()), (1, 1), "{all:?}");

    for _ in 0..2 {
        let vmm = templated(SMALL_ELF, &folder).args(["--console", "log"]);
        let outcome = vmm.args(["--", "sh", "-c", "echo said; exit 3"]).run().exits(3);
        assert!(outcome.file("log").contains("said"), "{}", outcome.file("log"));
    }
    assert_eq!(templates(&folder).len(), 2);
}
