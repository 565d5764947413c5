//! virtiofsd, which serves a folder: a process with a sandbox of its own. It ends when its connection does.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt::Arguments;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{mem, ptr};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{DumpableBehavior, getegid, geteuid, set_dumpable_behavior};
use tinyvmm::config::ShareConfig;
use vmm_sys_util::tempdir::TempDir;

/// Where it is: in PATH, or where packages have it, of Rust and of QEMU until 8.0.
const PLACES: [&str; 4] =
    ["virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
const NOT_THERE: &str = "virtiofsd is not installed: install the package virtiofsd (before Debian 13 \
                         qemu-system-common has it)";

/// A process.
pub struct Virtiofsd {
    child: Child,
    /// What it writes, as far as there is room. A process that wrote into nothing would end.
    messages: UnixStream,
}

impl Virtiofsd {
    /// Starts it for `share`, and returns the connection to it.
    pub fn start(share: &ShareConfig) -> Result<(Self, UnixStream)> {
        let folder = fs::canonicalize(&share.folder).context("cannot open it")?;
        ensure!(folder.is_dir(), "it is no folder");
        fs::read_dir(&folder).context("cannot open it")?;
        // The connection that waits in its queue is the only one: nobody else gets to the folder.
        let place = TempDir::new().context("no place for a socket")?;
        let path = place.as_path().join("virtiofsd");
        let listener: OwnedFd = UnixListener::bind(&path)?.into();
        let stream = UnixStream::connect(&path)?;
        fcntl_setfd(&listener, FdFlags::empty())?; // inherited
        let (messages, its) = UnixStream::pair()?;
        its.set_nonblocking(true)?;
        messages.set_nonblocking(true)?;
        let child = spawn(&folder, share.readonly, &listener, &its.into())?;
        Ok((Self { child, messages }, stream))
    }

    /// Ends it, for it has not answered as it should, and returns why, in its own words if it has any.
    pub fn explain(&mut self, error: Error) -> Error {
        // It has ended, or hangs.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut text = Vec::new();
        let _ = self.messages.read_to_end(&mut text);
        match reason(&String::from_utf8_lossy(&text)) {
            Some(reason) => anyhow!("virtiofsd: {reason}"),
            None => error,
        }
    }
}

/// Starts the first of [`PLACES`] that is there.
fn spawn(folder: &Path, readonly: bool, listener: &OwnedFd, messages: &OwnedFd) -> Result<Child> {
    let confine = Confinement::of(folder, readonly)?;
    let folder =
        confine.copy.as_ref().map_or(folder, |copy| Path::new(OsStr::from_bytes(copy.to_bytes())));
    let mut denied = None;
    for place in PLACES {
        let mut source = OsString::from("source=");
        source.push(folder);
        let mut command = Command::new(place);
        // The words of QEMU's, which Rust's takes as well.
        command.arg(format!("--fd={}", listener.as_raw_fd())).arg("-f").arg("-o").arg(source);
        command.args(["-o", "cache=auto", "-o", "sandbox=namespace"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(messages.try_clone()?);
        if confine.is_needed() {
            let confine = confine.clone();
            // SAFETY: the function makes system calls only, with what was allocated before.
            unsafe { command.pre_exec(move || confine.enter()) };
        }
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Also where a folder of PATH is closed to this user (execvp(3)).
            Err(error) if error.kind() == ErrorKind::PermissionDenied => denied = Some(error),
            Err(error) => return Err(explain_start(error, &confine)),
        }
    }
    match denied {
        Some(error) if !PLACES[1..].iter().any(|place| Path::new(place).exists()) => {
            log::debug!("virtiofsd: {error}");
            bail!(NOT_THERE)
        }
        Some(error) => Err(explain_start(error, &confine)),
        None => bail!(NOT_THERE),
    }
}

fn explain_start(error: io::Error, confine: &Confinement) -> Error {
    match confine.is_needed() {
        true => {
            anyhow!(error).context("this host allows virtiofsd no namespaces of users or mounts")
        }
        false => anyhow!(error).context("cannot start virtiofsd"),
    }
}

/// What its process enters before the program starts.
#[derive(Clone)]
struct Confinement {
    /// A namespace of mounts, all of which are read-only: that holds whatever the program does.
    readonly: bool,
    /// A namespace of users, in which this user and group are root and nobody else is anybody.
    user: Option<(u32, u32)>,
    /// Another place for the root folder: the program makes the folder that it serves its root, and cannot where it is
    /// that already.
    copy: Option<CString>,
}

impl Confinement {
    fn of(folder: &Path, readonly: bool) -> Result<Self> {
        let (user, group) = (geteuid(), getegid());
        let user = (!user.is_root()).then(|| (user.as_raw(), group.as_raw()));
        let copy = (folder == Path::new("/")).then(|| std::env::temp_dir().into_os_string());
        let copy = copy.map(|copy| CString::new(copy.into_vec())).transpose()?;
        Ok(Self { readonly, user, copy })
    }

    fn has_mounts(&self) -> bool {
        self.readonly || self.copy.is_some()
    }

    fn is_needed(&self) -> bool {
        self.has_mounts() || self.user.is_some()
    }

    /// After fork(2): no allocation.
    fn enter(&self) -> io::Result<()> {
        let new_user = if self.user.is_some() { libc::CLONE_NEWUSER } else { 0 };
        let new_mounts = if self.has_mounts() { libc::CLONE_NEWNS } else { 0 };
        // SAFETY: the call takes flags, and this process has one thread.
        if unsafe { libc::unshare(new_user | new_mounts) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if let Some((user, group)) = self.user {
            // /proc/self is root's for a process that others may not look at; the next program is not one.
            set_dumpable_behavior(DumpableBehavior::Dumpable)?;
            write_now(c"/proc/self/setgroups", format_args!("deny"))?;
            write_now(c"/proc/self/uid_map", format_args!("0 {user} 1"))?;
            write_now(c"/proc/self/gid_map", format_args!("0 {group} 1"))?;
        }
        if self.has_mounts() {
            change_mounts(0, libc::MS_PRIVATE)?;
        }
        if let Some(copy) = &self.copy {
            rustix::mount::mount_bind_recursive(c"/", &**copy)?;
        }
        if self.readonly { change_mounts(libc::MOUNT_ATTR_RDONLY, 0) } else { Ok(()) }
    }
}

/// Gives all mounts these attributes, and how they follow those of others, if that is not 0 (Linux 5.12).
fn change_mounts(attributes: u64, propagation: u64) -> io::Result<()> {
    // SAFETY: it has numbers only, which may be zero.
    let mut all: libc::mount_attr = unsafe { mem::zeroed() };
    (all.attr_set, all.propagation) = (attributes, propagation);
    let (len, root) = (mem::size_of::<libc::mount_attr>(), c"/".as_ptr());
    let (flags, all) = (libc::AT_RECURSIVE, ptr::from_ref(&all));
    // SAFETY: the call reads a path that ends with a zero byte, and `len` bytes of attributes.
    let done =
        unsafe { libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, root, flags, all, len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes a line of at most 64 bytes into the file `path`.
fn write_now(path: &CStr, text: Arguments) -> io::Result<()> {
    let mut line = [0; 64];
    let mut room = &mut line[..];
    room.write_fmt(text)?;
    let left = room.len();
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?);
    (&file).write_all(&line[..64 - left])
}

/// The last line that says something, without the program's name and time before it.
fn reason(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.next_back()?;
    let line: String = line.chars().filter(|c| !c.is_control()).take(300).collect();
    Some(line.rsplit_once("] ").map_or(line.clone(), |(_, rest)| rest.to_owned()))
}

/// Whether one of [`PLACES`] is there.
#[cfg(feature = "image")]
pub fn is_installed() -> bool {
    let [name, places @ ..] = PLACES;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path);
    folders.any(|folder| folder.join(name).exists())
        || places.iter().any(|place| Path::new(place).exists())
}

/// Its version, as it prints it.
pub fn version() -> io::Result<String> {
    for place in PLACES {
        match Command::new(place).arg("--version").output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                return Ok(text.lines().next().unwrap_or("virtiofsd").to_owned());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(ErrorKind::NotFound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_the_last_line() {
        let rust = "[2026-01-01T00:00:00Z ERROR virtiofsd] Error entering sandbox: no\n\n";
        assert_eq!(reason(rust).unwrap(), "Error entering sandbox: no");
        assert_eq!(reason("a\nfuse: unknown option\u{7}\n").unwrap(), "fuse: unknown option");
        assert_eq!(reason(" \n"), None);
    }

    #[test]
    fn nothing_that_serves_a_read_only_folder_can_write() {
        let folder = TempDir::new().unwrap();
        for (path, readonly) in
            [(folder.as_path(), true), (Path::new("/"), true), (Path::new("/"), false)]
        {
            let share = ShareConfig { folder: path.into(), tag: "x".into(), readonly };
            let (mut process, _stream) = Virtiofsd::start(&share).unwrap();
            let mounts =
                fs::read_to_string(format!("/proc/{}/mounts", process.child.id())).unwrap();
            let options = mounts.lines().filter_map(|line| line.split(' ').nth(3));
            let all_read_only =
                options.into_iter().all(|options| options.split(',').any(|o| o == "ro"));
            assert_eq!(all_read_only, readonly, "{mounts}");
            process.explain(anyhow!("ended by the test"));
        }
    }

    #[test]
    fn what_is_no_folder_is_refused() {
        for (folder, part) in [("/dev/null", "it is no folder"), ("/no/such", "cannot open it")] {
            let share = format!("{folder},tag=x").parse().unwrap();
            let error = format!("{:#}", Virtiofsd::start(&share).err().unwrap());
            assert!(error.contains(part), "{error}");
        }
    }
}
