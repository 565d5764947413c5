//! Linux's driver of vsock: streams between programs of the guest and of the host.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::{CLOUD_ELF, Console, Kernel, SMALL_ELF, disk};
use crate::api::{SOCKET, listening};
use crate::fixture::{Dir, Vmm};
use crate::guests::{self, guest};

guest!(
    /// A program for Linux: `v lPORT COMMAND...` accepts a connection at that port of AF_VSOCK, `v cPORT COMMAND...`
    /// connects to the host's, and COMMAND has the connection as its standard input and output. Its exit status is
    /// the number of an error.
    v,
    "mov rbp, rsp", // count of arguments, their addresses, 0, those of the environment
    "mov rsi, [rbp + 16]",
    "movzx r12d, byte ptr [rsi]",
    "xor ebx, ebx",
    "2: inc rsi",
    "movzx eax, byte ptr [rsi]",
    "test al, al",
    "jz 3f",
    "imul ebx, ebx, 10",
    "lea ebx, [rbx + rax - '0']",
    "jmp 2b",
    "3: mov eax, 41", // socket(AF_VSOCK, SOCK_STREAM, 0)
    "mov edi, 40",
    "mov esi, 1",
    "xor edx, edx",
    "syscall",
    "mov r13d, eax",
    "push 0", // struct sockaddr_vm
    "push 0",
    "mov word ptr [rsp], 40",
    "mov [rsp + 4], ebx",
    "mov dword ptr [rsp + 8], 2", // VMADDR_CID_HOST
    "mov eax, 42",                // connect
    "cmp r12b, 'c'",
    "je 4f",
    "mov dword ptr [rsp + 8], -1", // VMADDR_CID_ANY
    "mov eax, 49",                 // bind
    "4: mov edi, r13d",
    "mov rsi, rsp",
    "mov edx, 16",
    "syscall",
    "test eax, eax",
    "js 6f",
    "cmp r12b, 'c'",
    "je 5f",
    "mov eax, 50", // listen
    "mov edi, r13d",
    "mov esi, 1",
    "syscall",
    "mov eax, 43", // accept
    "mov edi, r13d",
    "xor esi, esi",
    "xor edx, edx",
    "syscall",
    "test eax, eax",
    "js 6f",
    "mov r14d, eax",
    "mov eax, 3", // close
    "mov edi, r13d",
    "syscall",
    "mov r13d, r14d",
    "5: mov eax, 33", // dup2
    "mov edi, r13d",
    "xor esi, esi",
    "syscall",
    "mov eax, 33",
    "mov edi, r13d",
    "mov esi, 1",
    "syscall",
    "mov eax, 3",
    "mov edi, r13d",
    "syscall",
    "mov rdi, [rbp + 24]", // execve
    "lea rsi, [rbp + 24]",
    "mov rcx, [rbp]",
    "lea rdx, [rbp + rcx * 8 + 16]",
    "mov eax, 59",
    "syscall",
    "6: mov edi, eax",
    "neg edi",
    "mov eax, 60",
    "syscall",
);

/// The program as a file: its only segment is all of it.
fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    let code = v();
    let mut file = guests::elf(&code);
    let start = BASE + (file.len() - code.len()) as u64;
    let len = file.len() as u64;
    for (at, value) in
        [(24, start), (72, 0), (80, BASE), (88, BASE), (96, len), (104, len), (112, 4096)]
    {
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(512), 0);
    file
}

const SCRIPT: &str = "cat /dev/vda >/tmp/v; chmod +x /tmp/v; \
    head -c 3000000 /dev/urandom >/tmp/data; \
    /tmp/v c52 /bin/cat /tmp/data; echo sent=$?; \
    /tmp/v l2 /bin/cmp - /tmp/data; echo differs=$?; \
    /tmp/v l1 /bin/cat; echo echoed=$?; \
    /tmp/v c53 /bin/true; echo refused=$?; \
    for i in $(seq 100); do /tmp/v l3 /bin/echo $i; done; echo done=$?";

/// A program that is connected to `port` of the guest, as soon as somebody listens there.
fn connect(path: &Path, port: u32) -> UnixStream {
    for _ in 0..10_000 {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let mut byte = [0];
        let mut line = Vec::new();
        while stream.read(&mut byte).is_ok_and(|len| len == 1) && byte != *b"\n" {
            line.extend(byte);
        }
        if line.starts_with(b"OK ") {
            return stream;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("nobody listens at port {port}");
}

fn works(kernel: Kernel) {
    let vmm = Vmm::new().file("v.img", program());
    let image = vmm.dir().path("v.img");
    let socket = vmm.dir().path("vsock");
    let listener = UnixListener::bind(vmm.dir().path("vsock_52")).unwrap();
    let [flag, value] = disk(&image, ",readonly");
    let args = ["--kernel".into(), kernel.path(), "--initrd".into(), kernel.initrd()];
    let vmm = vmm.patiently(super::IN_A_BOX).args(args).args([flag, value]);
    let vmm = vmm.args(["--vsock", "path=vsock", "--cmdline"]);
    let running = vmm.args([format!("quiet {}", super::then_run(SCRIPT))]).start();
    let mut data = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut data).unwrap();
    assert_eq!(data.len(), 3_000_000);
    let mut stream = connect(&socket, 2);
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut differences = String::new();
    stream.read_to_string(&mut differences).unwrap();
    assert_eq!(differences, "");
    // Both ways at once.
    let mut stream = connect(&socket, 1);
    let mut writer = stream.try_clone().unwrap();
    let sent = data.clone();
    let writer = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(back == data, "{} bytes came back", back.len());
    for index in 1..=100 {
        let mut line = String::new();
        connect(&socket, 3).read_to_string(&mut line).unwrap();
        assert_eq!(line, format!("{index}\n"));
    }
    let console = Console::of(&running.wait().exits(0).silently().leaves_nothing());
    console.has("sent", "0").has("differs", "0").has("echoed", "0").has("done", "0");
    console.has("refused", &libc::ECONNRESET.to_string());
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn streams_of_the_small_kernel_go_both_ways() {
    works(SMALL_ELF);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn streams_of_a_stock_kernel_go_both_ways() {
    works(CLOUD_ELF);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn connections_end_with_a_snapshot_and_new_ones_can_be_made() {
    let vmm = Vmm::new().file("v.img", program());
    let [flag, value] = disk(&vmm.dir().path("v.img"), ",readonly");
    let listener = UnixListener::bind(vmm.dir().path("vsock_52")).unwrap();
    let script = "cat /dev/vda >/tmp/v; chmod +x /tmp/v; \
        /tmp/v c52 /bin/cat; echo ended=$?; /tmp/v l3 /bin/echo again";
    let kernel = SMALL_ELF;
    let args = ["--kernel".into(), kernel.path(), "--initrd".into(), kernel.initrd()];
    let vmm = vmm.patiently(super::IN_A_BOX).args(args).args([flag, value]);
    let vmm = vmm.args(["--vsock", "path=vsock", "--api-sock", SOCKET, "--cmdline"]);
    let running = vmm.args([format!("quiet {}", super::then_run(script))]).start();
    let (mut stream, _) = listener.accept().unwrap();
    let mut back = [0; 5];
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut back).unwrap();
    let (_running, client) = listening(running);
    let dir = Dir::new();
    let snapshot = dir.path("snap").to_str().unwrap().to_owned();
    client.ctl(&["snapshot", &snapshot]).exits(0).silently();
    let copy = Vmm::new().patiently(super::IN_A_BOX).args(["--restore", &snapshot]);
    let copy = copy.args(["--vsock", "path=vsock"]).start().prints("ended=");
    let mut line = String::new();
    connect(&copy.dir().path("vsock"), 3).read_to_string(&mut line).unwrap();
    assert_eq!(line, "again\n");
    copy.wait().exits(0).silently();
}
