//! Disks under load: many requests in flight, on slow storage, while the machine is paused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::disk::{full, run};
use super::{CLOUD_ELF, Console, console_of, disk, image};
use crate::api::{SOCKET, listening};
use crate::fixture::{Dir, Vmm};

const MIB: usize = 1 << 20;
/// Puts fio, which is on the first disk, where `chroot /mnt fio` runs it.
const MOUNT: &str = "mount -t ext4 -o ro /dev/vda /mnt; mount --bind /dev /mnt/dev; \
    mount -t tmpfs t /mnt/tmp; mount -t proc p /mnt/proc";
/// Without its display of progress, which has no line ends: `name=value` is to start a line.
const FIO: &str = "chroot /mnt fio --thread --ioengine=libaio --direct=1 --eta=never";

/// A machine with fio that runs `script`; the disks that are added next are vdb, vdc and so on.
fn with_fio(script: &str) -> Vmm {
    let vmm = CLOUD_ELF.runs(&format!("{MOUNT}; {script}")).args(["--mem", "512M"]);
    vmm.args(disk(&image("compare").join("image"), ",readonly"))
}

/// A block device that completes each request long after it came: null_blk, with timers.
struct Slow(PathBuf);

impl Slow {
    fn new(name: &str, latency: Duration) -> Self {
        run(Command::new("modprobe").args(["null_blk", "nr_devices=0"]));
        let configfs = Path::new("/sys/kernel/config");
        if !configfs.join("nullb").exists() {
            run(Command::new("mount").args(["-t", "configfs", "configfs"]).arg(configfs));
        }
        let slow = Self(configfs.join("nullb").join(name));
        fs::create_dir(&slow.0).unwrap();
        let latency = latency.as_nanos().to_string();
        let settings = [("size", "16"), ("memory_backed", "1"), ("irqmode", "2")];
        let power = [("completion_nsec", &*latency), ("power", "1")];
        for (setting, value) in settings.into_iter().chain(power) {
            fs::write(slow.0.join(setting), value).unwrap();
        }
        slow
    }

    /// Newer kernels name it after its folder in configfs.
    fn path(&self) -> PathBuf {
        let index = fs::read_to_string(self.0.join("index")).unwrap();
        let named = Path::new("/dev").join(self.0.file_name().unwrap());
        if named.exists() { named } else { format!("/dev/nullb{}", index.trim()).into() }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("power"), "0");
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn thirty_two_requests_at_a_time_wait_for_slow_storage_together() {
    let ways = [("vdb", "io_uring"), ("vdc", "threads")];
    // Longer than the box takes for a request.
    let slow = ways.map(|(_, aio)| Slow::new(aio, Duration::from_millis(200)));
    let mut jobs = String::new();
    for (device, aio) in ways {
        for (how, n) in [("read", 1), ("read", 32), ("write", 1), ("write", 32)] {
            jobs += &format!(
                " --name={aio}-{how}{n} --stonewall --filename=/dev/{device} --rw=rand{how} --iodepth={n} \
                 --number_ios={}",
                n * 5
            );
        }
    }
    // Fields 3, 9 and 50 of fio's terse version 3: the job, and the milliseconds of reads and of writes.
    let mut vmm = with_fio(&format!(
        "{FIO} --bs=4k --iodepth_batch_submit=32 --iodepth_batch_complete_max=32 --minimal --output=/tmp/out{jobs} \
         >/dev/null; \
         cut -d';' -f3,9,50 /mnt/tmp/out | tr ';' ' ' | while read job ms more; do echo $job=$((ms + more)); done"
    ));
    for ((_, aio), slow) in ways.iter().zip(&slow) {
        vmm = vmm.args(disk(&slow.path(), &format!(",direct,aio={aio}")));
    }
    let console = console_of(vmm);
    for (job, (_, aio)) in ["read", "write"].iter().flat_map(|job| ways.map(|way| (job, way))) {
        let one = console.number(&format!("{aio}-{job}1"));
        assert!(one >= 1000, "{aio}: five took {one} ms:\n{}", console.0);
        // 32 times as many requests, with the same waits for storage.
        let many = console.number(&format!("{aio}-{job}32"));
        assert!(many <= one * 32 / 5, "{aio}, {job}: {one} ms, and {many} ms at 32 a time");
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_fio_writes_has_its_checksum_and_what_it_trims_is_zero_however_often_the_machine_is_paused()
{
    let dir = Dir::new();
    let (plain, base) = (full(&dir, "plain", 8 * MIB), full(&dir, "base", 8 * MIB));
    let before = fs::read(&base).unwrap();
    let job = |name: &str, device: &str| {
        format!(
            "{FIO} --filename=/dev/{device} --bsrange=512-64k --iodepth=32 --output=/tmp/{name} \
             --name=write --rw=randwrite --size=4M --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
             --verify_state_save=0 \
             --name=trim --rw=randtrim --offset=4M --size=4M; echo {name}=$?; \
             echo left-{name}=$(dd if=/dev/{device} bs=1M skip=4 2>/dev/null | tr -d '\\000' | wc -c)"
        )
    };
    let script = format!(
        "({}) & ({}) & until set -- $(cat /sys/block/vdc/stat) && [ $5 -gt 40 ]; do usleep 50000; done; \
         echo up=1; wait; cat /mnt/tmp/plain /mnt/tmp/layer; read x",
        job("plain", "vdb"),
        job("layer", "vdc")
    );
    let vmm = with_fio(&script).args(["--cpus", "2", "--api-sock", SOCKET]);
    let vmm =
        vmm.stdin(Stdio::piped()).args(disk(&plain, ",aio=threads")).args(disk(&base, ",overlay"));
    let (running, client) = listening(vmm.start());
    let running = running.prints("up=1");
    for _ in 0..50 {
        client.does("PATCH", "/vm", r#"{"state":"Paused"}"#);
        client.does("PATCH", "/vm", r#"{"state":"Resumed"}"#);
        thread::sleep(Duration::from_millis(50));
    }
    let outcome = running.types("\n").wait().exits(0).silently();
    let console = Console::of(&outcome);
    for name in ["plain", "layer"] {
        console.has(name, "0").has(&format!("left-{name}"), "0");
    }
    assert!(fs::read(plain).unwrap()[4 * MIB..].iter().all(|byte| *byte == 0));
    assert!(fs::read(base).unwrap() == before, "the disk below the layer is as it was");
}
