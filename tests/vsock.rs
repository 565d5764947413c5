//! A machine's vsock device, whose other end is Unix sockets. `linux::vsock` has guests that use it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::api::{Client, SOCKET, listening};
use crate::fixture::{Dir, Running, Vmm};
use crate::guests::{self, guest};

guest!(
    /// Connects to port 52 of the host, then accepts what the host connects. Prints the operation of each packet that
    /// comes, and its data: after an 'r' it resets, after a 'q' it powers off. Its vsock device is the second one.
    vsock,
    "mov ebx, 0xd0001000",
    "virtqueues 2, 0x200000",
    "mov dword ptr [0x200000], 0x210000", // a buffer for what comes
    "mov dword ptr [0x200008], 4096",
    "mov dword ptr [0x20000c], 2",
    "mov dword ptr [0x203000], 0x220000", // a header
    "mov dword ptr [0x203008], 44",
    "mov dword ptr [0x220000], 3",
    "mov dword ptr [0x220008], 2",
    "mov dword ptr [0x220010], 99",
    "mov dword ptr [0x220014], 52",
    "mov dword ptr [0x22001c], 0x10001", // REQUEST of a stream
    "mov dword ptr [0x220024], 0x10000",
    "3: inc word ptr [0x204002]", // sends
    "mov dword ptr [rbx + 0x50], 1",
    "4: inc word ptr [0x201002]", // receives
    "mov dword ptr [rbx + 0x50], 0",
    "5: mov ax, [0x201002]",
    "cmp ax, [0x202002]",
    "jne 5b",
    r#"say "op ""#,
    "mov al, [0x21001e]",
    "add al, '0'",
    "out dx, al",
    r#"say "\n""#,
    "cmp byte ptr [0x21001e], 5",
    "je 6f",
    "cmp byte ptr [0x21001e], 1",
    "jne 4b",
    "mov eax, [0x210010]", // RESPONSE
    "mov [0x220014], eax",
    "mov eax, [0x210014]",
    "mov [0x220010], eax",
    "mov dword ptr [0x22001c], 0x20001",
    "jmp 3b",
    "6: mov esi, 0x21002c",
    "dump [0x210018]",
    "cmp byte ptr [0x21002c], 'q'",
    "je 7f",
    "cmp byte ptr [0x21002c], 'r'",
    "jne 4b",
    "out8 {reset}, 1",
    "sleep",
    "7: power_off",
);

/// A machine with `args`, in whose folder somebody listens for the guest.
fn machine(vmm: Vmm, args: &[&str]) -> (Running, UnixListener) {
    let vmm = vmm.guest(vsock).args(["--balloon", "off"]).args(args);
    let listener = UnixListener::bind(vmm.dir().path("v_52")).unwrap();
    (vmm.start(), listener)
}

/// A program that has connected to `port` of the guest.
#[track_caller]
fn connect(path: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    let mut line = [0; 14];
    stream.read_exact(&mut line).unwrap();
    let line = String::from_utf8_lossy(&line).into_owned();
    assert!(line.starts_with("OK 10737418") && line.ends_with('\n'), "{line}");
    stream
}

/// Connections both ways, and the end.
#[track_caller]
fn works(running: Running, listener: &UnixListener) -> Running {
    let (mut guest, _) = listener.accept().unwrap();
    let running = running.prints("op 2\n");
    guest.write_all(b"hello guest\n").unwrap();
    let running = running.prints("op 5\nhello guest\n");
    let mut host = connect(&running.dir().path("v"), 1024);
    host.write_all(b"hello again\n").unwrap();
    let running = running.prints("op 1\nop 5\nhello again\n");
    host.write_all(b"q").unwrap();
    running
}

#[test]
fn programs_of_guest_and_host_connect_to_each_other() {
    let (running, listener) = machine(Vmm::new(), &["--vsock", "path=v"]);
    let running = running.until(|running| running.dir().path("v").exists());
    let found = fs::symlink_metadata(running.dir().path("v")).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    works(running, &listener).wait().exits(0).silently().leaves_nothing();
}

#[test]
fn a_machine_with_a_name_says_where_its_socket_is() {
    let runtime = Dir::new();
    let vmm = Vmm::new().env("XDG_RUNTIME_DIR", &runtime.0);
    let (running, _listener) = machine(vmm, &["--name", "m", "--vsock", "path=v"]);
    let running = running.prints("op 2\n");
    let text = fs::read_to_string(runtime.path("tinyvmm/m/machine.json")).unwrap();
    let description: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(description["vsock"], running.dir().path("v").to_str().unwrap());
}

#[test]
fn a_guest_is_refused_where_nobody_listens() {
    let vmm = Vmm::new().guest(vsock).args(["--balloon", "off", "--vsock", "path=v"]);
    let running = vmm.start().prints("op 3\n");
    connect(&running.dir().path("v"), 1).write_all(b"q").unwrap();
    running.wait().exits(0).silently().leaves_nothing();
}

#[test]
fn a_reboot_ends_all_connections_and_the_next_guest_has_its_own() {
    let (running, listener) = machine(Vmm::new(), &["--vsock", "path=v"]);
    let (mut guest, _) = listener.accept().unwrap();
    let mut host = connect(&running.dir().path("v"), 1);
    host.write_all(b"r").unwrap();
    for stream in [&mut guest, &mut host] {
        let over = stream.read(&mut [0]);
        assert!(over.as_ref().map_or_else(|e| e.kind() == ErrorKind::ConnectionReset, |n| *n == 0));
    }
    works(running, &listener).wait().exits(0).leaves_nothing();
}

#[test]
fn the_socket_goes_with_the_machine_however_that_ends() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let (running, _listener) = machine(Vmm::new(), &["--vsock", "path=v"]);
        let running = running.prints("op 2\n");
        let path = running.dir().path("v");
        running.signal(signal);
        if signal == libc::SIGTERM {
            std::thread::sleep(Duration::from_millis(600)); // sooner, it would be the same request
            running.signal(signal);
        }
        let outcome = running.wait();
        for _ in 0..1000 {
            if !path.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!path.exists(), "{signal}");
        outcome.leaves_nothing();
    }
}

#[test]
fn signals_to_all_processes_of_a_terminal_leave_the_machine_its_connections() {
    let (running, listener) =
        machine(Vmm::started_by(&["setsid", "--wait"]), &["--vsock", "path=v"]);
    let (mut guest, _) = listener.accept().unwrap();
    let running = running.prints("op 2\n");
    let dialers = dialers(&running);
    assert_eq!(dialers.len(), 1, "{dialers:?}");
    for name in ["INT", "TERM", "HUP"] {
        let sent = std::process::Command::new("kill").args(["-s", name, &dialers[0]]).status();
        assert!(sent.unwrap().success());
    }
    guest.write_all(b"r").unwrap();
    let (mut guest, _) = listener.accept().unwrap();
    guest.write_all(b"q").unwrap();
    running.wait().exits(0).leaves_nothing();
}

/// The dialers that work in the folder of `running`.
fn dialers(running: &Running) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
        (name == "tinyvmm-dialer\n" && cwd == running.dir().0)
            .then(|| entry.file_name().into_string().unwrap())
    });
    processes.collect()
}

#[test]
fn the_dialer_has_nothing_and_may_do_nothing_else() {
    let wrapper = ["sh", "-c", "exec 9</etc/hostname && exec \"$@\"", "sh"];
    let (running, listener) = machine(Vmm::started_by(&wrapper), &["--vsock", "path=v"]);
    listener.accept().unwrap();
    let dialers = dialers(&running);
    let proc = Path::new("/proc").join(&dialers[0]);
    let status = fs::read_to_string(proc.join("status")).unwrap();
    assert!(status.contains("Seccomp:\t2\n") && status.contains("NoNewPrivs:\t1\n"), "{status}");
    if fs::read_dir(proc.join("fd")).is_err() {
        return eprintln!("SKIPPED: only root sees what a process has open that cannot be dumped");
    }
    let files = || -> Vec<_> {
        let open = fs::read_dir(proc.join("fd")).unwrap();
        open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect()
    };
    // The connection that it has just made is the machine's in an instant.
    let mut open = files();
    for _ in 0..1000 {
        if open.len() == 4 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
        open = files();
    }
    // The socket, the folder twice, and no error.
    let folders = open.iter().filter(|path| **path == running.dir().0).count();
    assert_eq!((open.len(), folders), (4, 2), "{open:?}");
    assert!(!open.iter().any(|path| path.ends_with("hostname")), "{open:?}");
}

#[test]
fn what_is_wrong_is_one_line() {
    let with = |value: &str| Vmm::new().guest(guests::hello).args(["--vsock", value]);
    with("v").run().refuses(2, &["--vsock", "say path=FILE"]);
    with("cid=4").run().refuses(2, &["--vsock: say path=FILE, or --name NAME"]);
    with("path=v,cid=2").run().refuses(2, &["--vsock", "cid 2", "say 3 to"]);
    with("path=no/v").run().refuses(3, &["--vsock path=no/v", "folder no"]);
    with("path=kernel").run().refuses(3, &["--vsock path=kernel", "no socket"]);
    let long = format!("path={}", "v".repeat(200));
    with(&long).run().refuses(3, &["--vsock path=vvv"]);
    let taken = with("path=v");
    let _listener = UnixListener::bind(taken.dir().path("v")).unwrap();
    taken.run().refuses(3, &["--vsock path=v", "in use by another process"]);
    // One that nobody listens at is a dead machine's.
    let stale = with("path=v");
    drop(UnixListener::bind(stale.dir().path("v")).unwrap());
    stale.run().exits(0).silently();
}

#[test]
fn a_jail_of_roots_has_a_dialer_of_its_user() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return eprintln!("SKIPPED: --jail user= takes root");
    }
    let vmm = Vmm::new();
    fs::set_permissions(&vmm.dir().0, fs::Permissions::from_mode(0o777)).unwrap();
    let vmm = vmm.args(["--jail", "user=12345"]);
    let vmm = vmm.guest(vsock).args(["--balloon", "off", "--vsock", "path=v"]);
    let listener = UnixListener::bind(vmm.dir().path("v_52")).unwrap();
    fs::set_permissions(vmm.dir().path("v_52"), fs::Permissions::from_mode(0o777)).unwrap();
    let running = vmm.start();
    let running = running.until(|running| dialers(running).len() == 1);
    let status = Path::new("/proc").join(&dialers(&running)[0]).join("status");
    let status = fs::read_to_string(status).unwrap();
    assert!(status.contains("Uid:\t12345\t12345\t12345\t12345\n"), "{status}");
    works(running, &listener).wait().exits(0).silently().leaves_nothing();
}

#[test]
fn a_machine_with_a_name_has_one_in_its_folder() {
    let vmm = Vmm::new();
    let folder = vmm.dir().path("tinyvmm/vm");
    let runtime = vmm.dir().0.clone();
    let vmm = vmm.env("XDG_RUNTIME_DIR", runtime);
    let vmm = vmm.guest(vsock).args(["--balloon", "off", "--name", "vm"]);
    let running = vmm.start().prints("op 3\n");
    connect(&folder.join("vsock"), 1024).write_all(b"q").unwrap();
    running.wait().exits(0).silently();
    assert!(!folder.exists());
}

#[test]
fn clients_of_the_api_describe_one() {
    let vmm = Vmm::new().args(["--api-sock", SOCKET, "--balloon", "off"]);
    let vmm = vmm.file("vmlinux", guests::elf(&vsock()));
    let (running, client) = listening(vmm.start());
    let put = |body: serde_json::Value| body.to_string();
    let refused = |body: serde_json::Value, words: &[&str]| {
        client.refuses("PUT", "/vsock", &body.to_string(), words);
    };
    refused(json!({"guest_cid": 2, "uds_path": "v"}), &["guest_cid 2", "say 3 to"]);
    refused(json!({"guest_cid": 3}), &["uds_path"]);
    refused(json!({"guest_cid": 3, "uds_path": "no/v"}), &["uds_path no/v", "folder no"]);
    assert_eq!(client.get("/vm/config")["vsock"], serde_json::Value::Null);
    let first = json!({"guest_cid": 9, "uds_path": "w", "vsock_id": "1"});
    client.does("PUT", "/vsock", &put(first));
    let second = json!({"guest_cid": 3, "uds_path": "v"});
    client.does("PUT", "/vsock", &put(second.clone()));
    assert_eq!(client.get("/vm/config")["vsock"], second);
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    let listener = UnixListener::bind(running.dir().path("v_52")).unwrap();
    client.does("PUT", "/metrics", r#"{"metrics_path":"metrics"}"#);
    start(&client);
    client.refuses("PUT", "/vsock", &put(second), &["after starting"]);
    let running = works(running, &listener);
    let outcome = running.wait().exits(0).silently();
    let sum = |name: &str| -> u64 {
        let line = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
        outcome.file("metrics").lines().filter_map(|text| line(text)["vsock"][name].as_u64()).sum()
    };
    for name in ["rx_packets_count", "rx_bytes_count", "tx_packets_count"] {
        assert!(sum(name) > 0, "{name}");
    }
    assert!(sum("conns_added") >= 2 && sum("conns_removed") <= sum("conns_added"));
}

fn start(client: &Client) {
    client.does("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
}

#[test]
fn a_machine_that_goes_on_from_a_snapshot_has_a_socket_of_its_own() {
    let args = ["--vsock", "path=v", "--api-sock", SOCKET];
    let (running, listener) = machine(Vmm::new(), &args);
    let (_guest, _) = listener.accept().unwrap();
    let (running, client) = listening(running.prints("op 2\n"));
    let dir = Dir::new();
    let snapshot = dir.path("snap").to_str().unwrap().to_owned();
    client.ctl(&["snapshot", &snapshot]).exits(0).silently();
    let restored = || Vmm::new().args(["--restore", &snapshot, "--identity", "keep"]);
    let copy = restored().args(["--vsock", "path=v"]).start();
    let copy = copy.until(|copy| copy.dir().path("v").exists());
    connect(&copy.dir().path("v"), 1024).write_all(b"q").unwrap();
    copy.wait().exits(0).prints("op 1\nop 5\nq").silently().leaves_nothing();
    connect(&running.dir().path("v"), 1024).write_all(b"q").unwrap();
    running.wait().exits(0);
    // Where there was none there is none.
    let (_running, client) = listening(
        Vmm::new().args(["--api-sock", SOCKET]).guest(guests::idle).start().prints("idle"),
    );
    let snapshot = dir.path("other").to_str().unwrap().to_owned();
    client.ctl(&["snapshot", &snapshot]).exits(0).silently();
    let vmm = Vmm::new().args(["--restore", &snapshot, "--vsock", "path=v"]);
    vmm.run().refuses(3, &["--restore", "--vsock: the snapshot has no such device"]);
}
