//! The jail: what the process cannot do once a guest runs.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use crate::fixture::{Running, Vmm};
use crate::guests;

/// The kernel's own thread for a virtual machine (since Linux 6.13). It makes no system calls.
const OF_KVM: &str = "kvm-nx-lpage-re";

pub fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A machine with a thread of every kind.
fn all_kinds(vmm: Vmm) -> Running {
    let running = vmm.guest(guests::drives_a_device).start().prints("driven");
    running.until(|vm| vm.threads().contains(&"rng".into()))
}

/// Each thread's name, with the values of `fields` in its status.
fn statuses<const N: usize>(running: &Running, fields: [&str; N]) -> Vec<(String, [String; N])> {
    let tasks = fs::read_dir(running.proc("task")).unwrap();
    let of_task = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("status")).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
        };
        (field("Name"), fields.map(field))
    };
    let found = tasks.map(|task| of_task(task.unwrap()));
    found.filter(|(name, _)| name != OF_KVM).collect()
}

#[test]
fn every_thread_has_a_filter_and_gains_no_privileges() {
    let running = all_kinds(Vmm::new().args(["--cpus", "2"]));
    let threads = statuses(&running, ["Seccomp", "NoNewPrivs"]);
    let mut names: Vec<_> = threads.iter().map(|(name, _)| name.as_str()).collect();
    names.sort();
    assert_eq!(names, ["console", "rng", "starter", "tinyvmm", "vcpu0", "vcpu1"]);
    for (name, fields) in &threads {
        assert_eq!(fields, &["2", "1"], "seccomp and no_new_privs of {name}");
    }
}

#[test]
fn the_process_dumps_no_core_and_shows_its_memory_to_nobody() {
    let running = all_kinds(Vmm::new());
    let limits = fs::read_to_string(running.proc("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // Files of a process that cannot be dumped are root's (proc(5)).
    let owner = fs::metadata(running.proc("mem")).unwrap().uid();
    assert_eq!(owner, 0);
    if is_root() {
        // Otherwise it would be that user's.
        let jailed = Vmm::new().guest(guests::idle).args(["--jail", "user=12345"]);
        let running = jailed.start().prints("idle");
        assert_eq!(fs::metadata(inside(&running, "mem")).unwrap().uid(), 0);
    }
}

#[test]
fn what_was_open_before_is_closed() {
    let open = File::open("/dev/null").unwrap();
    let inherit =
        format!("exec 9</proc/{}/fd/{} && exec \"$@\"", std::process::id(), open.as_raw_fd());
    let fds = |vmm: Vmm| {
        let running = vmm.guest(guests::idle).start().prints("idle");
        let fds = fs::read_dir(running.proc("fd"));
        fds.map(|fds| fds.map(|fd| fs::read_link(fd.unwrap().path()).unwrap()).collect::<Vec<_>>())
    };
    let started_by = ["sh", "-c", &inherit, "sh"];
    let Ok(fds_in_jail) = fds(Vmm::started_by(&started_by).stdin(std::process::Stdio::piped()))
    else {
        return eprintln!("SKIPPED: only root sees what a process has open that cannot be dumped");
    };
    let null = |fds: &[std::path::PathBuf]| fds.iter().any(|fd| fd.as_os_str() == "/dev/null");
    assert!(!null(&fds_in_jail), "{fds_in_jail:?}");
    let without =
        Vmm::started_by(&started_by).stdin(std::process::Stdio::piped()).args(["--no-jail"]);
    assert!(null(&fds(without).unwrap()), "the test passes it on");
}

#[test]
fn without_a_jail_there_is_a_line_that_says_so() {
    let running = all_kinds(Vmm::new().args(["--no-jail"])).says("--no-jail: ");
    for (name, fields) in statuses(&running, ["Seccomp", "NoNewPrivs"]) {
        assert_eq!(fields, ["0", "0"], "{name}");
    }
    let ended = Vmm::new().guest(guests::hello).args(["--no-jail"]).run().exits(0);
    ended.says(&["--no-jail"]);
    let both = Vmm::new().guest(guests::hello).args(["--no-jail", "--jail", "user=5"]);
    both.run().refuses(2, &["--jail and --no-jail"]);
}

#[cfg(debug_assertions)]
#[test]
fn a_thread_that_does_what_it_never_does_ends_the_process() {
    let threads = [
        ("Main", "tinyvmm"),
        ("Starter", "starter"),
        ("Vcpu", "vcpu0"),
        ("Console", "console"),
        ("Device", "rng"),
    ];
    for (kind, name) in threads {
        let vmm = Vmm::new().guest(guests::drives_a_device).env("TINYVMM_BREAK_OUT", kind);
        let outcome = vmm.run().exits(10);
        let violation = format!("thread {name} made the system call openat (257)");
        outcome.says(&["the jail", &violation]).leaves_nothing();
    }
}

#[cfg(debug_assertions)]
#[test]
fn a_violation_is_no_status_of_a_command() {
    let vmm = Vmm::new().guest(guests::hello).file("initrd", "x").env("TINYVMM_BREAK_OUT", "Vcpu");
    let outcome = vmm.args(["--initrd", "initrd", "--", "true"]).run().exits(125);
    outcome.says(&["the jail", "vcpu0", "openat"]);
}

#[cfg(debug_assertions)]
#[test]
fn a_violation_is_reported_though_its_signal_was_blocked_before() {
    let vmm = Vmm::started_by(&["env", "--block-signal=SYS"]).guest(guests::hello);
    let outcome = vmm.env("TINYVMM_BREAK_OUT", "Vcpu").run().exits(10);
    outcome.says(&["the jail", "vcpu0", "openat"]);
}

#[cfg(debug_assertions)]
#[test]
fn with_landlock_nothing_can_be_opened_even_without_a_filter() {
    let doctor = Vmm::new().args(["doctor"]).run();
    if String::from_utf8_lossy(&doctor.stdout).contains("no Landlock") {
        return eprintln!("SKIPPED: this host's kernel has no Landlock");
    }
    let vmm = Vmm::new().guest(guests::hello).env("TINYVMM_BREAK_OUT", "landlock");
    vmm.run().exits(0).says(&["/etc/passwd", "PermissionDenied"]);
}

#[test]
fn a_machine_starts_again_of_files_that_have_gone() {
    let vmm = Vmm::new().sparse_file("disk", 1 << 20).guest(guests::acpi_reset);
    let running = vmm.args(["--disk", "disk"]).start().prints("boot 1\n");
    fs::remove_file(running.dir().path("disk")).unwrap();
    fs::remove_file(running.dir().path("kernel")).unwrap();
    running.prints(&"boot 1\n".repeat(20));
}

#[test]
fn only_root_can_become_another() {
    if is_root() {
        let words = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"];
        let vmm = Vmm::started_by(&words).args(["--print-config"]).run();
        if vmm.code() != 0 {
            return eprintln!("SKIPPED: another user cannot run this binary: {}", vmm.stderr);
        }
        let vmm = Vmm::started_by(&words).guest(guests::hello).args(["--jail", "user=5"]);
        vmm.run().refuses(3, &["--jail user=5", "only root"]);
    } else {
        let vmm = Vmm::new().guest(guests::hello).args(["--jail", "user=5"]);
        vmm.run().refuses(3, &["--jail user=5", "only root"]);
    }
}

#[test]
fn whatever_the_machine_it_starts_again() {
    let variants = [
        ["--boot-report=report", "--trace-exits"].as_slice(),
        &["--uart", "memory"],
        &["--cmdline", "no-kvmclock"],
        &["--cpus", "4", "--mem", "4G"],
        &["--initrd", "initrd"],
    ];
    for args in variants {
        let vmm = Vmm::new().guest(guests::acpi_reset).file("initrd", "x").args(args);
        vmm.start().prints(&"boot 1\n".repeat(3));
    }
}

/// The process in the jail: the only child of the process that was started.
fn inside(running: &Running, name: &str) -> std::path::PathBuf {
    let pid = running.proc("");
    let tid = pid.file_name().unwrap().to_str().unwrap().to_owned();
    let children = fs::read_to_string(pid.join(format!("task/{tid}/children"))).unwrap();
    let child = children.split_whitespace().next().expect("a process in the jail");
    std::path::Path::new("/proc").join(child).join(name)
}

#[test]
fn a_jail_of_roots_has_namespaces_a_user_and_a_root_of_its_own() {
    if !is_root() {
        return eprintln!("SKIPPED: only root can do that");
    }
    let vmm = Vmm::new();
    fs::create_dir(vmm.dir().path("empty")).unwrap();
    let jail = format!("user=12345,group=23456,chroot={}", vmm.dir().path("empty").display());
    let vmm = vmm.sparse_file("disk", 1 << 20).args(["--disk", "disk"]).args(["--jail", &jail]);
    let running = vmm.guest(guests::acpi_reset).args(["--console", "log"]).start();
    // The guest resets again and again, and its log is outside the root.
    let running = running.until(|vm| {
        fs::read(vm.dir().path("log")).is_ok_and(|log| log.len() > 10 * b"boot 1\n".len())
    });
    for name in ["mnt", "pid", "ipc", "uts", "net"] {
        let namespace = |path| fs::read_link(path).unwrap();
        let (theirs, ours) =
            (inside(&running, &format!("ns/{name}")), format!("/proc/self/ns/{name}"));
        assert_ne!(namespace(theirs), namespace(ours.into()), "namespace {name}");
    }
    let status = fs::read_to_string(inside(&running, "status")).unwrap();
    let has = |line: &str| assert!(status.lines().any(|other| other == line), "{line} in {status}");
    has("Uid:\t12345\t12345\t12345\t12345");
    has("Gid:\t23456\t23456\t23456\t23456");
    has("CapEff:\t0000000000000000");
    has("CapPrm:\t0000000000000000");
    has("Seccomp:\t2");
    assert!(status.lines().any(|line| line.trim_end() == "Groups:"), "{status}");
    assert_eq!(fs::read_dir(inside(&running, "root")).unwrap().count(), 0, "an empty root");
}

#[test]
fn a_jail_can_be_in_a_network_namespace_that_is_there() {
    if !is_root() {
        return eprintln!("SKIPPED: only root can do that");
    }
    let with_namespace = "mount -t tmpfs none /run && mkdir /run/netns && touch /run/netns/own && \
        unshare --net=/run/netns/own true && stat -c %i /run/netns/own >inode && exec \"$@\"";
    let vmm = Vmm::started_by(&["unshare", "-m", "sh", "-c", with_namespace, "sh"]);
    let vmm = vmm.guest(guests::idle).args(["--jail", "user=12345,netns=own"]);
    let running = vmm.start().prints("idle");
    let own = fs::read_to_string(running.dir().path("inode")).unwrap();
    let namespace = fs::read_link(inside(&running, "ns/net")).unwrap();
    assert_eq!(namespace.to_str().unwrap(), format!("net:[{}]", own.trim()));
}

#[test]
fn a_jail_of_roots_ends_as_its_machine_does() {
    if !is_root() {
        return eprintln!("SKIPPED: only root can do that");
    }
    let jailed = |code| Vmm::new().guest(code).args(["--jail", "user=12345"]);
    jailed(guests::hello).run().exits(0).prints("hello").silently().leaves_nothing();
    let outcome = jailed(guests::marks_and_exits_with_42).args(["--boot-report=report"]).run();
    assert!(outcome.exits(42).file("report").contains("memory in KiB: guest"));
    let running = jailed(guests::obedient).start().prints("ready");
    running.signal(libc::SIGTERM);
    running.wait().exits(0).prints("button").silently().leaves_nothing();
    let running = jailed(guests::idle).start().prints("idle");
    running.signal(libc::SIGKILL);
    // The process in the jail ends with it.
    running.wait().leaves_nothing();
}

#[test]
fn a_jail_that_cannot_be_is_refused() {
    if !is_root() {
        return eprintln!("SKIPPED: only root can do that");
    }
    let refused = |jail: &str, words: &[&str]| {
        let vmm =
            Vmm::new().guest(guests::hello).args(["--console", "console.txt", "--jail", jail]);
        vmm.run().refuses(3, words);
    };
    refused("user=5,netns=no-such-net", &["network namespace", "no-such-net", "ip netns add"]);
    let vmm = Vmm::new().guest(guests::hello).args(["--jail", "user=5,chroot=/no/such/folder"]);
    vmm.run().refuses(3, &["/no/such/folder", "No such file"]);
}
