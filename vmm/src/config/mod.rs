//! What a machine is made of. Flags, a file or a test fill it in; only the builder reads it.

mod balloon;
mod console;
mod cpus;
mod disk;
mod firecracker;
mod id;
mod jail;
mod mem;
mod rate;
mod size;
mod text;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{ArgAction, Args, ValueEnum, ValueHint};
use serde::Serialize;
use uuid::Uuid;

pub use balloon::{BalloonConfig, BalloonFeatures};
pub use console::ConsoleConfig;
pub use cpus::Cpus;
pub use disk::{DiskConfig, Overlay};
pub use firecracker::{FirecrackerConfig, StartTimes};
pub use id::instance_id;
pub use jail::JailConfig;
pub use mem::Mem;
pub use rate::{Bucket, RateLimit};
pub use size::Size;
use text::{as_duration, as_text, duration, each_as_text, opt_as_text, uuid};

use crate::{command, layout};

/// A switch is on where it is named; `=false` takes back what a configuration file turns on.
const SWITCH: &str = "true|false";

/// A machine: its processors, memory, kernel and devices.
///
/// Each field is a flag of the command line and a key of the configuration file.
#[derive(Args, Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Machine")]
pub struct MachineConfig {
    /// Virtual CPUs: a count, or a count and how they are arranged
    ///
    /// `4` is one socket of four cores. `4,sockets=1,cores=2,threads=2` is what lscpu shows
    /// in the guest. Sockets and threads are 1 unless given, cores are what is left.
    #[arg(long, value_name = "N[,sockets=S][,cores=C][,threads=T]", default_value = "1")]
    #[serde(serialize_with = "as_text")]
    pub cpus: Cpus,

    /// Memory of the guest, with K, M, G or T (powers of 1024; KiB and so on mean the same)
    ///
    /// From 16M. Memory that the guest does not touch costs the host nothing. With `max` the machine
    /// has that much more that it can be given, and give back, while it runs (virtio-mem): `tinyvmm ctl
    /// SOCKET memory SIZE`.
    #[arg(long, value_name = "SIZE[,max=SIZE]", default_value = "256M")]
    #[serde(serialize_with = "as_text")]
    pub mem: Mem,

    /// Take guest memory from the host's hugetlb pool, 2 MiB pages, all of it reserved at start
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub hugepages: bool,

    /// Memory that the guest is to do without at once; or off: no balloon device
    ///
    /// By that device a guest also says what it has freed, and the host gets it back within
    /// seconds. With `off`, and with --hugepages, the machine keeps what it once had.
    #[arg(long, value_name = "SIZE|off", default_value = "0")]
    #[serde(serialize_with = "as_text")]
    pub balloon: BalloonConfig,

    /// What the balloon offers; only the API says so.
    #[arg(skip)]
    #[serde(skip)]
    pub balloon_features: BalloonFeatures,

    /// Linux kernel: bzImage (vmlinuz) or ELF (vmlinux)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,

    /// Who unpacks a bzImage: tinyvmm, or its own decompressor in the guest
    ///
    /// `direct` is faster. A bzImage that tinyvmm cannot unpack is left to its own decompressor in
    /// any case. The kernel's address is random either way, unless its command line has `nokaslr`.
    #[arg(long, value_name = "direct|decompress", default_value = "direct")]
    #[arg(hide_possible_values = true)]
    pub kernel_entry: KernelEntry,

    /// Do not keep unpacked kernels in ~/.cache/tinyvmm/kernels, nor use what is there
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub no_kernel_cache: bool,

    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,

    /// Kernel command line, appended to the default one
    ///
    /// The default is `console=ttyS0 panic=-1 pci=off 8250.nr_uarts=1 cryptomgr.notests`, and
    /// `root=/dev/vda rw` (or `ro`) when there is a disk and no initrd.
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Use --cmdline as the whole command line, untouched
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub cmdline_only: bool,

    /// Disk: a raw image file or block device. May be given several times
    ///
    /// `readonly` refuses writes and lets other machines read the same file. `direct` goes
    /// around the host's page cache (O_DIRECT). `id` is the serial number that the guest sees,
    /// at most 20 bytes. With `overlay` the file is only read, by any number of machines: what the
    /// guest writes goes to a temporary file in $TMPDIR and is lost when tinyvmm ends, or to the
    /// file named by `overlay=FILE`, made if it is not there, to go on with the next time.
    #[arg(long, value_name = "FILE[,readonly][,direct][,overlay[=FILE]][,id=NAME]")]
    #[serde(serialize_with = "each_as_text")]
    pub disk: Vec<DiskConfig>,

    /// How fast random numbers come; only the API says so.
    #[arg(skip)]
    #[serde(skip)]
    pub entropy_limit: RateLimit,

    /// Where the serial console goes
    ///
    /// `stdio` is this terminal (Ctrl-A h shows the keys), `off` is nowhere, anything else is a
    /// file that is written anew.
    #[arg(long, value_name = "stdio|FILE|off", default_value = "stdio")]
    #[serde(serialize_with = "as_text")]
    pub console: ConsoleConfig,

    /// Where the serial port's registers are: at I/O ports, or in memory, which costs fewer exits
    ///
    /// In memory, a guest reads all but what it receives without an exit. To Linux it is ttyS4, which the
    /// default command line names. Its driver finds it late: what the kernel printed before comes
    /// then, and a panic before that is silent. `earlycon=uart8250,io,0x3f8` shows that, too. A driver
    /// has to turn the transmitter's interrupt off when it has nothing to send, as Linux's does.
    #[arg(long, value_enum, value_name = "ports|memory", default_value = "ports")]
    #[arg(hide_possible_values = true)]
    pub uart: Uart,

    /// Identity of the machine, in its SMBIOS tables [default: random]
    #[arg(long, value_name = "UUID", value_parser = uuid)]
    #[serde(serialize_with = "opt_as_text")]
    pub uuid: Option<Uuid>,

    /// Stop the machine after this time: `30s`, `5m`, `1h 30m`
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    #[serde(serialize_with = "as_duration")]
    pub timeout: Option<Duration>,

    /// End when the guest reboots, instead of starting it again
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub no_reboot: bool,

    /// Listen for Firecracker's API at this Unix socket; without --kernel, wait to be configured there
    ///
    /// The socket is its user's alone, and is removed at the end: give it a folder of its own.
    /// `tinyvmm ctl` speaks to it, as do clients of Firecracker.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = "Control")]
    pub api_sock: Option<PathBuf>,

    /// Describe the machine in Firecracker's JSON, and start it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Control")]
    #[arg(conflicts_with_all = ["kernel", "initrd", "cmdline"])]
    pub config_file: Option<PathBuf>,

    /// The machine's name, as the API tells it
    #[arg(long, value_name = "NAME", default_value = "anonymous-instance", value_parser = instance_id)]
    #[arg(help_heading = "Control")]
    pub id: String,

    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value = "51200", help_heading = "Control")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub http_api_max_payload_size: u32,

    /// What can be said only to a process that was started as `firecracker`; it is one if this is there.
    #[arg(skip)]
    #[serde(skip)]
    pub firecracker: Option<FirecrackerConfig>,

    /// When started as root: become this user, in namespaces of its own
    ///
    /// The process gets its own mount, PID, IPC, UTS and network namespaces, gives up root once its files are
    /// open, and sees only DIR from then on. `group` is the number of `user` unless given; `netns` names
    /// a network namespace of `ip netns` instead of an empty one. Numbers, not names; not 0.
    #[arg(long, value_name = "user=UID[,group=GID][,chroot=DIR][,netns=NAME]")]
    #[arg(help_heading = "Jail")]
    #[serde(serialize_with = "opt_as_text")]
    pub jail: Option<JailConfig>,

    /// Let the process do all that its user may, for debugging
    ///
    /// Without this, the process limits itself before the guest runs: it opens no files any more, and each
    /// thread makes only the system calls that it needs. One that makes another ends it with exit code 10.
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true, help_heading = "Jail")]
    pub no_jail: bool,

    /// Tell where the boot's time went: a table on stderr, or a file, as JSON if it ends in .json
    ///
    /// Milliseconds and exits up to each step of the first boot, and memory.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "-", help_heading = "Measuring")]
    pub boot_report: Option<PathBuf>,

    /// Count the guest's exits by port and address, and print the table to stderr at the end
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true, help_heading = "Measuring")]
    pub trace_exits: bool,

    /// A command for the guest: its output is all that is printed, its exit status is tinyvmm's
    ///
    /// It needs an initrd with sh, mount and stty, such as one of guest-images; the kernel needs ioperm(2).
    /// What follows a `--` is the command: `tinyvmm --kernel K --initrd I -- uname -a`. Its input is a terminal's,
    /// lines of text. A reset ends the machine. Exit code 125: it ended otherwise.
    #[arg(last = true, value_name = "COMMAND")]
    #[serde(skip)]
    pub command: Vec<String>,
}

impl MachineConfig {
    /// Least guest memory, in bytes: below it no Linux starts.
    pub const MIN_MEM: u64 = 16 * layout::MIB;
    /// What the kernel is told when `--cmdline-only` is not given.
    pub const DEFAULT_CMDLINE: &str =
        "console=ttyS0 panic=-1 pci=off 8250.nr_uarts=1 cryptomgr.notests";

    /// Checks what can be checked without looking at the host.
    pub fn validate(&self) -> Result<()> {
        if self.kernel.is_none() && self.api_sock.is_none() && self.config_file.is_none() {
            bail!("no kernel: name a bzImage or vmlinux with --kernel FILE");
        }
        ensure!(
            self.cmdline.is_some() || !self.cmdline_only,
            "--cmdline-only: there is no command line, add --cmdline STRING"
        );
        if !self.command.is_empty() {
            ensure!(
                self.initrd.is_some(),
                "-- {}: a command needs --initrd FILE, one with a shell",
                self.command[0]
            );
            ensure!(
                !self.cmdline_only,
                "--cmdline-only leaves no room for what a command needs: leave one out"
            );
            ensure!(
                self.command.iter().all(|word| !word.contains('\0')),
                "--: the command contains a zero byte"
            );
        }
        ensure!(!self.kernel_cmdline().contains('\0'), "--cmdline: contains a zero byte");
        ensure!(
            self.kernel.is_some() || self.jail.is_none(),
            "--jail: it needs --kernel FILE, for files are opened outside of the jail"
        );
        ensure!(!self.no_jail || self.jail.is_none(), "--jail and --no-jail: leave one out");
        let mem = self.mem.bytes();
        let hint = if mem < 4096 { " (bytes: say M or G)" } else { "" };
        ensure!(mem >= Self::MIN_MEM, "--mem {}: too little{hint}, the least is 16M", self.mem);
        let page = if self.hugepages { 2 << 20 } else { 4096 };
        ensure!(
            mem.is_multiple_of(page),
            "--mem {}: not a multiple of {}, the size of a page",
            self.mem,
            Size::new(page)
        );
        self.mem.validate_room(self.hugepages)?;
        self.balloon.validate(self.mem.boot, self.hugepages)?;
        let room = self.mem.room().is_some();
        let others = 1 + usize::from(self.balloon_target().is_some()) + usize::from(room); // the random number generator
        let max_disks = layout::MAX_VIRTIO - others;
        ensure!(
            self.disk.len() <= max_disks,
            "--disk: {} disks, at most {max_disks} can be had",
            self.disk.len()
        );
        Ok(())
    }

    /// The files that the machine is made of.
    pub fn inputs(&self) -> impl Iterator<Item = &Path> {
        let layers = self.disk.iter().filter_map(|disk| match &disk.overlay {
            Some(Overlay::Kept(path)) => Some(path),
            _ => None,
        });
        let disks = self.disk.iter().map(|disk| &disk.path);
        self.kernel.iter().chain(&self.initrd).chain(disks).chain(layers).map(PathBuf::as_path)
    }

    /// Whether a reset is its end: it is asked for, or a command ran that is not to run again.
    pub fn ends_at_reset(&self) -> bool {
        self.no_reboot || !self.command.is_empty()
    }

    /// How large the balloon is to be at first, in bytes; `None` for a machine without one.
    pub fn balloon_target(&self) -> Option<u64> {
        match self.balloon {
            BalloonConfig::Target(size) if !self.hugepages => Some(size.bytes()),
            _ => None,
        }
    }

    /// The kernel's command line: the defaults and what the user added to them.
    pub fn kernel_cmdline(&self) -> String {
        let given = self.cmdline.as_deref().unwrap_or_default();
        if self.cmdline_only {
            return given.to_owned();
        }
        let mut line = match self.uart {
            Uart::Ports => Self::DEFAULT_CMDLINE.to_owned(),
            // The first four are the ports of a PC, whether they are there or not.
            Uart::Memory => {
                Self::DEFAULT_CMDLINE.replace("ttyS0", "ttyS4").replace("nr_uarts=1", "nr_uarts=5")
            }
        };
        if self.mem.room().is_some() {
            // What is plugged is used at once, and can be unplugged again.
            line += " memhp_default_state=online_movable";
        }
        if let (Some(disk), None) = (self.disk.first(), &self.initrd) {
            line += if disk.readonly { " root=/dev/vda ro" } else { " root=/dev/vda rw" };
        }
        if !self.command.is_empty() {
            line = line + " " + command::CMDLINE;
        }
        if !given.is_empty() {
            line = line + " " + given;
        }
        line
    }
}

/// Where the serial port's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Uart {
    /// I/O ports, as on a PC.
    Ports,
    /// Memory.
    Memory,
}

/// Who unpacks a bzImage.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelEntry {
    /// tinyvmm; the guest starts with the kernel itself.
    Direct,
    /// The bzImage's own decompressor, in the guest.
    Decompress,
}
