//! `--root-dir`: a guest whose root is a folder of this host's. It is shared with the guest, whose agent mounts it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use tinyvmm::arch::boot::Initrd;
use tinyvmm::memory::loadable::Loadable;

use crate::command;
use crate::config::{Config, ProcessConfig, RootDir, modules};
use crate::exec::GuestCommand;

/// What the guest needs before it has its root, each after what it needs itself. What is not there is in the kernel.
const DRIVERS: [&str; 7] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_mmio.ko",
    "fs/overlayfs/overlay.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
];
const FOR_FOLDERS: [&str; 2] = ["fs/fuse/fuse.ko", "fs/fuse/virtiofs.ko"];
/// EROFS is built with a checksum that it takes from another module.
const FOR_DISKS: [&str; 4] = [
    "drivers/block/virtio_blk.ko",
    "crypto/crc32c_generic.ko",
    "lib/libcrc32c.ko",
    "fs/erofs/erofs.ko",
];
const FOR_NETWORKS: [&str; 3] =
    ["net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko"];
/// Most bytes of a driver.
const MOST: u64 = 64 << 20;

/// Checks what goes with `--root-dir`, and makes a shell of the command that is not there.
pub fn settle(config: &mut Config) -> Result<()> {
    let (machine, process) = (&config.machine.0, &mut config.process);
    let Some(root) = &process.root_dir else {
        let is_needed = process.modules.is_none() || process.has_root();
        ensure!(is_needed, "--modules: it is for --root-dir DIR and --image IMAGE");
        return Ok(());
    };
    ensure!(command::HAS_AGENT, "--root-dir: this tinyvmm is built without the agent");
    ensure!(machine.initrd.is_none(), "--root-dir and --initrd: leave one out");
    ensure!(!machine.cmdline_only, "--cmdline-only leaves no room for --root-dir: leave one out");
    let given = machine.cmdline.as_deref().unwrap_or_default();
    let has_init = given.split_ascii_whitespace().any(|word| word.starts_with("init="));
    if root.container.is_some() {
        ensure!(
            !process.command.is_empty() && !has_init,
            "--root-dir: say what a container is to run: -- COMMAND"
        );
        let long = "-- COMMAND: it is longer than 128 KiB";
        process.root_program = Some(GuestCommand::in_container(&process.command).context(long)?);
        return Ok(());
    }
    if process.command.is_empty() && !has_init {
        ensure!(
            !process.detach,
            "--root-dir: nobody is at its shell, say what it is to run: -- COMMAND"
        );
        let has_bash = root.folder.join("bin/bash").exists();
        process.command.push(if has_bash { "bash" } else { "sh" }.into());
    }
    if let (Some(folder), false) = (working_folder(&root.folder), process.command.is_empty()) {
        // In the folder that the user is in, if the guest has it.
        let script = r#"cd "$0" 2>/dev/null; exec "$@""#;
        let words = ["sh", "-c", script, &folder].map(String::from);
        process.command.splice(..0, words);
    }
    Ok(())
}

/// This process's working folder, as the guest knows it.
fn working_folder(root: &Path) -> Option<String> {
    let (here, root) = (std::env::current_dir().ok()?, fs::canonicalize(root).ok()?);
    let within = here.strip_prefix(root).ok()?;
    Some(Path::new("/").join(within).to_str()?.to_owned())
}

/// The initrd of a guest with such a root.
pub fn initrd(process: &ProcessConfig) -> Result<Option<Initrd>> {
    let (how, own, source): (_, &[&str], _) = match &process.root_dir {
        Some(RootDir { container: Some(name), .. }) => {
            (format!("container/{name}"), &FOR_FOLDERS, "--root-dir")
        }
        Some(root) if root.is_written => ("write".into(), &FOR_FOLDERS, "--root-dir"),
        Some(_) => ("overlay".into(), &FOR_FOLDERS, "--root-dir"),
        None if process.root_program.is_some() => ("disk".into(), &FOR_DISKS, "--image"),
        None => return Ok(None),
    };
    let mut files = vec![("root".to_owned(), how.into_bytes())];
    if let Some(exec) = process.root_program.as_ref().filter(|_| !process.command.is_empty()) {
        files.push(("exec".to_owned(), exec.clone()));
    }
    if let Some(given) = &process.modules {
        // No container has drivers for its network.
        let network = &FOR_NETWORKS[..if process.root_program.is_some() { 3 } else { 0 }];
        let drivers = drivers(&modules(given), &[own, network].concat())
            .with_context(|| format!("--modules {}", given.display()))?;
        let named = drivers.into_iter().enumerate();
        files.extend(named.map(|(index, driver)| (format!("modules/{index}"), driver)));
    }
    let (by_agent, has_name) = (process.by_agent, process.name.is_some());
    let archive = command::archive_of_root(&process.command, by_agent, has_name, &files);
    let mut file = File::from(memfd_create("initrd", MemfdFlags::CLOEXEC)?);
    file.write_all(&archive)?;
    let file = Loadable::new(file, format!("of {source}").into())?;
    Ok(Some(Initrd { file, prefix: Vec::new() }))
}

/// The drivers of [`DRIVERS`] and `own` that are in `folder`: one of installed modules, or the folder of a kernel's build.
fn drivers(folder: &Path, own: &[&str]) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for driver in DRIVERS.iter().chain(own) {
        for place in ["kernel", "."] {
            for packed in ["", ".xz", ".zst", ".gz"] {
                let path = folder.join(place).join([*driver, packed].concat());
                let Ok(mut file) = File::open(&path) else { continue };
                let bytes = match packed {
                    "" => fs::read(&path).map_err(Into::into),
                    _ => unpack::unpack_file(&mut file, MOST),
                };
                found.push(bytes.with_context(|| path.display().to_string())?);
            }
        }
    }
    ensure!(
        !found.is_empty() || folder.join("modules.builtin").exists(),
        "it has no modules: name a folder of /lib/modules, or of a kernel's build"
    );
    Ok(found)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn drivers_are_found_packed_or_not_in_their_order() {
        let folder = TempDir::new().unwrap();
        let place = |name: &str| {
            let path = folder.as_path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        let refused = drivers(folder.as_path(), &FOR_FOLDERS).unwrap_err().to_string();
        assert!(refused.contains("it has no modules"), "{refused}");
        fs::write(place("kernel/fs/fuse/virtiofs.ko"), "two").unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"one").unwrap();
        fs::write(place("kernel/fs/fuse/fuse.ko.gz"), packed.finish().unwrap()).unwrap();
        assert_eq!(drivers(folder.as_path(), &FOR_FOLDERS).unwrap(), [b"one", b"two"]);
        let within = TempDir::new().unwrap();
        fs::create_dir_all(within.as_path().join("lib/modules/6.1")).unwrap();
        assert_eq!(modules(within.as_path()), within.as_path().join("lib/modules/6.1"));
        fs::write(place("kernel/fs/fuse/fuse.ko.gz"), "damaged").unwrap();
        assert!(
            format!("{:#}", drivers(folder.as_path(), &FOR_FOLDERS).unwrap_err())
                .contains("fuse.ko.gz")
        );
    }
}
