//! Unix sockets at a path: only their owner can connect, and they are removed at the end.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, Mode, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::umask;

/// A listening socket.
pub struct Socket {
    /// Non-blocking.
    pub listener: UnixListener,
    /// Where it is.
    pub place: SocketPath,
}

/// The path of a socket.
pub struct SocketPath {
    folder: File,
    name: OsString,
    /// Device and inode, to recognize the socket.
    id: (u64, u64),
}

impl SocketPath {
    /// The socket that is there as `name` in `folder`.
    pub fn find(folder: File, name: OsString) -> Result<Self> {
        let found = statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self { folder, name, id: (found.st_dev, found.st_ino) })
    }

    /// The folder that it is in.
    pub fn folder(&self) -> &File {
        &self.folder
    }

    /// Its name there.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Removes the socket, unless another file is at its path.
    pub fn remove(&self) {
        let Ok(found) = statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        if (found.st_dev, found.st_ino) == self.id
            && let Err(error) = unlinkat(&self.folder, &self.name, AtFlags::empty())
        {
            log::warn!("the socket {} stays: {error}", self.name.display());
        }
    }
}

/// Listens at `path`, mode 0600. An existing file is replaced only if it is a socket without a listener.
pub fn listen(path: &Path) -> Result<Socket> {
    let name = path.file_name().context("name a file")?.to_owned();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.map_or_else(|| PathBuf::from("."), Path::to_owned);
    let folder = File::open(&folder).with_context(|| format!("folder {}", folder.display()))?;
    // The lock keeps two processes from taking each other's new socket for a stale one.
    let lock = folder.try_clone()?;
    wait_for_lock(&lock)?;
    remove_stale(path)?;
    let before = umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener.context("cannot listen there")?;
    let _ = lock.unlock();
    listener.set_nonblocking(true)?;
    Ok(Socket { listener, place: SocketPath::find(folder, name)? })
}

fn wait_for_lock(folder: &File) -> Result<()> {
    for _ in 0..200 {
        if folder.try_lock().is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("another process keeps its folder locked (flock)")
}

fn remove_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(found) => ensure!(
            found.file_type().is_socket(),
            "something is there that is no socket: name another path"
        ),
    }
    // Non-blocking: the queue of a busy listener is full.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(fs::remove_file(path)?),
        Ok(()) | Err(Errno::AGAIN) => bail!("in use by another process: name another path"),
        Err(error) => bail!("cannot find out whether it is in use: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tinyvmm-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = folder("stale");
        let path = folder.join("api.sock");
        let first = listen(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = listen(&path).err().unwrap();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(first); // without removing it, as a process that was killed
        let second = listen(&path).unwrap();
        // Another process's file at the path stays.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        second.place.remove();
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert!(listen(&path).err().unwrap().to_string().contains("no socket"));
        fs::remove_file(&path).unwrap();
        listen(&path).unwrap().place.remove();
        assert!(!path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn no_symbolic_link_is_followed() {
        let folder = folder("link");
        let (path, target) = (folder.join("api.sock"), folder.join("target"));
        symlink(&target, &path).unwrap();
        assert!(listen(&path).is_err());
        assert!(!target.exists());
        // Nor is a link to a stale socket followed.
        drop(UnixListener::bind(&target).unwrap());
        assert!(listen(&path).is_err());
        assert!(target.exists() && path.is_symlink());
        fs::remove_dir_all(folder).unwrap();
    }
}
