//! What takes minutes, and is not for every change: `scripts/soak` runs it.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use super::exec::tinyvmm;
use super::{IN_A_BOX, INIT, SMALL_ELF, disk};
use crate::fixture::{Dir, Running, Vmm};
use crate::images::image;
use crate::net::{NETWORK, in_namespace};

/// How often, every few seconds, a guest with systemd is tried: in a box it takes minutes.
const TRIES: u32 = 150;

/// A machine that runs, and the folder of its user.
fn machine() -> (Dir, Running) {
    let folder = Dir::new();
    let vmm = SMALL_ELF.with_cmdline("quiet").env("XDG_RUNTIME_DIR", folder.path("."));
    let running = vmm.args(["--name", "m"]).start().prints(INIT);
    (folder, running)
}

/// Processes and open files in the guest, and open files and KiB of the machine's process besides the guest's memory.
fn in_use(folder: &Dir, running: &Running) -> ([u64; 3], u64) {
    let script = "grep -l . /proc/[0-9]*/cmdline 2>/dev/null | wc -l; ls /proc/[0-9]*/fd 2>/dev/null | wc -l";
    let outcome = tinyvmm(folder, &["exec", "m", "sh", "-c", script]).exits(0);
    let text = String::from_utf8(outcome.stdout).unwrap();
    let mut counts = text.lines().map(|line| line.trim().parse().unwrap());
    let files = fs::read_dir(running.proc("fd")).unwrap().count() as u64;
    let (mut kib, mut is_ram) = (0, false);
    for line in fs::read_to_string(running.proc("smaps")).unwrap().lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["Size:", size, _] => is_ram = size.parse::<u64>().unwrap() > 200 << 10,
            ["Anonymous:", size, _] if !is_ram => kib += size.parse::<u64>().unwrap(),
            _ => {}
        }
    }
    ([counts.next().unwrap(), counts.next().unwrap(), files], kib)
}

#[test]
#[ignore = "boots Linux: scripts/soak runs it in the KVM box"]
fn a_thousand_commands_leave_nothing_behind_and_a_hundred_run_at_once() {
    let (folder, running) = machine();
    let vmm = || Vmm::new().patiently(IN_A_BOX).env("XDG_RUNTIME_DIR", folder.path("."));
    let at_once = |count: usize| {
        let start = |n: usize| vmm().args(["exec", "m", "echo", &n.to_string()]).start();
        let all: Vec<_> = (0..count).map(start).collect();
        for (n, running) in all.into_iter().enumerate() {
            let outcome = running.wait().exits(0).silently();
            assert_eq!(outcome.stdout, format!("{n}\n").as_bytes());
        }
    };
    at_once(100);
    let (before, kib) = in_use(&folder, &running);
    for _ in 0..800 {
        tinyvmm(&folder, &["exec", "m", "true"]).exits(0).silently();
    }
    at_once(100);
    let (after, more_kib) = in_use(&folder, &running);
    assert_eq!(after, before, "processes and files of the guest, files of the host");
    assert!(more_kib < kib + 512, "{kib} KiB before, {more_kib} KiB after");
    tinyvmm(&folder, &["ctl", "m", "stop"]).exits(0).silently();
}

#[test]
#[ignore = "boots Linux: scripts/soak runs it in the KVM box"]
fn a_hundred_mebibytes_go_in_and_come_out_whole() {
    let (folder, _running) = machine();
    let zeroes = "head -c 104857600 /dev/zero | md5sum";
    let expected = Command::new("sh").args(["-c", zeroes]).output().unwrap().stdout;
    let vmm = Vmm::new().patiently(IN_A_BOX).env("XDG_RUNTIME_DIR", folder.path("."));
    let vmm = vmm.args(["exec", "-i", "m", "md5sum"]).sparse_file("in", 100 << 20);
    let input = fs::File::open(vmm.dir().path("in")).unwrap();
    assert_eq!(vmm.stdin(input).run().exits(0).silently().stdout, expected);
    let outcome = tinyvmm(&folder, &["exec", "m", "head", "-c", "104857600", "/dev/zero"]).exits(0);
    assert!(outcome.stdout.len() == 100 << 20 && outcome.stdout.iter().all(|byte| *byte == 0));
    tinyvmm(&folder, &["ctl", "m", "stop"]).exits(0).silently();
}

#[test]
#[ignore = "boots Linux: scripts/soak runs it in the KVM box"]
fn ssh_leads_into_a_cloud_image_by_a_published_port() {
    let folder = Dir::new();
    let key = folder.path("key");
    let keygen = ["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()];
    assert!(Command::new("ssh-keygen").args(keygen).status().unwrap().success());
    let vmm = in_namespace(NETWORK).unwrap().env("XDG_CACHE_HOME", folder.path("cache"));
    let vmm = vmm.args(["--kernel", "auto", "--mem", "1G", "-p", "2222:22"]);
    let vmm = vmm.args(["--ssh-key".into(), folder.path("key.pub")]);
    let running = vmm.args(disk(&image("debian-cloud"), ",overlay")).start();
    let ssh = || {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", running.proc("ns/net").display())).args(["ssh", "-i"]);
        nsenter.arg(&key).args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        nsenter.args([
            "-o",
            "ConnectTimeout=5",
            "-p",
            "2222",
            "debian@127.0.0.1",
            "id -un; sudo id -un; hostname",
        ]);
        nsenter.output().unwrap()
    };
    let said = (0..TRIES).find_map(|_| {
        sleep(Duration::from_secs(3));
        Some(ssh()).filter(|output| output.status.success())
    });
    assert_eq!(String::from_utf8(said.unwrap().stdout).unwrap(), "debian\nroot\ntinyvmm\n");
}
