//! Machines that go on from a snapshot, and what the agent in their guests makes of them.

use std::collections::HashSet;

use super::{Console, IN_A_BOX, SMALL_ELF};
use crate::fixture::{Dir, Outcome, Vmm};
use crate::net::NETWORK;

const CLONES: usize = 20;
/// What two machines must not have in common. It has to be new by the time of a machine's first command.
const OF_ONE: [&str; 4] = ["id", "mac", "random", "tables"];
const ASK: &str = "echo name=$(uname -n); echo id=$(cat /etc/machine-id); echo mac=$(cat /sys/class/net/eth0/address); \
    echo random=$(od -An -N16 -tx1 /dev/urandom); echo tables=$(md5sum </sys/firmware/dmi/tables/DMI); echo now=$(date +%s)";

/// tinyvmm with `args`, of the user whose machines are in `folder`.
fn tinyvmm(folder: &Dir, args: &[&str]) -> Outcome {
    let vmm = Vmm::new().patiently(IN_A_BOX).env("XDG_RUNTIME_DIR", folder.path("."));
    vmm.args(args).run()
}

/// tinyvmm with `args` where passt has a network to connect guests with.
fn networked(folder: &Dir, args: &[&str]) -> Vmm {
    let script = format!("{NETWORK} && exec \"$@\"");
    let vmm = Vmm::started_by(&["unshare", "-n", "sh", "-c", &script, "sh"]);
    vmm.patiently(IN_A_BOX).env("XDG_RUNTIME_DIR", folder.path(".")).args(args)
}

fn asked(folder: &Dir, name: &str) -> Console {
    Console::of(&tinyvmm(folder, &["exec", name, "--", "sh", "-c", ASK]).exits(0).silently())
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn twenty_machines_of_one_snapshot_have_nothing_in_common_and_one_goes_on_as_it_was() {
    let folder = Dir::new();
    let _ = std::process::Command::new("modprobe").args(["-a", "veth", "tun"]).status();
    let vmm = networked(&folder, &["--mem", "64M", "--name", "first", "--detach"]);
    let vmm = vmm
        .args(["--net", "user", "--cmdline", "quiet"])
        .args(["--kernel".into(), SMALL_ELF.path()]);
    vmm.args(["--initrd".into(), SMALL_ELF.initrd()]).run().exits(0);
    let prepare = "hostname old; echo 0123456789abcdef0123456789abcdef > /etc/machine-id";
    tinyvmm(&folder, &["exec", "first", "--", "sh", "-c", prepare]).exits(0).silently();
    let first = asked(&folder, "first");
    let snapshot = folder.path("snap");
    let snapshot = snapshot.to_str().unwrap();
    tinyvmm(&folder, &["ctl", "first", "snapshot", snapshot, "--stop"]).exits(0).silently();

    let same = ["--restore", snapshot, "--name", "same", "--detach", "--identity", "keep"];
    networked(&folder, &same).run().exits(0).silently();
    let kept = asked(&folder, "same");
    kept.has("name", "old");
    for what in ["id", "mac", "tables"] {
        kept.has(what, first.value(what));
    }
    tinyvmm(&folder, &["ctl", "same", "stop"]).exits(0).silently();

    let named = ["--restore", snapshot, "--name", "web", "--hostname", "a.b", "--detach"];
    networked(&folder, &named).run().exits(0).silently();
    asked(&folder, "web").has("name", "a.b");
    tinyvmm(&folder, &["ctl", "web", "stop"]).exits(0).silently();

    let count = CLONES.to_string();
    let start = ["--restore", snapshot, "--name", "web", "--count", &count];
    networked(&folder, &start).run().exits(0).silently();
    let mut seen: HashSet<String> = OF_ONE.iter().map(|what| first.value(what).into()).collect();
    for number in 1..=CLONES {
        let name = format!("web-{number}");
        let began = now();
        let clone = asked(&folder, &name);
        clone.has("name", &name);
        for what in OF_ONE {
            assert!(seen.insert(clone.value(what).into()), "{name}: {what}={}", clone.value(what));
        }
        // Saved minutes ago where the box is slow; its time is the host's.
        let time = clone.number("now");
        assert!((began.saturating_sub(2)..=now() + 2).contains(&time), "{name}: {time}, {began}");
        tinyvmm(&folder, &["ctl", &name, "stop"]).exits(0).silently();
    }
}
