//! Another independent client does what its README shows: firepilot starts tinyvmm as firecracker, boots Linux from a
//! disk, pauses, resumes and stops it. `others FIRECRACKER KERNEL INITRD DISK`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Error, Result, ensure};
use firepilot::builder::drive::DriveBuilder;
use firepilot::builder::executor::FirecrackerExecutorBuilder;
use firepilot::builder::kernel::KernelBuilder;
use firepilot::builder::{Builder, Configuration};
use firepilot::machine::Machine;

/// More than any step takes in the box.
const PATIENCE: Duration = Duration::from_secs(120);
const ARGS: &str = "console=ttyS0 reboot=k panic=1 pci=off cryptomgr.notests quiet";
/// Waits until the guest's acpid listens to the power button.
const LISTENING: &str =
    "until ls -l /proc/$(pidof acpid)/fd | grep -q event; do usleep 50000; done";

/// The files that machines are made of, in a folder for those of a test.
struct Lab {
    folder: PathBuf,
    firecracker: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    disk: PathBuf,
}

/// Adds `doing` to an error that has no useful Display.
fn named<T, E: std::fmt::Debug>(result: Result<T, E>, doing: &str) -> Result<T> {
    result.map_err(|error| Error::msg(format!("{doing}: {error:?}")))
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path that is no UTF-8")?.to_owned())
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        ensure!(Instant::now() < end, "{what}: that does not come");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits until `words` are in the file at `path`.
fn wait_for_words(path: &Path, words: &str) -> Result<()> {
    let has = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(words);
    wait_for(words, || fs::read(path).is_ok_and(has))
}

impl Lab {
    /// firepilot, which copies what a machine needs to a folder and shows nothing of what the guest prints.
    async fn firepilot(&self) -> Result<()> {
        let script =
            format!("{LISTENING}; echo ready=1 | dd of=/dev/vdb conv=sync,fsync; sleep 1000");
        let data = self.folder.join("data");
        fs::File::create(&data)?.set_len(1 << 20)?;
        let kernel = KernelBuilder::new()
            .with_kernel_image_path(text(&self.kernel)?)
            .with_initrd_path(text(&self.initrd)?)
            .with_boot_args(format!("{ARGS} -- \"{script}\""));
        let drive = |id: &str, path: &Path| {
            DriveBuilder::new().with_drive_id(id.into()).with_path_on_host(path.to_owned())
        };
        let root = drive("rootfs", &self.disk).as_read_only().as_root_device();
        let executor = FirecrackerExecutorBuilder::new()
            .with_chroot(text(&self.folder)?)
            .with_exec_binary(self.firecracker.clone());
        let config = Configuration::new("simple_vm".into())
            .with_kernel(named(kernel.try_build(), "kernel")?)
            .with_executor(named(executor.try_build(), "executor")?)
            .with_drive(named(root.try_build(), "root")?)
            .with_drive(named(drive("data", &data).try_build(), "data")?);
        let mut machine = Machine::new();
        named(machine.create(config).await, "create")?;
        named(machine.start().await, "start")?;
        wait_for_words(&self.folder.join("simple_vm/data"), "ready=1")?;
        named(machine.pause().await, "pause")?;
        named(machine.resume().await, "resume")?;
        named(machine.stop().await, "stop")?;
        named(machine.kill().await, "kill")
    }
}

fn main() -> Result<()> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let mut next = || args.next().context("others FIRECRACKER KERNEL INITRD DISK");
    let (tinyvmm, kernel, initrd, disk) = (next()?, next()?, next()?, next()?);
    let folder = env::temp_dir().join(format!("others-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let firecracker = folder.join("firecracker");
    std::os::unix::fs::symlink(fs::canonicalize(tinyvmm)?, &firecracker)?;
    let lab = Lab { folder, firecracker, kernel, initrd, disk };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(lab.firepilot()).context("firepilot");
    fs::remove_dir_all(&lab.folder)?;
    result?;
    println!("others: firepilot: ok");
    Ok(())
}
