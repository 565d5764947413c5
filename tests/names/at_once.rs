//! Machines with a name and a network each, many at once and many in turn.

use std::fs;

use super::User;
use crate::fixture::Vmm;
use crate::guests::{self, guest};
use crate::net::{NETWORK, in_namespace, wait_for_passts};

guest!(
    /// Asks by ARP who is 10.9.9.1, prints "answered" when it knows, and sleeps for ever.
    asks,
    "mov ebx, 0xd0000000",
    "virtqueues 2, 0x300000",
    "mov dword ptr [0x300000], 0x310000", // a buffer to be written, and a frame after its header
    "mov dword ptr [0x300008], 2048",
    "mov word ptr [0x30000c], 2",
    "mov dword ptr [0x303000], 0x320000",
    "mov dword ptr [0x303008], 12 + 42",
    "lea rsi, [rip + 5f]",
    "mov edi, 0x32000c",
    "mov ecx, 42",
    "rep movsb",
    "mov dword ptr [0x301000], 0x10000", // one chain each, the first
    "mov dword ptr [0x304000], 0x10000",
    "mov dword ptr [rbx + 0x50], 0",
    "mov dword ptr [rbx + 0x50], 1",
    "3: pause",
    "cmp byte ptr [0x310000 + 12 + 21], 2", // the operation: a reply
    "jne 3b",
    r#"say "answered\n""#,
    "sleep",
    "5: .byte 255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6",
    ".byte 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 9, 9, 2, 0, 0, 0, 0, 0, 0, 10, 9, 9, 1",
);

/// So many machines run at once,
const MACHINES: usize = 10;
/// so many times.
const ROUNDS: usize = 20;

#[test]
fn ten_at_once_have_a_network_each_and_two_hundred_leave_nothing() {
    let user = User::new();
    let Some(other) = in_namespace(NETWORK) else { return };
    let other = other.guest(guests::idle).start().prints("idle");
    let namespace = format!("--net={}", other.proc("ns/net").display());
    let sockets = || fs::read_to_string(other.proc("net/unix")).unwrap().lines().count();
    let before = sockets();
    let start = |n: usize| {
        let vmm = Vmm::started_by(&["nsenter", &namespace]).env("XDG_RUNTIME_DIR", &user.0.0);
        let port = format!("127.0.0.1:4090{n}:80");
        vmm.guest(asks).args(["--name", &format!("m{n}"), "--mem", "16M", "-p", &port]).start()
    };
    let stop = |n: usize| user.run(&["stop", &format!("m{n}"), "--timeout", "0s"]).exits(0);
    let is_killed = |round: usize, n: usize| (round + n).is_multiple_of(2);
    for round in 0..ROUNDS {
        let all: Vec<_> = (0..MACHINES).map(start).collect();
        let all: Vec<_> = all.into_iter().map(|running| running.prints("answered")).collect();
        wait_for_passts(MACHINES, "/4090");
        for (n, running) in all.into_iter().enumerate() {
            if is_killed(round, n) {
                running.signal(libc::SIGKILL);
            } else {
                stop(n);
            }
            running.wait();
        }
        wait_for_passts(0, "/4090");
    }
    let killed = (0..MACHINES).filter(|n| is_killed(ROUNDS - 1, *n));
    // The folder of a machine that was killed is its name's next machine's, or removed.
    assert_eq!(user.folders().len(), killed.clone().count(), "{:?}", user.folders());
    killed.for_each(|n| drop(stop(n)));
    assert!(user.folders().is_empty(), "{:?}", user.folders());
    assert_eq!(sockets(), before);
}
