//! Guests that attack the devices while tinyvmm runs (guest-images/hostile): tinyvmm stays up, keeps its memory and its
//! threads, and answers signals; the devices work again after a reset.
//!
//! Each test attacks for `TINYVMM_HOSTILE_SECONDS` (2); `scripts/hostile` does so for an hour in all.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use crate::fixture::{Dir, Running, Vmm};
use crate::images::image;

/// All threads of a machine of three CPUs, a disk, a folder and the random number generator.
const THREADS: [&str; 9] =
    ["console", "disk0", "rng", "share0", "starter", "tinyvmm", "vcpu0", "vcpu1", "vcpu2"];
/// Where the guest notes that its disk works: "alive at", and a count.
const ALIVE: u64 = 7 * 512;
/// What a file beside the guest's folder has.
const OUTSIDE: &[u8] = b"as it was";

fn seconds() -> Duration {
    let seconds = std::env::var("TINYVMM_HOSTILE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(2, |text| text.parse().expect("a number of seconds")))
}

/// A guest that attacks, and the disk on which it reports that the devices work.
struct Attack {
    vmm: Running,
    disk: PathBuf,
    dir: Dir,
    checks: u64,
}

impl Attack {
    /// Starts the attack; returns when the guest has used the devices for the first time.
    fn start(name: &str) -> Self {
        let dir = Dir::new();
        let disk = dir.path("disk");
        fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        let kernel = image("hostile").into_os_string().into_string().unwrap();
        let args = ["--kernel", &kernel, "--mem", "64M", "--cpus", "3", "--uart", "memory"];
        fs::write(dir.path("outside"), OUTSIDE).unwrap();
        fs::create_dir(dir.path("folder")).unwrap();
        let share = format!("{},tag=x", dir.path("folder").display());
        let args = [&args[..], &["--vsock", "path=vsock", "--share", &share]].concat();
        let vmm = Vmm::new().args(args).args(["--disk", disk.to_str().unwrap()]);
        let vmm = vmm.args(["--cmdline", &format!("attack={name}"), "--log-level", "info"]);
        let vmm = vmm.stdin(Stdio::piped()).stdout(Stdio::null()).patiently(seconds()).start();
        Self { vmm, disk, dir, checks: 0 }.lives(|vmm| vmm)
    }

    fn lives(mut self, ask: impl Fn(Running) -> Running) -> Self {
        let before = self.checks;
        for _ in 0..400 {
            self.vmm = ask(self.vmm);
            for _ in 0..20 {
                let mut note = [0; 16];
                fs::File::open(&self.disk).unwrap().read_exact_at(&mut note, ALIVE).unwrap();
                self.checks = u64::from_le_bytes(note[8..].try_into().unwrap());
                if note.starts_with(b"alive at") && self.checks > before {
                    return self;
                }
                sleep(Duration::from_millis(10));
            }
        }
        panic!("no life after {before} checks");
    }

    /// Has the guest pause its attack, reset the devices, and use them as a driver should. The key is typed until the
    /// guest reads it: input is lost while the guest resets the serial port.
    fn still_works(self) -> Self {
        self.lives(|vmm| vmm.types("c"))
    }

    /// KiB of memory that is no file's. The guest has touched all of its RAM, so only tinyvmm's own can grow.
    fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(self.vmm.proc("status")).unwrap();
        let kib = |line: &str| -> u64 {
            let rest = line.strip_prefix("RssAnon:").or_else(|| line.strip_prefix("RssShmem:"));
            rest.map_or(0, |rest| rest.trim().trim_end_matches(" kB").parse().unwrap())
        };
        status.lines().map(kib).sum()
    }

    /// Checks that the guest has changed nothing but what is in its folder.
    fn stays_in_its_folder(&self) {
        let entries = fs::read_dir(self.dir.path(".")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["disk", "folder", "outside"]);
        assert_eq!(fs::read(self.dir.path("outside")).unwrap(), OUTSIDE);
    }

    /// The number of open files, where /proc shows it.
    fn files(&self) -> Option<usize> {
        Some(fs::read_dir(self.vmm.proc("fd")).ok()?.count())
    }

    /// Checks that no thread is left of a device that was reset.
    fn has_its_threads(self) -> Self {
        let its_own = |vmm: &Running| {
            let mut names = vmm.threads();
            names.retain(|name| !name.starts_with("kvm-")); // the kernel's own
            let all = names.len();
            names.dedup();
            names.len() == all && names.iter().all(|name| THREADS.contains(&name.as_str()))
        };
        Self { vmm: self.vmm.until(its_own), ..self }
    }
}

#[track_caller]
fn survives(name: &str) -> Dir {
    let attack = Attack::start(name);
    sleep(Duration::from_secs(1));
    let attack = attack.still_works();
    let (memory, files) = (attack.memory_kib(), attack.files());
    assert!(memory >= 64 << 10, "the guest has not touched its RAM: {memory} KiB");
    sleep(seconds());
    let attack = attack.still_works();
    let growth = attack.memory_kib().saturating_sub(memory);
    assert!(growth < 1024, "{growth} KiB more after {:?}", seconds());
    // One more while a device is started: its StopFlag.
    if let (Some(before), Some(after)) = (files, attack.files()) {
        assert!(after <= before + 2, "{before} open files have become {after}");
    }
    attack.stays_in_its_folder();
    let Attack { vmm, dir, .. } = attack.has_its_threads();
    vmm.signal(libc::SIGTERM);
    let vmm = vmm.says("power button");
    sleep(Duration::from_millis(600)); // sooner, it would be the same request
    vmm.signal(libc::SIGTERM);
    let outcome = vmm.wait().exits(8);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    assert!(outcome.stderr.lines().count() < 10, "it fills logs: {}", outcome.stderr);
    dir
}

#[test]
fn registers_of_all_devices_from_two_cpus_while_they_work() {
    survives("registers");
}

#[test]
fn resets_with_requests_in_flight_and_no_answer_after_them() {
    survives("reset");
}

#[test]
fn floods_of_doorbells() {
    survives("doorbell");
}

#[test]
fn queues_moved_while_they_are_live() {
    survives("moved");
}

#[test]
fn rings_in_registers_past_ram_and_across_its_end() {
    survives("rings");
}

#[test]
fn descriptors_and_requests_of_any_content_changed_while_they_are_followed() {
    survives("chains");
}

#[test]
fn requests_to_a_folder_that_name_what_is_outside() {
    let dir = survives("folder");
    let made = fs::metadata(dir.path("folder")).unwrap().modified().unwrap();
    let before = fs::metadata(dir.path("outside")).unwrap().modified().unwrap();
    assert!(made > before + Duration::from_millis(500), "no request has reached the folder");
}

#[test]
fn floods_of_output_and_a_serial_port_in_any_state() {
    survives("serial");
}

#[test]
fn any_port_by_a_cpu_that_is_started_again_and_again() {
    survives("ports");
}

#[test]
fn addresses_where_nothing_is() {
    survives("holes");
}

#[test]
fn everything_at_once() {
    survives("all");
}

#[test]
fn a_guest_can_power_off_after_an_attack() {
    let attack = Attack::start("moved").still_works();
    attack.vmm.types("quit!").wait().exits(0);
}
