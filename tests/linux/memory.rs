//! Memory that a guest has freed, or that the balloon asks for, goes back to the host.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::{CLOUD_ELF, Console, Kernel, SMALL_ELF, console_of, then_run};
use crate::api::{Client, listening, vmm};
use crate::fixture::Running;

const MIB: u64 = 1 << 10; // in KiB, as all sizes here

/// A guest of 512 MiB that fills 256 MiB and frees them on a key; and the memory of the process before and in between.
fn filled(balloon: &str) -> (Running, u64, u64) {
    let script = "mount -t tmpfs -o size=300m tmpfs /mnt; sleep 6; echo idle=1; read go; \
        dd if=/dev/zero of=/mnt/big bs=1M count=256 2>/dev/null; echo full=1; read go; \
        rm /mnt/big; echo freed=1; read go";
    let vmm = SMALL_ELF.runs(script).args(["--mem", "512M", "--balloon", balloon]);
    let running = vmm.stdin(Stdio::piped()).start().prints("idle=1");
    let before = running.rss_kib();
    let running = running.types("\n").prints("full=1");
    let full = running.rss_kib();
    assert!(full > before + 200 * MIB, "{before} KiB before, {full} KiB full");
    (running.types("\n").prints("freed=1"), before, full)
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_a_guest_frees_goes_back_to_the_host() {
    let (running, before, _) = filled("0");
    assert!(before < 56 * MIB, "an idle guest takes {before} KiB");
    let running = running.until(|running| running.rss_kib() < before + 16 * MIB);
    running.types("\n").wait().exits(0).silently();
    // Without a balloon device the memory stays.
    let (running, _, full) = filled("off");
    let left = running.rss_kib();
    assert!(left > full - 16 * MIB, "{full} KiB became {left} KiB");
    running.types("\n").wait().exits(0).silently();
}

/// A guest of 256 MiB with 128 MiB in its balloon, which then runs `script`.
fn inflated(kernel: Kernel, script: &str) -> Console {
    let script = format!(
        "event() {{ awk '/^balloon_'$1'/{{print $2}}' /proc/vmstat; }}; \
         while [ $(event inflate) -lt 32768 ]; do usleep 20000; done; {script}; \
         echo inflated=$(event inflate); echo deflated=$(event deflate); \
         echo wrong=$(dmesg | grep -E '[O]ops|[B]UG|[C]all Trace|[O]ut of memory')"
    );
    let console = console_of(kernel.runs(&script).args(["--balloon", "128M"]));
    console.has("inflated", "32768").has("wrong", "");
    console
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_does_without_what_its_balloon_is_to_have() {
    inflated(CLOUD_ELF, "true").has("deflated", "0");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_out_of_memory_takes_it_from_its_balloon() {
    // Much more than is free: pages that are just being reported to the host are not counted, but are free.
    let script = "free=$(awk '/MemFree/{print $2}' /proc/meminfo); \
        mount -t tmpfs -o size=240m tmpfs /mnt; head -c $(((free + 65536) * 1024)) /dev/zero > /mnt/big && \
        echo filled=1";
    let console = inflated(SMALL_ELF, script);
    console.has("filled", "1");
    assert!(console.number("deflated") > 0, "{}", console.0);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_that_is_asked_names_its_free_pages_and_has_them_back_after_that() {
    let script = "mount -t tmpfs -o size=300m tmpfs /mnt; \
        fill() { dd if=/dev/zero of=/mnt/big bs=1M count=256 2>/dev/null; }; \
        fill; rm /mnt/big; echo freed=1; read go; fill; echo again=$(stat -c %s /mnt/big); read go";
    let (running, client) = listening(vmm().stdin(Stdio::piped()).start());
    client.does("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":512}"#);
    let args = format!("console=ttyS0 panic=-1 cryptomgr.notests quiet {}", then_run(script));
    let source = json!({"kernel_image_path": SMALL_ELF.path(), "initrd_path": SMALL_ELF.initrd(),
        "boot_args": args});
    client.does("PUT", "/boot-source", &source.to_string());
    let balloon = r#"{"amount_mib":0,"deflate_on_oom":true,"free_page_hinting":true}"#;
    client.does("PUT", "/balloon", balloon);
    client.does("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    let running = running.prints("freed=1");
    let full = running.rss_kib();
    let named_all = |client: &Client| client.get("/balloon/hinting/status")["guest_cmd"] == 0;
    client.does("PATCH", "/balloon/hinting/start", r#"{"acknowledge_on_stop":false}"#);
    let running = running.until(|_| named_all(&client));
    assert_eq!(client.get("/balloon/hinting/status"), json!({"host_cmd": 2, "guest_cmd": 0}));
    let left = running.rss_kib();
    assert!(left + 200 * MIB < full, "{full} KiB became {left} KiB");
    client.does("PATCH", "/balloon/hinting/stop", "{}");
    let running = running.types("\n").prints("again=268435456");
    // A second run ends itself.
    client.does("PATCH", "/balloon/hinting/start", "");
    let ended = json!({"host_cmd": 1, "guest_cmd": 0});
    let running = running.until(|_| client.get("/balloon/hinting/status") == ended);
    running.types("\n").wait().exits(0).silently();
}

/// A guest of 256 MiB that can have 2 GiB. It keeps a file, and on each key fills 640 MiB, prints how much memory it
/// has, and frees them. At the end it waits for all that is plugged: Linux adds a block after the device has counted it.
fn that_can_grow(kernel: Kernel, balloon: &str) -> (Running, Client) {
    let script = "mount -t tmpfs -o size=900m tmpfs /mnt; dd if=/dev/urandom of=/mnt/keep bs=1M count=24 2>/dev/null; \
        sum() { md5sum < /mnt/keep | cut -c1-32; }; a=$(sum); sleep 4; echo up=1; n=0; \
        while read go; do n=$((n + 1)); [ $go = reboot ] && reboot -f; \
        [ $go = end ] || dd if=/dev/zero of=/mnt/big bs=1M count=640 2>/dev/null; \
        for try in $(seq 300); do read k total u < /proc/meminfo; \
        [ $go = end ] && [ $total -lt $((first - 786432)) ] || break; sleep 0.1; done; \
        : ${first=$total}; echo total$n=$total; [ $go = end ] && break; \
        echo full$n=1; read go; rm /mnt/big; echo freed$n=1; done; \
        [ $(sum) = $a ] && echo intact=1; \
        echo wrong=$(dmesg | grep -E '[O]ops|[B]UG|[C]all Trace|[O]ut of memory')";
    let vmm = kernel.runs(script).args(["--mem", "256M,max=2G", "--balloon", balloon]);
    let vmm = vmm.args(["--api-sock", "api.sock", "--log-level", "info"]);
    listening(vmm.stdin(Stdio::piped()).start().prints("up=1"))
}

/// Requests a total of `mib`, and waits until the guest has plugged or unplugged as much.
#[track_caller]
fn resized(running: Running, client: &Client, mib: u64) -> Running {
    client.ctl(&["memory", &format!("{mib}M")]).exits(0).silently();
    has_plugged(running, client, mib - 256)
}

#[track_caller]
fn has_plugged(running: Running, client: &Client, mib: u64) -> Running {
    running.until(|_| {
        thread::sleep(Duration::from_millis(100));
        client.get("/hotplug/memory")["plugged_size_mib"] == mib
    })
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_machine_grows_shrinks_and_gives_all_of_it_back() {
    // Without free page reporting only unplugged memory comes back.
    let (running, client) = that_can_grow(SMALL_ELF, "off");
    let before = running.rss_kib();
    let running = resized(running, &client, 1280).types("fill\n").prints("full1=1");
    let full = running.rss_kib();
    assert!(full > before + 600 * MIB, "{before} KiB before, {full} KiB full");
    let running = running.types("\n").prints("freed1=1");
    let freed = running.rss_kib();
    assert!(freed > full - 64 * MIB, "{full} KiB became {freed} KiB");
    let running = resized(running, &client, 256);
    let after = running.rss_kib();
    assert!(after < before + 64 * MIB, "{before} KiB before, {after} KiB after");
    let running = resized(running, &client, 512);
    let console = Console::of(&running.types("end\n").wait().exits(0));
    let mib = |name: &str| console.number(name) / 1024;
    assert_eq!(mib("total2") + 768, mib("total1"), "{}", console.0);
    console.has("intact", "1").has("wrong", "");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_is_freed_of_plugged_memory_goes_back_and_a_reboot_has_it_again() {
    let (running, client) = that_can_grow(CLOUD_ELF, "0");
    let before = running.rss_kib();
    let running = resized(running, &client, 1280).types("fill\n").prints("full1=1");
    assert!(running.rss_kib() > before + 600 * MIB);
    let running = running.types("\n").prints("freed1=1");
    let running = running.until(|running| running.rss_kib() < before + 64 * MIB);
    let running = running.types("reboot\n").says("the guest rebooted");
    let running = has_plugged(running, &client, 1024);
    let running = running.types("fill\n").prints("full1=1").types("\n").types("end\n");
    let outcome = running.wait().exits(0);
    let console = Console::of(&outcome);
    console.has("intact", "1").has("wrong", "");
    let totals: Vec<u64> =
        console.0.lines().filter_map(|line| line.strip_prefix("total1=")?.parse().ok()).collect();
    assert_eq!(totals.len(), 2, "{}", console.0);
    assert!(totals.iter().all(|kib| *kib > 1200 * MIB), "{totals:?}");
}
