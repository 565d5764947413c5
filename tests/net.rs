//! Network cards: what they are connected to, and what is left of that. `linux::net` has guests that use them.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::fixture::Vmm;
use crate::guests;

/// Gives a network namespace an address and a default route that lead nowhere, as an offline host could do.
pub const NETWORK: &str = "ip link set lo up && ip link add out type veth peer name far && \
    ip link set out up && ip link set far up && ip address add 10.9.9.2/24 dev out && \
    ip -6 address add fd99::2/64 dev out nodad && ip route add default via 10.9.9.1 && \
    ip -6 route add default via fd99::1";

/// A tinyvmm in a network namespace of its own, after `script`; `None` where the host forbids that.
pub fn in_namespace(script: &str) -> Option<Vmm> {
    let script = format!("{script} && exec \"$@\"");
    let words = ["unshare", "-n", "sh", "-c", &script, "sh"];
    let probe = Command::new(words[0]).args(&words[1..]).arg("true").output().unwrap();
    if !probe.status.success() {
        eprintln!("SKIPPED: no network namespace can be had for a test: {probe:?}");
        return None;
    }
    Some(Vmm::started_by(&words))
}

/// The processes of passt's whose command line has `text`.
fn passts(text: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (line.starts_with("passt") && line.contains(text)).then_some(())
    });
    processes.count()
}

/// Waits until there are `count` of them.
pub fn wait_for_passts(count: usize, text: &str) {
    for _ in 0..1000 {
        if passts(text) == count {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("{} processes of passt's, not {count}", passts(text));
}

/// A machine in the user's network, and a port that names its passt.
fn in_user_network(port: &str) -> Option<Vmm> {
    let vmm = in_namespace(NETWORK)?;
    Some(vmm.args(["-p", &format!("127.0.0.1:{port}:80")]))
}

#[test]
fn passt_ends_with_the_machine_however_that_ends() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let Some(vmm) = in_user_network("40801") else { return };
        let running = vmm.guest(guests::idle).start().prints("idle");
        wait_for_passts(1, "40801");
        running.signal(signal);
        if signal == libc::SIGTERM {
            sleep(Duration::from_millis(600)); // sooner, it would be the same request
            running.signal(signal);
        }
        running.wait();
        wait_for_passts(0, "40801");
    }
}

#[test]
fn passt_gets_nothing_that_was_open_before() {
    let Some(vmm) = in_namespace(&format!("{NETWORK} && exec 9</etc/hostname")) else { return };
    let vmm = vmm.guest(guests::idle).args(["-p", "127.0.0.1:40805:80"]);
    let running = vmm.start().prints("idle");
    let all = Command::new("pgrep").args(["-f", "^passt.*40805"]).output().unwrap();
    let pid = String::from_utf8(all.stdout).unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", pid.trim())).unwrap();
    let open = open.map(|fd| fs::read_link(fd.unwrap().path()).unwrap()).collect::<Vec<_>>();
    assert!(open.len() > 3, "{open:?}");
    assert!(!open.iter().any(|path| path.ends_with("hostname")), "{open:?}");
    running.signal(libc::SIGKILL);
    running.wait();
}

#[test]
fn a_machine_lives_on_when_passt_dies() {
    let Some(vmm) = in_user_network("40803") else { return };
    let running = vmm.guest(guests::drives_a_device).start().prints("driven");
    // The first device is the card, and its thread watches the wire.
    let running = running.until(|vmm| vmm.threads().contains(&"net0".into()));
    let found = Command::new("pkill").args(["-KILL", "-f", "^passt.*40803"]).status().unwrap();
    assert!(found.success());
    let running = running.says("net0: what it is connected to is gone");
    running.signal(libc::SIGKILL);
    running.wait();
}

#[test]
fn a_jail_of_roots_has_a_network_from_outside() {
    let Some(vmm) = in_user_network("40804") else { return };
    let running = vmm.guest(guests::idle).args(["--jail", "user=12345"]).start().prints("idle");
    wait_for_passts(1, "40804");
    running.signal(libc::SIGKILL);
    running.wait();
    wait_for_passts(0, "40804");
}

#[test]
fn what_passt_lacks_is_one_line_before_the_guest_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let vmm = Vmm::new().guest(guests::hello).args(["-p", &format!("{port}:80")]);
    vmm.run().refuses(3, &["--net user", &format!("port {port} is taken"), ":80"]);
    let vmm = Vmm::new().guest(guests::hello).args(["--net", "user"]).env("PATH", "/nowhere");
    vmm.run().refuses(3, &["--net user", "passt is not installed", "install"]);
    if let Some(vmm) = in_namespace("ip link set lo up") {
        let vmm = vmm.guest(guests::hello).args(["--net", "user"]);
        vmm.run().refuses(3, &["--net user", "default route", "tap=NAME"]);
    }
}

#[test]
fn a_tap_is_used_by_one_machine_and_has_to_be_there() {
    let vmm = Vmm::new().guest(guests::hello).args(["--net", "tap=nosuchtap0"]);
    vmm.run().refuses(3, &["--net tap=nosuchtap0", "there is none", "ip tuntap add nosuchtap0"]);
    let vmm = Vmm::new().guest(guests::hello).args(["--net", "tap=lo"]);
    vmm.run().refuses(3, &["--net tap=lo", "no tap"]);
    let make = "ip tuntap add t0 mode tap && ip link set t0 up";
    if let Some(vmm) = in_namespace(make) {
        vmm.guest(guests::hello).args(["--net", "tap=t0"]).run().exits(0).prints("hello");
    }
    let twice = format!("{make} && ip link add t1 type dummy 2>/dev/null; true");
    if let Some(vmm) = in_namespace(&twice) {
        let vmm = vmm.guest(guests::hello).args(["--net", "tap=t0", "--net", "tap=t0,mtu=1400"]);
        vmm.run().refuses(2, &["--net tap=t0,mtu=1400", "twice"]);
    }
}

#[test]
fn a_descriptor_that_is_given_is_a_stream_or_a_tap() {
    let given = |end: OwnedFd| {
        let vmm = Vmm::started_by(&["sh", "-c", "exec 9<&0 </dev/null && exec \"$@\"", "sh"]);
        vmm.stdin(end).guest(guests::hello).args(["--net", "fd=9"])
    };
    let (stream, _other) = UnixStream::pair().unwrap();
    given(stream.into()).run().exits(0).prints("hello");
    let datagrams = UnixDatagram::unbound().unwrap();
    given(datagrams.into()).run().refuses(3, &["--net fd=9", "no stream"]);
    let null = fs::File::open("/dev/null").unwrap();
    given(null.into()).run().refuses(3, &["--net fd=9", "neither a socket nor a tap"]);
    let vmm = Vmm::new().guest(guests::hello).args(["--net", "fd=777"]);
    vmm.run().refuses(3, &["--net fd=777", "no descriptor 777"]);
}
