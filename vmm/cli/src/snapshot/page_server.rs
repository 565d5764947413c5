//! The process that provides a snapshot's memory, as Firecracker's documentation has it
//! (docs/snapshotting/handling-page-faults-on-snapshot-resume.md): it listens at a Unix socket, and gets a list of the
//! regions with a userfaultfd, by which it serves faults from then on.

use std::fs::{self, File};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use serde_json::{Value, json};
use tinyvmm::memory::GuestRam;
use tinyvmm::memory::served::{self, ServedRegion};

/// A connection to such a process. While there is this, pages that it does not provide are waited for, also when it has
/// ended: without it they would be zero.
pub struct PageServer {
    path: PathBuf,
    socket: OwnedFd,
    faults: OwnedFd,
}

impl PageServer {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let named = || format!("mem_backend: {}", path.display());
        // A listener that accepts nobody is not waited for.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path).with_context(named)?)
            .with_context(|| format!("{}: nobody listens there", named()))?;
        let faults = new_userfaultfd().context(
            "mem_backend: Uffd takes userfaultfd: give this user /dev/userfaultfd (setfacl -m u:USER:rw /dev/userfaultfd), \
             set the sysctl vm.unprivileged_userfaultfd to 1, or say File",
        )?;
        Ok(Self { path: path.to_owned(), socket, faults })
    }

    /// Has the process provide the pages of `ram`, which is new.
    pub fn serve(&self, ram: &GuestRam, hugepages: bool) -> Result<()> {
        let regions = served::register(ram, &self.faults, hugepages)?;
        let list: Value = regions.iter().map(describe).collect();
        let list = list.to_string();
        let files = [self.faults.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let bytes = [IoSlice::new(list.as_bytes())];
        let sent = sendmsg(&self.socket, &bytes, &mut control, SendFlags::NOSIGNAL);
        let named = || format!("mem_backend: {}", self.path.display());
        ensure!(sent.with_context(named)? == list.len(), "{}: it takes no message", named());
        Ok(())
    }
}

/// `page_size_kib` has bytes, too: so it is in Firecracker, and handlers know that.
fn describe(region: &ServedRegion) -> Value {
    json!({
        "base_host_virt_addr": region.address,
        "size": region.len,
        "offset": region.offset,
        "page_size": region.page,
        "page_size_kib": region.page,
    })
}

/// By the system call, or where that is forbidden by the device.
fn new_userfaultfd() -> Result<OwnedFd> {
    const DEVICE: &str = "/dev/userfaultfd";
    served::new(None).or_else(|error| match fs::exists(DEVICE) {
        Ok(true) => {
            let device = File::options().read(true).write(true).open(DEVICE).context(DEVICE)?;
            served::new(Some(&device)).context(DEVICE)
        }
        _ => Err(error),
    })
}
