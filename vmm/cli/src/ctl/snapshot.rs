//! `tinyvmm ctl NAME snapshot DIR`: the client makes the files, and sends them to the machine, which may open none.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tinyvmm::config::MachineConfig;

use super::{MAX_BYTES, ask, get, read_answer};
use crate::disks;
use crate::snapshot::{DESCRIPTION, STATE, image};

/// Makes a snapshot of the machine that listens at `socket`, and ends the machine if it is to `stop`.
pub fn make(socket: &Path, folder: &Path, stop: bool, with_disks: bool) -> Result<()> {
    let named = || format!("snapshot {}", folder.display());
    ensure!(!folder.try_exists()?, "{}: it exists already, name a new folder", named());
    let names = get(socket, "/tinyvmm/snapshot")?;
    let names: Vec<String> = serde_json::from_value(names).context("it knows no snapshots")?;
    let new = New::make(folder).with_context(named)?;
    let files = names.iter().map(|name| new.file(name)).collect::<Result<Vec<_>>>();
    let files = files.with_context(named)?;
    // Nothing of the guest's comes after the snapshot that it ends with, or is in a copy of a disk but not in the memory.
    let pauses = (stop || with_disks) && get(socket, "/")?["state"] == "Running";
    if pauses {
        set_state(socket, "Paused")?;
    }
    let made = send(socket, &files).and_then(|description| {
        if with_disks {
            copy_disks(&new, &description)?;
        }
        let mut file = new.file(DESCRIPTION)?;
        file.write_all(format!("{description:#}\n").as_bytes())?;
        file.sync_all()?;
        new.keep(folder)
    });
    if pauses && (made.is_err() || !stop) {
        set_state(socket, "Resumed")?;
    }
    made.with_context(named)?;
    if stop {
        ask(socket, super::PATIENCE, "PUT", "/tinyvmm/stop", None)?;
    }
    Ok(())
}

/// Copies the disks of the machine with that description, which is paused.
fn copy_disks(new: &New, description: &Value) -> Result<()> {
    let machine: MachineConfig = serde_json::from_value(description.clone())?;
    for (index, disk) in machine.disk.iter().enumerate() {
        let copy = || -> Result<()> {
            let (from, to) =
                (File::open(&disk.path)?, new.file(&(STATE.to_owned() + &image(index)))?);
            disks::copy_image(&from, &to)?;
            Ok(to.sync_all()?)
        };
        copy().with_context(|| format!("disk {}", disk.path.display()))?;
    }
    Ok(())
}

fn set_state(socket: &Path, state: &str) -> Result<()> {
    let body = serde_json::json!({ "state": state });
    ask(socket, super::PATIENCE, "PATCH", "/vm", Some(&body)).map(drop)
}

/// A folder that becomes a snapshot, or is removed.
struct New(Option<PathBuf>);

impl New {
    /// Makes it beside `folder`.
    fn make(folder: &Path) -> Result<Self> {
        let name = folder.file_name().context("name a folder")?.to_string_lossy();
        let path = folder.with_file_name(format!(".{name}.{}", std::process::id()));
        // Guest memory has secrets.
        DirBuilder::new().mode(0o700).create(&path).context("cannot make a folder beside it")?;
        Ok(Self(Some(path)))
    }

    fn file(&self, name: &str) -> Result<File> {
        let path = self.0.as_deref().unwrap_or(Path::new("")).join(name);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        file.with_context(|| path.display().to_string())
    }

    /// Gives it its name.
    fn keep(mut self, folder: &Path) -> Result<()> {
        if let Some(path) = &self.0 {
            File::open(path)?.sync_all()?;
            renameat_with(CWD, path, CWD, folder, RenameFlags::NOREPLACE)?;
            self.0 = None;
            let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_dir_all(path)
        {
            log::warn!("{}: {error}", path.display());
        }
    }
}

/// Makes the request with `files`; returns the machine's description.
fn send(socket: &Path, files: &[File]) -> Result<Value> {
    let stream = UnixStream::connect(socket).context("no machine listens there")?;
    let request = b"PUT /tinyvmm/snapshot HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&fds)), "too many files");
    let sent = sendmsg(&stream, &[IoSlice::new(request)], &mut control, SendFlags::empty())?;
    ensure!(sent == request.len(), "the machine takes no request");
    let mut answer = Vec::new();
    // However long it takes: memory can be large, and its disk slow.
    stream.take(MAX_BYTES).read_to_end(&mut answer).context("no answer")?;
    read_answer(&answer)
}
