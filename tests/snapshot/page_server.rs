//! Machines whose memory another process provides: here a thread, as Firecracker's documentation describes it.

use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use super::counting;
use super::diff::{copy_over, create, ensure_same_ram, loaded, pause};
use crate::api::{Client, SOCKET, connect, listening, vmm};
use crate::fixture::{Dir, Running};

const PAGE: u64 = 4096;
/// Bytes of the machines' memory.
const RAM: usize = 32 << 20;
/// include/uapi/linux/userfaultfd.h
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// What a handler gets first.
fn greeted(stream: &UnixStream) -> (Vec<Value>, OwnedFd) {
    let (mut bytes, mut space) =
        ([0; 4096], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let len = recvmsg(stream, &mut parts, &mut control, RecvFlags::empty()).unwrap().bytes;
    let mut files = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let faults = files.next().unwrap();
    (serde_json::from_slice(&bytes[..len]).unwrap(), faults)
}

/// A handler that serves pages of a file until it is dropped.
struct Handler {
    served: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<OwnedFd>>,
}

impl Handler {
    fn start(dir: &Dir, memory: &str) -> Self {
        let listener = UnixListener::bind(dir.path("pages")).unwrap();
        let memory = File::open(dir.path(format!("{memory}.memory"))).unwrap();
        let (served, ends) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (served.clone(), ends.clone());
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (regions, faults) = greeted(&stream);
            while !end.load(Ordering::SeqCst) {
                if let Some(address) = fault(&faults) {
                    serve(&faults, &regions, address, &memory);
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
            faults
        });
        Self { served, ends, thread: Some(thread) }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    /// Serves no more.
    fn stop(&mut self) -> Option<OwnedFd> {
        self.ends.store(true, Ordering::SeqCst);
        self.thread.take().map(|thread| thread.join().unwrap())
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The address of a fault, if there is one soon.
fn fault(faults: &OwnedFd) -> Option<u64> {
    let soon = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    poll(&mut [PollFd::new(faults, PollFlags::IN)], Some(&soon)).unwrap();
    let mut message = [0; 32];
    let len = File::from(faults.try_clone().unwrap()).read(&mut message).ok()?;
    assert_eq!((len, message[0]), (32, UFFD_EVENT_PAGEFAULT));
    Some(u64::from_ne_bytes(message[16..24].try_into().unwrap()))
}

fn serve(faults: &OwnedFd, regions: &[Value], address: u64, memory: &File) {
    let page = address / PAGE * PAGE;
    let offset = regions.iter().find_map(|region| {
        assert_eq!((&region["page_size"], &region["page_size_kib"]), (&PAGE.into(), &PAGE.into()));
        let [base, size, offset] =
            ["base_host_virt_addr", "size", "offset"].map(|name| region[name].as_u64().unwrap());
        (base..base + size).contains(&page).then(|| page - base + offset)
    });
    let mut bytes = [0; PAGE as usize];
    memory.read_exact_at(&mut bytes, offset.unwrap()).unwrap();
    let from = bytes.as_ptr().expose_provenance() as u64;
    let mut copy = Copy { to: page, from, len: PAGE, mode: 0, copied: 0 };
    // SAFETY: the request reads a page of `bytes` and writes to this structure, and to another process's memory.
    unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
}

/// The body that loads a state with the memory of a handler.
fn load(dir: &Dir, state: &str) -> String {
    let path = |name: &str| dir.path(name).display().to_string();
    format!(
        r#"{{"snapshot_path":"{}","mem_backend":{{"backend_type":"Uffd","backend_path":"{}"}},"resume_vm":true}}"#,
        path(&format!("{state}.state")),
        path("pages")
    )
}

/// A snapshot in `dir`, `base`, of a machine that has counted once.
fn base(dir: &Dir) {
    let args = ["--mem".into(), "32M".into(), "--snapshots".into(), dir.path(".")];
    let (running, client) = counting(vmm().args(args));
    let _running = running.types("x").prints("Aa");
    pause(&client);
    create(&client, dir, "base", "Full");
}

/// A process that waits for a description.
fn waiting(dir: &Dir) -> (Running, Client) {
    let vmm = vmm().args(["--snapshots".into(), dir.path(".")]).stdin(Stdio::piped());
    listening(vmm.start())
}

/// Whether this host has userfaultfd for this user.
fn is_possible() -> bool {
    let possible = tinyvmm::memory::served::new(None).is_ok();
    if !possible {
        eprintln!("SKIPPED: this user has no userfaultfd for the kernel's faults");
    }
    possible
}

#[test]
fn a_handler_provides_the_pages_that_are_touched() {
    if !is_possible() {
        return;
    }
    let dir = Dir::new();
    base(&dir);
    let (running, client) = waiting(&dir);
    client.refuses("PUT", "/snapshot/load", &load(&dir, "base"), &["mem_backend", "pages"]);
    let handler = Handler::start(&dir, "base");
    client.does("PUT", "/snapshot/load", &load(&dir, "base"));
    let running = running.types("x").prints("Bb");
    let served = handler.served();
    assert!((1..1000).contains(&served), "{served} pages were served");
    // All of it is what the handler has, and what the guest has written.
    pause(&client);
    create(&client, &dir, "diff", "Diff");
    assert!(handler.served() < 1000, "{} pages were served", handler.served());
    create(&client, &dir, "whole", "Full");
    assert!(handler.served() > 8000, "{} pages were served", handler.served());
    client.does("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    running.types("xq").prints("Cc").wait().exits(0).silently();
    copy_over(&dir, "base", "diff");
    ensure_same_ram(&dir, "base", "whole", RAM);
    for (state, memory) in [("diff", "base"), ("whole", "whole")] {
        let (running, _client) = loaded(&dir, state, memory);
        running.types("xq").prints("Cc").wait().exits(0).silently();
    }
}

#[test]
fn a_handler_that_ends_leaves_a_machine_that_can_be_ended() {
    if !is_possible() {
        return;
    }
    for timeout in [false, true] {
        let dir = Dir::new();
        base(&dir);
        let vmm = vmm().stdin(Stdio::piped());
        let vmm = if timeout { vmm.args(["--timeout", "5s"]) } else { vmm };
        let (running, _client) = listening(vmm.start());
        let listener = UnixListener::bind(dir.path("pages")).unwrap();
        let mut request = connect(&running.dir().path(SOCKET));
        let body = load(&dir, "base");
        let head = format!("PUT /snapshot/load HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        std::io::Write::write_all(&mut request, (head + &body).as_bytes()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        drop(greeted(&stream));
        if !timeout {
            running.signal(libc::SIGTERM);
        }
        let outcome = running.wait().exits(if timeout { 7 } else { 8 });
        outcome.says(&["mem_backend", "does not answer"]);
    }
}

#[test]
fn a_handler_that_answers_no_more_keeps_no_machine_from_its_end() {
    if !is_possible() {
        return;
    }
    let dir = Dir::new();
    base(&dir);
    let (running, client) = waiting(&dir);
    let mut handler = Handler::start(&dir, "base");
    client.does("PUT", "/snapshot/load", &load(&dir, "base").replace("true", "false"));
    // It has the descriptor, and the guest waits.
    let faults = handler.stop();
    client.does("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    running.signal(libc::SIGTERM);
    running.wait().exits(8);
    drop(faults);
}
