//! What makes a machine that goes on from a snapshot another one. `linux::identity` has guests with an agent.

use super::{guest, renewed, restored, save};
use crate::api::{listening, vmm};
use crate::fixture::{Dir, Vmm};

const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
/// Its bytes in SMBIOS, the first three fields little-endian (DSP0134, 7.2.1).
const BYTES: [u8; 16] = [
    0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
];
/// What is dumped.
const LEN: usize = 512;

guest!(
    /// For each byte that is typed prints the start of the SMBIOS tables, and a line.
    shows_smbios,
    r#"say "ready\n""#,
    "2: mov edx, {com1} + 5",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov edx, {com1}",
    "in al, dx",
    "cmp al, 'q'",
    "je 3f",
    "mov esi, 0xf0000",
    "dump 512",
    r#"say "shown\n""#,
    "jmp 2b",
    "3: power_off",
);

/// The tables that a machine shows.
fn smbios(vmm: Vmm) -> Vec<u8> {
    let outcome = vmm.start().types("x").prints("shown").types("q").wait().exits(0);
    let at = outcome.stdout.windows(5).position(|bytes| bytes == b"_SM3_").unwrap();
    outcome.stdout[at..at + LEN].to_vec()
}

fn has_uuid(tables: &[u8]) -> bool {
    tables.windows(16).any(|bytes| bytes == BYTES)
}

#[test]
fn a_machine_of_a_snapshot_has_a_uuid_of_its_own_unless_it_is_the_same() {
    let vmm = vmm().guest(shows_smbios).args(["--uuid", UUID]).stdin(std::process::Stdio::piped());
    let (running, client) = listening(vmm.start().prints("ready"));
    let dir = Dir::new();
    save(&client, &dir);
    drop(running);
    assert!(has_uuid(&smbios(restored(&dir))));
    let [one, other] = [(); 2].map(|()| smbios(renewed(&dir)));
    assert!(!has_uuid(&one) && !has_uuid(&other) && one != other);
}

#[test]
fn what_of_an_identity_cannot_be_new_is_one_line() {
    let (running, client) = super::counting(vmm());
    let dir = Dir::new();
    save(&client, &dir);
    drop(running);
    let outcome = renewed(&dir).start().types("x").prints("Aa").says("VMGenID");
    let outcome = outcome.types("q").wait().exits(0);
    outcome.says(&["--restore", "host name, machine-id", "without --name NAME", "CONFIG_VMGENID"]);

    let folder = Dir::new();
    let named = |vmm: Vmm| vmm.env("XDG_RUNTIME_DIR", folder.path("."));
    let (running, client) = super::counting(vmm().args(["--vsock", "path=socket"]));
    let dir = Dir::new();
    save(&client, &dir);
    drop(running);
    let clone = named(renewed(&dir)).args(["-d", "--name", "web"]).run().exits(0);
    clone.says(&["no driver of virtio-vsock"]);
    named(Vmm::new()).args(["ctl", "web", "stop"]).run().exits(0).silently();
}

#[test]
fn flags_of_an_identity_that_say_nothing_are_refused() {
    let (running, client) = super::counting(vmm());
    let dir = Dir::new();
    save(&client, &dir);
    drop(running);
    let with = |args: &[&str]| renewed(&dir).args(args).run();
    with(&["--hostname", "a", "--identity", "keep"]).refuses(3, &["--hostname", "keep"]);
    with(&["--hostname", "a b"]).refuses(2, &["--hostname", "letters"]);
    with(&["--hostname", "a", "--count", "2", "--name", "b"])
        .refuses(2, &["--hostname", "own name"]);
    Vmm::new()
        .args(["--kernel", "k", "--hostname", "a"])
        .run()
        .refuses(3, &["--hostname", "--restore"]);
}
