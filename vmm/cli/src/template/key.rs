//! What a template depends on, as a name: all that its guest has found when it booted.
//!
//! The kernel, the initrd and this program count by their contents, whose hashes are noted beside the kernels of the cache,
//! so that they are not read each time. A disk can be large, and is taken for the same by its path, size, inode and times.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::system::uname;
use serde::Serialize;
use tinyvmm::config::MachineConfig;

use crate::config::Config;
use crate::files;
use crate::kernel_cache::{self, Cache};

/// Digits of a key. 128 bits are no other's by chance, and leave room in the path of a socket.
pub const LEN: usize = 32;
/// What tells processors apart in /proc/cpuinfo. The first one stands for all.
const PROCESSOR: [&str; 6] =
    ["vendor_id", "cpu family", "model", "model name", "stepping", "flags"];
/// Enough of that file.
const MOST: u64 = 8 << 10;

#[derive(Serialize)]
struct Inputs<'a> {
    version: &'a str,
    program: String,
    /// The host's kernel, of which KVM is a part.
    host: [String; 2],
    processor: Vec<String>,
    /// As it is built: the command line says what init is added to the initrd.
    machine: MachineConfig,
    kernel: String,
    initrd: String,
    disks: Vec<String>,
}

/// The key of the template that `made` makes; `None` if a file cannot be opened, which the machine says as it starts.
pub fn of(made: &Config) -> Result<Option<String>> {
    let machine = made.machine_to_build();
    let cache = Cache::open()?;
    let open = |path: &Option<PathBuf>| files::loadable(path.as_deref()?).ok();
    let (Some(kernel), Some(initrd)) = (open(&machine.kernel), open(&machine.initrd)) else {
        return Ok(None);
    };
    let program = File::open("/proc/self/exe").context("/proc/self/exe")?;
    let uname = uname();
    let host = [uname.release(), uname.version()].map(|text| text.to_string_lossy().into_owned());
    let disks = machine.disk.iter().map(|disk| look(&disk.path));
    let inputs = Inputs {
        version: env!("CARGO_PKG_VERSION"),
        program: cache.key(&program)?,
        host,
        processor: processor()?,
        kernel: cache.key(&kernel.file)?,
        initrd: cache.key(&initrd.file)?,
        disks: disks.collect::<Result<_>>()?,
        machine: MachineConfig { kernel: None, initrd: None, ..machine },
    };
    let hash = blake3::hash(&serde_json::to_vec(&inputs)?).to_hex();
    Ok(Some(hash[..LEN].to_owned()))
}

/// By what the disk at `path` is known.
fn look(path: &Path) -> Result<String> {
    let named = || format!("disk {}", path.display());
    // O_NONBLOCK: a named pipe is not waited for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.with_context(named)?;
    ensure!(file.metadata()?.is_file(), "{}: nothing shows when a device changes", named());
    let look = kernel_cache::look(&file).with_context(named)?;
    look.with_context(|| format!("{} has changed just now", named()))
}

/// What the host's processor is.
fn processor() -> Result<Vec<String>> {
    let mut text = Vec::new();
    let file = File::open("/proc/cpuinfo").context("/proc/cpuinfo")?;
    file.take(MOST).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().take_while(|line| !line.is_empty());
    let of_model = |line: &&str| {
        line.split_once(':').is_some_and(|(name, _)| PROCESSOR.contains(&name.trim_end()))
    };
    Ok(lines.filter(of_model).map(str::to_owned).collect())
}
