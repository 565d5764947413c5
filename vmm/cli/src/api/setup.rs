//! The description of a machine over the API, until its start.

mod interfaces;
mod load;
mod shown;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::bodies::{self, BalloonBody, BootSource, Drive, Entropy, HugePages, MemoryHotplug};
use super::routes::Configure;
use tinyvmm::arch::cmdline;
use tinyvmm::config::{
    BalloonConfig, BalloonFeatures, CpuTemplate, Cpus, DiskConfig, MachineConfig, Mem, RateLimit,
    Size,
};
use tinyvmm::layout;

use crate::config::{Config, ConsoleConfig};
use crate::jail::landlock::AllowedPath;
use crate::{disks, files, socket};

/// Most CPUs over the API; `--cpus` can be more.
const MAX_CPUS: u32 = 32;
/// Smallest slot that clients can ask for.
const MIN_SLOT_MIB: u64 = 128;

/// The configuration of the flags, with the API's changes.
#[derive(Clone)]
pub(super) struct Setup {
    /// Has the API's memory, CPUs, network cards, balloon and console, too.
    config: Config,
    boot_source: Option<BootSource>,
    drives: Vec<Drive>,
    /// The names of the last cards: the ones before are those of flags.
    interfaces: Vec<String>,
    /// Seconds between statistics of the balloon.
    interval: u16,
    /// A client has asked for a balloon: a machine has one in any case.
    has_balloon: bool,
    /// What a client has said of the device of random numbers, which a machine has in any case.
    entropy: Option<Entropy>,
    /// The size of slots that a client has named, in MiB.
    slot: Option<u64>,
    /// What a client has said of it, which changes nothing.
    track_dirty_pages: bool,
}

impl Setup {
    /// Starts with the flags' configuration.
    pub(super) fn new(config: &Config) -> Self {
        let mut config = config.clone();
        // As in Firecracker, a reset ends the machine.
        config.process.no_reboot |= config.machine.0.kernel.is_none();
        let limit = config.machine.0.entropy_limit;
        let entropy = limit.is_limit().then_some(Entropy { rate_limiter: Some(limit) });
        let (boot_source, drives, interfaces) = Default::default();
        let (interval, has_balloon, slot, track_dirty_pages) = Default::default();
        Self {
            config,
            boot_source,
            drives,
            interfaces,
            interval,
            has_balloon,
            entropy,
            slot,
            track_dirty_pages,
        }
    }

    /// The configuration so far.
    pub(super) fn config(&self) -> Config {
        let mut whole = self.config.clone();
        let config = &mut whole.machine.0;
        let mut root = String::new();
        for drive in &self.drives {
            let Some(disk) = disk(drive) else { continue };
            if drive.is_root_device {
                let how = if drive.is_read_only { "ro" } else { "rw" };
                root = match &drive.partuuid {
                    Some(partition) => format!(" root=PARTUUID={partition} {how}"),
                    None => format!(" root=/dev/vda {how}"),
                };
                config.disk.insert(0, disk);
            } else {
                config.disk.push(disk);
            }
        }
        if let Some(source) = &self.boot_source {
            config.kernel = Some(source.kernel_image_path.clone());
            config.initrd = source.initrd_path.clone();
            if let Some(args) = &source.boot_args {
                // Arguments after ` -- ` are init's.
                let (kernel, init) = cmdline::split(args);
                config.cmdline = Some(format!("{kernel}{root}{init}"));
                (config.cmdline_only, config.cmdline_devices) = (true, true);
            }
        }
        whole
    }

    /// Checks that nothing is missing for the start.
    pub(super) fn check_complete(&self) -> Result<()> {
        ensure!(
            self.config().machine.0.kernel.is_some(),
            "no kernel: name one with PUT /boot-source"
        );
        Ok(())
    }

    /// Applies all of `what`, or nothing.
    pub(super) fn change(&mut self, what: Configure) -> Result<()> {
        let mut next = self.clone();
        match what {
            Configure::BootSource(source) => {
                check_files(&source)?;
                next.boot_source = Some(source);
            }
            Configure::Machine(machine) => next.set_machine(&machine)?,
            Configure::PartialMachine(part) => {
                next.set_machine(&part.applied_to(self.machine()))?;
            }
            Configure::Drive(drive) => next.set_drive(drive)?,
            Configure::Interface(interface) => next.set_interface(&interface)?,
            Configure::Balloon(balloon) => next.set_balloon(&balloon)?,
            Configure::Memory(memory) => next.set_memory(memory)?,
            // The machine has the device in any case.
            Configure::Entropy(entropy) => {
                next.config.machine.0.entropy_limit = entropy.rate_limiter.unwrap_or_default();
                next.entropy = Some(entropy);
            }
            Configure::Serial(serial) => {
                let limit = RateLimit { bandwidth: serial.rate_limiter, ops: None };
                next.config.process.console_limit = Some(limit);
                if let Some(path) = serial.serial_out_path {
                    next.config.process.console = ConsoleConfig::File(path);
                }
            }
            Configure::Cpu(cpu) => next.config.machine.0.cpu_template = cpu.template()?,
            Configure::Vsock(vsock) => {
                // Listens for a moment, so that an error is reported now.
                let place = socket::listen(&vsock.uds_path).map(|socket| socket.place);
                let named = || format!("uds_path {}", vsock.uds_path.display());
                let place = place.with_context(named)?;
                place.remove();
                next.config.machine.0.vsock = Some(vsock.device()?);
            }
            Configure::Logger(_) | Configure::Metrics(_) => {}
        }
        next.config().machine.0.validate()?;
        *self = next;
        Ok(())
    }

    fn set_machine(&mut self, machine: &bodies::MachineConfiguration) -> Result<()> {
        let count = machine.vcpu_count;
        ensure!(
            (1..=MAX_CPUS).contains(&count)
                && (!machine.smt || count == 1 || count.is_multiple_of(2)),
            "The number of vCPUs must be greater than 0, less than {MAX_CPUS} and must be 1 or an even number if SMT is \
             enabled. vcpu_count {count}: {MAX_CPUS} are allowed, too"
        );
        match machine.cpu_template.as_deref() {
            None => {}
            Some("None") => self.config.machine.0.cpu_template = CpuTemplate::default(),
            Some(name) => bail!(
                "cpu_template {name}: it is for some processors of one maker only, PUT what it changes to /cpu-config"
            ),
        }
        let is_huge = machine.huge_pages == HugePages::TwoMib;
        ensure!(
            machine.mem_size_mib > 0 && !(is_huge && machine.mem_size_mib % 2 == 1),
            "The memory size (MiB) is either 0, or not a multiple of the configured page size. mem_size_mib {}",
            machine.mem_size_mib
        );
        let bytes = machine.mem_size_mib.checked_mul(layout::MIB);
        let bytes = bytes.with_context(|| format!("mem_size_mib {}", machine.mem_size_mib))?;
        let threads = if machine.smt && count > 1 { 2 } else { 1 };
        self.config.machine.0.cpus = Cpus { sockets: 1, cores: count / threads, threads };
        self.config.machine.0.mem.boot = Size::new(bytes);
        self.config.machine.0.hugepages = is_huge;
        self.track_dirty_pages = machine.track_dirty_pages;
        Ok(())
    }

    fn set_drive(&mut self, drive: Drive) -> Result<()> {
        drive.check()?;
        let id = drive.drive_id.clone();
        let disk = disk(&drive).context("path_on_host is required")?;
        ensure!(self.ids_of_flags().all(|other| other != id), "drive_id: a disk of flags has it");
        let is_root = |other: &Drive| other.is_root_device && other.drive_id != id;
        if drive.is_root_device && self.drives.iter().any(is_root) {
            bail!("A root block device already exists! is_root_device: there can be one");
        }
        ensure!(
            drive.partuuid.as_ref().is_none_or(|uuid| uuid.chars().all(|c| c.is_ascii_graphic())),
            "partuuid: it has characters that a kernel command line cannot have"
        );
        // Opened and closed, so that an error is reported now.
        disks::open(&disk)?;
        match self.drives.iter_mut().find(|other| other.drive_id == id) {
            Some(known) => *known = drive,
            None => self.drives.push(drive),
        }
        Ok(())
    }

    /// The paths in which the main thread opens files while the machine runs: the folders of drives that are files, and
    /// drives that are devices. Empty unless clients, or a file in the API's terms, have described the machine.
    pub(super) fn places(&self) -> Result<Vec<AllowedPath>> {
        let described = self.drives.iter().filter(|_| self.boot_source.is_some());
        let mut places = Vec::new();
        for drive in described {
            // The file may be gone by now; then it cannot be opened again.
            let path = drive.path_on_host.as_deref().unwrap_or(Path::new(""));
            let Ok(real) = path.canonicalize() else { continue };
            // A link and its target may be in different folders.
            let given = std::path::absolute(path)?.parent().map(Path::canonicalize);
            let found = match real.is_file() {
                true => [given.and_then(Result::ok), real.parent().map(Path::to_owned)],
                false => [Some(real), None],
            };
            // The root folder would allow everything, unless it is a chroot that was made for this machine: a
            // system's has /proc.
            let may_be =
                |place: &PathBuf| place.parent().is_some() || !Path::new("/proc/self").exists();
            for place in found.into_iter().flatten().filter(may_be) {
                places.push(AllowedPath::new(&place, !drive.is_read_only)?);
            }
        }
        Ok(places)
    }

    /// The names of the flags' disks.
    fn ids_of_flags(&self) -> impl Iterator<Item = String> {
        self.config.machine.0.disk.iter().enumerate().map(|(index, disk)| disk.name(index))
    }

    /// The names of all drives, in the order of the machine's disks.
    pub(super) fn drive_ids(&self) -> Vec<String> {
        let ids = |root| {
            let drives = self.drives.iter().filter(move |drive| drive.is_root_device == root);
            drives.map(|drive| drive.drive_id.clone())
        };
        ids(true).chain(self.ids_of_flags()).chain(ids(false)).collect()
    }

    /// PATCH /drives/{id}: the drive of this name that clients have described.
    pub(super) fn drive_mut(&mut self, id: &str) -> Option<&mut Drive> {
        self.drives.iter_mut().find(|drive| drive.drive_id == id)
    }

    /// PATCH /drives/{id}: changes the limits of the disk with this index; returns the result.
    pub(super) fn update_limit(&mut self, id: &str, index: usize, update: RateLimit) -> RateLimit {
        let limit = match self.drives.iter_mut().find(|drive| drive.drive_id == id) {
            Some(drive) => drive.rate_limiter.get_or_insert_default(),
            None => {
                // Drives with the root come before those of flags.
                let before = self.drives.iter().filter(|drive| drive.is_root_device).count();
                let Some(disk) = self.config.machine.0.disk.get_mut(index.saturating_sub(before))
                else {
                    return update;
                };
                &mut disk.limit
            }
        };
        *limit = limit.updated(update);
        *limit
    }

    fn set_balloon(&mut self, balloon: &BalloonBody) -> Result<()> {
        self.set_balloon_size(balloon.amount_mib)?;
        self.interval = balloon.stats_polling_interval_s;
        self.has_balloon = true;
        self.config.machine.0.balloon_features = BalloonFeatures {
            deflate_on_oom: balloon.deflate_on_oom,
            statistics: self.interval != 0,
            reporting: balloon.free_page_reporting,
            hinting: balloon.free_page_hinting,
        };
        Ok(())
    }

    /// Each block has a slot of its own: the size of slots is only shown.
    fn set_memory(&mut self, memory: MemoryHotplug) -> Result<()> {
        let bytes = |name: &str, mib: u64| {
            let bytes = mib.checked_mul(layout::MIB).filter(|bytes| *bytes > 0);
            bytes.with_context(|| {
                format!("{name} {mib}: out of range, say more than 0 and less than 2^44")
            })
        };
        if let Some(slot) =
            memory.slot_size_mib.filter(|_| memory.slot_size_mib != memory.block_size_mib)
        {
            ensure!(slot >= MIN_SLOT_MIB, "slot_size_mib {slot}: say {MIN_SLOT_MIB} or more");
        }
        let block = memory.block_size_mib.map(|mib| bytes("block_size_mib", mib)).transpose()?;
        // Firecracker's default for both.
        let least = memory.block_size_mib.map_or(MIN_SLOT_MIB, |block| block.max(MIN_SLOT_MIB));
        self.slot = Some(memory.slot_size_mib.unwrap_or(least));
        let more = Size::new(bytes("total_size_mib", memory.total_size_mib)?);
        self.config.machine.0.mem = Mem { more, block, ..self.config.machine.0.mem };
        Ok(())
    }

    fn set_balloon_size(&mut self, mib: u64) -> Result<()> {
        ensure!(!self.config.machine.0.hugepages, "a machine with huge_pages has no balloon");
        self.config.machine.0.balloon =
            BalloonConfig::Target(balloon_size(mib, &self.config.machine.0)?);
        Ok(())
    }

    /// PATCH /balloon.
    pub(super) fn resize_balloon(&mut self, mib: u64) -> Result<()> {
        self.balloon()?;
        self.set_balloon_size(mib)
    }

    /// PATCH /balloon/statistics.
    pub(super) fn poll_balloon(&mut self, seconds: u16) -> Result<()> {
        self.balloon()?;
        let on = self.config.machine.0.balloon_features.statistics;
        ensure!(
            on == (seconds != 0),
            "stats_polling_interval_s: statistics are turned on and off by PUT /balloon only"
        );
        self.interval = seconds;
        Ok(())
    }
}

/// `mib` as the size of a balloon, which has to be less than the machine's memory.
pub(super) fn balloon_size(mib: u64, config: &MachineConfig) -> Result<Size> {
    let bytes = mib.checked_mul(layout::MIB).filter(|bytes| *bytes < config.mem.bytes());
    let bytes = bytes.with_context(|| {
        format!("amount_mib {mib}: the machine has {}, ask for less", config.mem.boot)
    })?;
    Ok(Size::new(bytes))
}

/// The disk that `drive` describes.
pub(super) fn disk(drive: &Drive) -> Option<DiskConfig> {
    let mut disk = DiskConfig::new(drive.path_on_host.clone()?);
    disk.readonly = drive.is_read_only;
    disk.aio = drive.aio();
    disk.limit = drive.rate_limiter.unwrap_or_default();
    disk.id = Some(drive.drive_id.chars().take(DiskConfig::MAX_ID).collect());
    Some(disk)
}

fn check_files(source: &BootSource) -> Result<()> {
    let words = "Boot source error: The kernel file cannot be opened:";
    check_file(&source.kernel_image_path, "kernel", words)?;
    let words = "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions.";
    source.initrd_path.as_ref().map_or(Ok(()), |path| check_file(path, "initrd", words))
}

/// Firecracker's `words` come first where the file cannot be opened.
fn check_file(path: &Path, what: &str, words: &str) -> Result<()> {
    files::loadable(path).map(drop).map_err(|error| match error.downcast_ref::<io::Error>() {
        Some(reason) => anyhow!("{words} {reason}: {what} {}", path.display()),
        None => error.context(format!("{what} {}", path.display())),
    })
}
