//! `tinyvmm cp`: files into a guest, and out of it, with the guest's tar.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use archive::{Entry, FILE, FOLDER, HARD_LINK, LINK, Reader};
use clap::Args;
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fchmod, futimens, linkat, mkdirat,
    open, openat, openat2, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::remote::Remote;
use crate::config::machine_name;

/// The flags of `tinyvmm cp`.
#[derive(Args, Debug)]
pub struct CpOptions {
    /// A file or folder: here, or in the guest with the machine's name before it
    #[arg(value_name = "[MACHINE:]SOURCE", value_hint = clap::ValueHint::AnyPath)]
    source: String,

    /// Where it is copied to: here, or in the guest
    #[arg(value_name = "[MACHINE:]TARGET", value_hint = clap::ValueHint::AnyPath)]
    target: String,
}

/// Machine and path of `text`; one with a slash before its colon is here.
fn in_guest(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(machine, path)| machine_name(machine).is_ok() && !path.is_empty())
}

/// Copies a file or a folder into a guest or out of it.
pub fn cp(options: &CpOptions) -> Result<ExitCode> {
    let CpOptions { source, target } = options;
    match (in_guest(source), in_guest(target)) {
        (None, Some((machine, path))) => copy_in(Path::new(source), machine, path),
        (Some((machine, path)), None) => copy_out(machine, path, Path::new(target)),
        _ => bail!("{source} {target}: one is MACHINE:PATH, the other a path here"),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The folder and the name of `path`; without a name it is `.` of the folder.
fn parts(path: &Path) -> (&Path, &[u8]) {
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) if folder.as_os_str().is_empty() => {
            (Path::new("."), name.as_bytes())
        }
        (Some(folder), Some(name)) => (folder, name.as_bytes()),
        _ => (path, b"."),
    }
}

/// `path`, which a command of the guest does not take for a flag.
fn word(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.starts_with(b"-") { [b"./", bytes].concat() } else { bytes.to_vec() }
}

fn copy_in(source: &Path, machine: &str, target: &str) -> Result<()> {
    let named = || format!("{machine}:{target}");
    let found = fs::symlink_metadata(source).with_context(|| source.display().to_string())?;
    let mut test =
        Remote::start(machine, &[b"sh", b"-c", b"test -d \"$1\"", b"sh", target.as_bytes()])?;
    let is_folder = test.finish().with_context(named)? == 0;
    let absolute = std::path::absolute(source)?;
    let (folder, name) = match is_folder {
        true => (Path::new(target), parts(&absolute).1),
        false => parts(Path::new(target)),
    };
    let mut remote = Remote::start(machine, &[b"tar", b"-x", b"-f", b"-", b"-C", &word(folder)])?;
    let packed = {
        let mut out = BufWriter::with_capacity(32 << 10, &mut remote);
        pack(&mut out, source, &found, name).and_then(|()| Ok(out.flush()?))
    };
    match packed {
        // The guest knows better why it reads no more.
        Err(error) if error.root_cause().is::<io::Error>() => {
            remote.succeed().with_context(named)?;
            Err(error)
        }
        packed => packed.and_then(|()| remote.succeed().with_context(named)),
    }
}

/// Writes an archive of `source`, a file or a folder with what is in it, under the name `name`.
fn pack(out: &mut impl Write, source: &Path, found: &Metadata, name: &[u8]) -> Result<()> {
    let mut left = vec![(source.to_owned(), found.clone(), name.to_vec())];
    while let Some((path, found, name)) = left.pop() {
        let named = || path.display().to_string();
        let mut entry = Entry {
            kind: FILE,
            mode: found.permissions().mode() & 0o7777,
            mtime: found.mtime().max(0) as u64,
            name,
            ..Entry::default()
        };
        if found.is_dir() {
            entry.kind = FOLDER;
            archive::write_header(out, &entry)?;
            for inner in fs::read_dir(&path).with_context(named)? {
                let inner = inner.with_context(named)?;
                let name = [&entry.name[..], b"/", inner.file_name().as_bytes()].concat();
                left.push((inner.path(), inner.metadata().with_context(named)?, name));
            }
        } else if found.is_symlink() {
            entry.kind = LINK;
            entry.link = fs::read_link(&path).with_context(named)?.into_os_string().into_vec();
            archive::write_header(out, &entry)?;
        } else if found.is_file() {
            entry.size = found.len();
            pack_file(out, &path, &entry).with_context(named)?;
        } else {
            log::warn!("{}: left out, it is no file, folder or link", path.display());
        }
    }
    Ok(archive::write_end(out)?)
}

fn pack_file(out: &mut impl Write, path: &Path, entry: &Entry) -> Result<()> {
    let file =
        File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    archive::write_header(out, entry)?;
    let copied = io::copy(&mut file.take(entry.size), out)?;
    ensure!(copied == entry.size, "it has become shorter meanwhile, try again");
    Ok(archive::pad(out, entry.size)?)
}

fn copy_out(machine: &str, source: &str, target: &Path) -> Result<()> {
    let (folder, name) = parts(Path::new(source));
    let member = [b"./", name].concat();
    let remote =
        Remote::start(machine, &[b"tar", b"-c", b"-f", b"-", b"-C", &word(folder), &member])?;
    let (here, new_name) = match target.is_dir() {
        true => (target, name),
        false => parts(target),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(here, flags, Mode::empty()).with_context(|| here.display().to_string())?;
    let mut unpacker = Unpacker { root, from: clean(name)?, to: clean(new_name)?, left_out: 0 };
    let mut archive = Reader::new(remote);
    let unpacked = unpacker.unpack(&mut archive);
    let mut remote = archive.into_source();
    if unpacked.is_err() && !remote.has_ended() {
        return unpacked.with_context(|| format!("{machine}:{source}"));
    }
    // Why tar has failed is said first: an archive that is cut off is what comes of it.
    remote.succeed().and(unpacked).with_context(|| format!("{machine}:{source}"))?;
    if unpacker.left_out > 0 {
        log::warn!("{} devices, sockets and pipes are left out", unpacker.left_out);
    }
    Ok(())
}

/// The path without what means nothing; an error if it leads up.
fn clean(path: &[u8]) -> Result<PathBuf> {
    use std::path::Component;
    let mut out = PathBuf::new();
    for part in Path::new(std::ffi::OsStr::from_bytes(path)).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => out.push(name),
            _ => bail!(
                "the guest sends a path that leads elsewhere: {path:?}",
                path = path.escape_ascii().to_string()
            ),
        }
    }
    Ok(out)
}

/// Writes what a guest sends below a folder, whatever the guest sends.
struct Unpacker {
    root: OwnedFd,
    /// The name that was asked for, and the one that it gets.
    from: PathBuf,
    to: PathBuf,
    /// Entries that are no file, folder or link.
    left_out: u64,
}

impl Unpacker {
    fn unpack(&mut self, archive: &mut Reader<impl Read>) -> Result<()> {
        while let Some(entry) = archive.next_entry()? {
            let path = self.place(&entry.name)?;
            self.add(&entry, &path, archive).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Where an entry belongs, below the root.
    fn place(&self, name: &[u8]) -> Result<PathBuf> {
        let path = clean(name)?;
        let rest = path.strip_prefix(&self.from).ok();
        let rest =
            rest.with_context(|| format!("the guest sends what nobody has asked for: {path:?}"))?;
        Ok(self.to.join(rest))
    }

    /// Opens a folder below the root. No link is followed, not even one that was there before.
    fn folder(&self, path: &Path) -> Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&self.root, path, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS) => bail!("it takes Linux 5.6 or later to write this safely"),
            Err(Errno::LOOP | Errno::XDEV) => bail!("a link is in the way, or leads elsewhere"),
            folder => folder.with_context(|| format!("folder {}", path.display())),
        }
    }

    fn add(&mut self, entry: &Entry, path: &Path, contents: &mut impl Read) -> Result<()> {
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            ensure!(entry.kind == FOLDER, "the guest sends something else than a folder");
            return Ok(());
        };
        let parent = self.folder(parent)?;
        if [FILE, HARD_LINK, LINK].contains(&entry.kind) {
            match unlinkat(&parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => bail!("a folder is in its place"),
                Err(error) => return Err(error).context("cannot replace what is there"),
            }
        }
        match entry.kind {
            FOLDER => {
                match mkdirat(&parent, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    made => made.context("cannot make it")?,
                }
                // Its user has to write into it.
                fchmod(self.folder(path)?, mode | Mode::RWXU)?;
            }
            FILE => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mut file = File::from(openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)?);
                io::copy(contents, &mut file)?;
                fchmod(&file, mode)?;
                let time = Timespec { tv_sec: entry.mtime as i64, tv_nsec: 0 };
                // A time that this file system does not have is no reason to fail.
                let _ = futimens(&file, &Timestamps { last_access: time, last_modification: time });
            }
            LINK => symlinkat(entry.link.as_slice(), &parent, name)?,
            HARD_LINK => {
                let other = self.place(&entry.link)?;
                let (Some(folder), Some(other)) = (other.parent(), other.file_name()) else {
                    bail!("the guest sends a link to a folder")
                };
                linkat(&self.folder(folder)?, other, &parent, name, AtFlags::empty())?;
            }
            _ => self.left_out += 1,
        }
        Ok(())
    }
}
