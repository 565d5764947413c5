//! Folders that a machine shares, and the processes that serve them. `linux::share` has guests that mount some.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::dir::Dir;
use crate::fixture::Vmm;
use crate::guests;

/// The processes of virtiofsd's that serve `folder`.
fn servers(folder: &str) -> Vec<u32> {
    let found = Command::new("pgrep").args(["-f", &format!("virtiofsd.*{folder}")]).output();
    let text = String::from_utf8(found.unwrap().stdout).unwrap();
    text.lines().map(|pid| pid.parse().unwrap()).collect()
}

fn wait_for_servers(folder: &str, are_there: bool) {
    for _ in 0..1000 {
        if servers(folder).is_empty() != are_there {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("processes that serve {folder}: {:?}", servers(folder));
}

#[test]
fn what_serves_a_folder_ends_with_the_machine_however_that_ends() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let folder = Dir::new();
        let path = folder.path(".").canonicalize().unwrap();
        let share = format!("{},tag=x", path.display());
        let running = Vmm::new().args(["--share", &share]).guest(guests::idle).start();
        let running = running.prints("idle");
        wait_for_servers(path.to_str().unwrap(), true);
        running.signal(signal);
        if signal == libc::SIGTERM {
            sleep(Duration::from_millis(600)); // sooner, it would be the same request
            running.signal(signal);
        }
        running.wait();
        wait_for_servers(path.to_str().unwrap(), false);
    }
}

#[test]
fn a_machine_outlives_what_serves_its_folder() {
    let folder = Dir::new();
    let path = folder.path(".").canonicalize().unwrap();
    let share = format!("{},tag=x", path.display());
    let running = Vmm::new().args(["--share", &share]).guest(guests::idle).start().prints("idle");
    for pid in servers(path.to_str().unwrap()) {
        // SAFETY: the process is one that this test has had started.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
    }
    wait_for_servers(path.to_str().unwrap(), false);
    sleep(Duration::from_millis(50));
    running.signal(libc::SIGKILL);
    running.wait();
}

#[test]
fn what_cannot_be_shared_is_refused_with_a_line() {
    let folder = Dir::new();
    fs::write(folder.path("file"), "").unwrap();
    let socket = folder.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let gone = format!("socket={},kind=blk", folder.path("none").display());
    let file = format!("{},tag=x", folder.path("file").display());
    for (flags, line) in [
        (
            &["--share", "/no/such,tag=x"][..],
            "--share /no/such,tag=x: cannot open it: No such file",
        ),
        (&["--share", &file], "it is no folder"),
        (&["--share", "/"], "say tag=NAME"),
        (&["--share", "/tmp", "--share", "/usr,tag=tmp"], "two have the tag tmp: say tag=NAME"),
        (&["--vhost-user", &gone], "kind=blk: cannot connect to it: No such file"),
        (&["--modules", "/x"], "--modules: it is for --root-dir DIR and --image"),
        (&["--root-dir", "/", "--initrd", "/dev/null"], "--root-dir and --initrd: leave one out"),
        (&["--root-dir", "/,ro"], "say DIR, DIR,rw or DIR,rw,container"),
        (&["--root-dir", "/,rw,container"], "say what a container is to run: -- COMMAND"),
        (&["--root-dir", "/", "--modules", "/var/empty-of-modules"], "it has no modules"),
        (&["--root-dir", "/", "--detach"], "nobody is at its shell"),
    ] {
        let outcome = Vmm::new().args(flags).guest(guests::idle).run();
        assert!(outcome.stderr.contains(line), "{flags:?}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn a_machine_with_a_share_is_not_saved() {
    let (runtime, folder) = (Dir::new(), Dir::new());
    let share = format!("{},tag=x", folder.path(".").display());
    let vmm = Vmm::new().env("XDG_RUNTIME_DIR", runtime.path("."));
    let running = vmm.args(["--name", "shares", "--share", &share]).guest(guests::idle).start();
    let running = running.prints("idle");
    let client = Vmm::new().env("XDG_RUNTIME_DIR", runtime.path("."));
    let snapshot = folder.path("snap");
    let outcome = client.args(["ctl", "shares", "snapshot", snapshot.to_str().unwrap()]).run();
    assert!(outcome.stderr.contains("cannot be saved"), "{}", outcome.stderr);
    assert!(!snapshot.exists());
    running.signal(libc::SIGKILL);
    running.wait();
}
