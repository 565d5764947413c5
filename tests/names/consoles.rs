//! The console of a machine with a name: its log, and those who are attached.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use super::{User, up};
use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Running, Vmm};
use crate::guests;
use crate::terminal::Terminal;

impl User {
    /// Someone who is attached, and types what is written to a pipe.
    fn attached(&self, name: &str) -> Running {
        self.vmm().args(["attach", name]).stdin(Stdio::piped()).start()
    }

    /// A connection to the console, as a program makes it.
    fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.file(name, "console.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Bytes that the machine has printed so far.
    fn printed(&self, name: &str) -> u64 {
        let log = std::fs::read(self.file(name, "console.log")).unwrap();
        let count = log.get(1 << 20..).unwrap_or_default();
        count.try_into().map_or(0, u64::from_le_bytes)
    }
}

#[test]
fn several_are_attached_at_once_and_the_terminal_goes_on() {
    let user = User::new();
    let machine = user.vmm().guest(guests::echo).args(["--name", "vm"]).stdin(Stdio::piped());
    let machine = machine.start().prints("ready");
    let (one, two) = (user.attached("vm"), user.attached("vm"));
    // A connection is made before it is served.
    let machine = machine.types("a").prints("a");
    let one = one.types("b");
    let (machine, one) = (machine.prints("b"), one.prints("b"));
    let two = two.types("c");
    let (machine, one, two) = (machine.prints("c"), one.prints("c"), two.prints("c"));
    let machine = machine.types("dq");
    let (one, two) = (one.prints("d").wait().exits(0), two.prints("d").wait().exits(0));
    assert!(one.stdout.ends_with(b"bcdq"), "{:?}", String::from_utf8_lossy(&one.stdout));
    assert!(two.stdout.ends_with(b"cdq"), "{:?}", String::from_utf8_lossy(&two.stdout));
    let machine = machine.wait().exits(0).silently();
    assert_eq!(machine.stdout, b"ready\nabcdq");
}

#[test]
fn a_console_that_goes_to_a_file_or_to_nobody_can_be_attached() {
    let user = User::new();
    let vmm = user.vmm().guest(guests::echo).args(["--name", "vm", "--console", "log"]);
    let machine = vmm.start().until(|_| user.file("vm", "api.sock").exists());
    let machine = machine.until(|_| user.printed("vm") == 6);
    user.attached("vm").types("abq").prints("abq").wait().exits(0);
    assert_eq!(machine.wait().exits(0).file("log"), "ready\nabq");
    // Nobody reads its output any more.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let vmm = user.vmm().guest(guests::echo).args(["--name", "vm"]).stdout(writer);
    let machine = vmm.start().says("Broken pipe").until(|_| user.printed("vm") >= 6);
    user.attached("vm").types("abq").prints("abq").wait().exits(0);
    machine.wait().exits(0);
}

#[test]
fn a_machine_that_starts_again_keeps_its_console() {
    let user = User::new();
    let _machine = user.machine("vm", guests::acpi_reset, "boot 1\nboot 1\n");
    let _attached = user.attached("vm").prints(&"boot 1\n".repeat(3));
    user.run(&["logs", "vm"]).exits(0).prints("boot 1\nboot 1\n");
}

#[test]
fn a_terminal_that_is_attached_has_keys() {
    let user = User::new();
    let machine = user.machine("vm", guests::echo, "ready");
    let terminal = Terminal::new();
    let attach = || {
        let vmm = Vmm::started_by(&["setsid", "--ctty", "--wait"]);
        terminal.start(vmm.env("XDG_RUNTIME_DIR", &user.0.0).args(["attach", "vm"]))
    };
    let before = terminal.settings();
    let attached = attach();
    terminal.shows("Ctrl-A h shows the keys");
    terminal.types("\x01h").shows("Ctrl-A d  leave").types("a").shows("a");
    terminal.types("\x01d");
    attached.wait().exits(0);
    assert_eq!(terminal.settings(), before, "restored");
    // It runs on: another comes, and ends it.
    let machine = machine.prints("a");
    let attached = attach();
    while !terminal.is_raw() {}
    terminal.types("\x01x");
    attached.wait().exits(0);
    machine.wait().exits(8).says(&["stopped over the API"]);
    assert_eq!(terminal.settings(), before, "restored");
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was_and_the_machine_running() {
    let user = User::new();
    let _machine = user.machine("vm", guests::echo, "ready");
    let terminal = Terminal::new();
    let before = terminal.settings();
    let shell = "echo pid $$.; exec \"$0\" \"$@\"";
    let vmm = Vmm::started_by(&["setsid", "--ctty", "--wait", "sh", "-c", shell]);
    let vmm = vmm.env("XDG_RUNTIME_DIR", &user.0.0).args(["attach", "vm"]);
    let attached = terminal.start(vmm);
    let process = terminal.shows("Ctrl-A h shows the keys").number_after("pid ");
    kill_process(Pid::from_raw(process).unwrap(), Signal::TERM).unwrap();
    attached.wait().exits(0);
    assert_eq!(terminal.settings(), before, "restored");
    assert_eq!(user.state("vm"), "running");
}

#[test]
fn a_log_is_followed_to_the_machines_end() {
    let user = User::new();
    user.detached("vm", up);
    let following = user.vmm().args(["logs", "vm", "-f"]).start().prints("up\n");
    let log = user.run(&["logs", "vm"]).exits(0).silently();
    assert_eq!(log.stdout, b"up\n", "without -f it ends at once");
    user.run(&["ctl", "vm", "stop"]).exits(0);
    assert_eq!(following.wait().exits(0).silently().stdout, b"up\n");
    let machine = user.machine("vm", guests::echo, "ready");
    let following = user.vmm().args(["logs", "vm", "-f"]).start().prints("ready");
    user.attached("vm").types("abc").prints("c").types("q").wait().exits(0);
    assert_eq!(following.wait().exits(0).silently().stdout, b"ready\nabcq", "to its last word");
    machine.wait().exits(0);
}

#[test]
fn a_log_can_be_read_while_it_is_written() {
    let user = User::new();
    let vmm = user.vmm().guest(guests::flood).args(["--name", "vm"]).stdout(Stdio::null());
    let machine = vmm.start().until(|_| user.file("vm", "console.log").exists());
    let _machine = machine.until(|_| user.printed("vm") > 0);
    for _ in 0..10 {
        let before = user.printed("vm");
        let log = user.run(&["logs", "vm"]).exits(0).silently();
        assert!(log.stdout.len() as u64 >= before && log.stdout.len() <= 1 << 20);
        assert!(log.stdout.iter().all(|byte| *byte == b'x'));
    }
}

#[test]
fn a_client_that_reads_nothing_holds_up_neither_the_guest_nor_the_others() {
    let user = User::new();
    let vmm = user.vmm().guest(guests::flood).args(["--name", "vm"]).stdout(Stdio::null());
    let machine = vmm.start().until(|_| user.file("vm", "console.sock").exists());
    let mut stuck = user.connect("vm");
    let mut other = user.connect("vm");
    // Far more than sockets have room for.
    let mut read = 0;
    while read < 384 << 10 {
        read += other.read(&mut [0; 65536]).unwrap();
    }
    let (before, rss) = (user.printed("vm"), machine.rss_kib());
    let machine = machine.until(|_| user.printed("vm") > before + (64 << 10));
    let growth = machine.rss_kib().saturating_sub(rss);
    assert!(growth < 512, "{growth} KiB more");
    // When it reads again, it sees that something is missing.
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("output is missing here") {
        let mut piece = [0; 65536];
        let len = stuck.read(&mut piece).unwrap();
        assert!(len > 0, "it is still served");
        seen.extend(&piece[..len]);
        assert!(seen.len() < 64 << 20);
    }
    // Nor does one that types what the guest never reads.
    other.set_nonblocking(true).unwrap();
    let before = user.printed("vm");
    for _ in 0..1024 {
        let _ = other.write(&[b'y'; 4096]);
        let _ = other.read(&mut [0; 65536]);
    }
    machine.until(|_| user.printed("vm") > before + (16 << 10));
}

#[test]
fn more_than_sixteen_are_not_attached() {
    let user = User::new();
    let machine = user.machine("vm", guests::echo, "ready");
    let mut all: Vec<_> = (0..16).map(|_| user.connect("vm")).collect();
    for stream in &mut all {
        // Served, in their order.
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    user.attached("vm").prints("too many are attached").wait().exits(0);
    drop(all.pop());
    let mut last = user.connect("vm");
    last.write_all(b"z").unwrap();
    last.read_exact(&mut [0]).unwrap();
    machine.prints("z");
}

#[test]
fn the_thread_that_serves_them_is_in_a_jail() {
    let user = User::new();
    let machine = user.machine("vm", guests::idle, "idle");
    let tasks = std::fs::read_dir(machine.proc("task")).unwrap();
    let status = tasks
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .find(|status| status.starts_with("Name:\tattach\n"));
    assert!(status.expect("a thread").contains("Seccomp:\t2\n"));
    drop(machine);
    let vmm = user.vmm().guest(guests::idle).args(["--name", "vm"]);
    let outcome = vmm.env("TINYVMM_BREAK_OUT", "Attach").run().exits(10);
    outcome.says(&["the jail", "thread attach made the system call openat (257)"]);
}
