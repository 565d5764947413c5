//! How the process runs, which the machine never sees. Flags, a file or a test fill it in.

#[cfg(feature = "image")]
mod cloud;
mod console;
mod firecracker;
mod id;
mod jail;
mod machine;
mod restore;
mod root;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{ArgAction, Args, ValueHint};
use serde::{Serialize, Serializer};
#[cfg(feature = "image")]
use tinyvmm::config::Size;
use tinyvmm::config::{DiskConfig, MachineConfig, RateLimit, VsockConfig};
use tinyvmm::layout;

#[cfg(feature = "image")]
pub use cloud::{CloudFlags, CloudInit};
pub use console::ConsoleConfig;
pub use firecracker::{FirecrackerConfig, StartTimes};
pub use id::{DEFAULT_ID, instance_id, machine_name};
pub use jail::JailConfig;
pub use machine::MachineFlags;
pub use restore::{Clock, Identity, RestoreFlags, TemplateRole};
pub use root::{RootDir, modules};

use crate::command;

/// The values of a switch: naming the flag turns it on, `=false` takes back what a configuration file turns on.
pub(crate) const SWITCH: &str = "true|false";

/// How the process runs.
///
/// Each field is a flag of the command line and a key of the configuration file.
#[derive(Args, Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Run")]
pub struct ProcessConfig {
    /// Stop the machine after this time: `30s`, `5m`, `1h 30m`
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    #[serde(serialize_with = "as_duration")]
    pub timeout: Option<Duration>,

    /// End when the guest reboots, instead of starting it again
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub no_reboot: bool,

    /// Where the serial console goes
    ///
    /// `stdio` is this terminal (Ctrl-A h shows the keys), `off` is nowhere, anything else is a
    /// file that is written anew.
    #[arg(long, value_name = "stdio|FILE|off", default_value = "stdio")]
    #[serde(serialize_with = "as_text")]
    pub console: ConsoleConfig,

    /// The console's output that is faster is dropped; the API says it.
    #[arg(skip)]
    #[serde(skip)]
    pub console_limit: Option<RateLimit>,

    /// Do not keep unpacked kernels in ~/.cache/tinyvmm/kernels, nor use what is there
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub no_kernel_cache: bool,

    /// Give the machine a name, by which `tinyvmm ps`, `ctl`, `stop`, `logs` and `attach` find it
    ///
    /// It has a folder below $XDG_RUNTIME_DIR/tinyvmm, or /tmp/tinyvmm-UID, with the sockets of its API and vsock and
    /// the last MiB of what its console printed. Only the same user has access. The folder is gone when the machine ends,
    /// unless it was detached and failed.
    #[arg(long, value_name = "NAME", value_parser = machine_name, help_heading = "Control")]
    #[arg(conflicts_with = "api_sock")]
    pub name: Option<String>,

    /// Run in the background: return when the guest's init runs, or with the exit code if the machine ends before
    ///
    /// A guest shows that init runs by a byte to port 0x700, as those of guest-images do, or by the kernel's message
    /// "Run /init as init process". If it does neither within 10 s of its start, it is left to itself. Without --name
    /// the machine gets a random name, which is printed. A machine that fails keeps its log, for `tinyvmm logs`, until
    /// another takes its name or `tinyvmm stop` removes it. Ctrl-C ends the waiting, not the machine.
    #[arg(long, short = 'd', value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true, help_heading = "Control")]
    pub detach: bool,

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

    /// A folder in which clients of the API have snapshots made (PUT /snapshot/create)
    ///
    /// `tinyvmm ctl NAME snapshot DIR` needs none: it makes the files itself.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Control")]
    pub snapshots: Option<PathBuf>,

    /// The machine's name, as the API reports it; that of --name if there is one
    #[arg(long, value_name = "NAME", default_value = DEFAULT_ID, value_parser = instance_id)]
    #[arg(help_heading = "Control")]
    pub id: String,

    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value = "51200", help_heading = "Control")]
    #[arg(value_parser = whole_number::<{ 16 << 20 }>)]
    pub http_api_max_payload_size: u32,

    /// Set only in a process that was started as `firecracker`.
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

    /// Report where the boot's time went: a table on stderr, or a file, as JSON if it ends in .json
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

    /// The command is the agent's to run, on this process's standard streams ([`Config::prefer_agent`]).
    #[arg(skip)]
    #[serde(skip)]
    pub by_agent: bool,

    /// Boot with a folder of this host as the guest's root, and run COMMAND there, or a shell
    ///
    /// The guest only reads the folder, and what it writes is lost at its end; with `rw` it writes in the folder's
    /// folders. virtiofsd serves it: install its package. The kernel needs virtio-fs and, without `rw`, overlayfs, built
    /// in or in --modules. COMMAND starts in this process's working folder if the guest has it. `--cmdline init=PROGRAM`
    /// starts that instead. With `rw,container` the folder is a container's root file system: COMMAND is all that
    /// runs there. With `rw,container=NAME` it is the folder NAME in DIR, and the guest has all of DIR in /tinyvmm/shared.
    #[arg(long, value_name = "DIR[,rw][,container[=NAME]]", value_hint = ValueHint::DirPath, help_heading = "Machine")]
    #[serde(serialize_with = "opt_as_text")]
    pub root_dir: Option<RootDir>,

    /// Boot with a container's image as the guest's root, and run what it is for, with COMMAND in place of its command
    ///
    /// The image is what skopeo, podman, buildah or docker have written: `oci:DIR[:TAG]` is a folder in the OCI layout,
    /// `docker-archive:FILE[:TAG]` a file of `docker save`. It becomes a read-only disk, the guest's first, which is kept
    /// in ~/.cache/tinyvmm/disks; what the guest writes is lost at its end. Entry point, command, environment, user and
    /// working folder are the image's. The kernel needs virtio-blk, EROFS and overlayfs, built in or as modules.
    /// `--cmdline init=PROGRAM` starts that instead.
    #[cfg(feature = "image")]
    #[arg(long, value_name = "IMAGE", help_heading = "Machine", conflicts_with = "root_dir")]
    #[serde(serialize_with = "opt_as_text")]
    pub image: Option<image::Reference>,

    /// Most bytes that --image, or a folder that is shared as a disk, may have unpacked
    #[cfg(feature = "image")]
    #[arg(long, value_name = "SIZE", default_value = "8G", help_heading = "Machine")]
    #[serde(serialize_with = "as_text")]
    pub image_limit: Size,

    /// What the agent runs at a root that is a container's: the payload of a request (agent-wire).
    #[arg(skip)]
    #[serde(skip)]
    pub root_program: Option<Vec<u8>>,

    /// Modules for --root-dir and --image: a folder of /lib/modules, one that has such, or a kernel's build folder
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Machine")]
    pub modules: Option<PathBuf>,

    /// What the guest's cloud-init is told.
    #[cfg(feature = "image")]
    #[command(flatten)]
    #[serde(flatten)]
    pub cloud: CloudFlags,

    /// Of what snapshot the machine is made.
    #[command(flatten)]
    #[serde(flatten)]
    pub snapshot: RestoreFlags,

    /// A command for the guest: its output is all that is printed, its exit status is tinyvmm's
    ///
    /// It needs an initrd with sh, mount and stty, such as one of guest-images; the kernel needs ioperm(2).
    /// What follows a `--` after the flags is the command: `tinyvmm --kernel K --initrd I -- uname -a`; a `--` within
    /// --cmdline is the kernel's, and is for the guest's init. It has this process's standard streams, as it would here,
    /// and signals are passed on; a kernel without virtio-vsock, and any with --console FILE or --detach, runs it on its
    /// console, whose input is a terminal's lines. A reset ends the machine. Exit code 125: it ended otherwise.
    #[arg(last = true, value_name = "COMMAND")]
    #[serde(skip)]
    pub command: Vec<String>,
}

/// A machine and how the process runs it.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Config {
    /// What the guest has.
    #[command(flatten)]
    #[serde(flatten)]
    pub machine: MachineFlags,
    /// How the process runs.
    #[command(flatten)]
    #[serde(flatten)]
    pub process: ProcessConfig,
}

impl Config {
    /// Checks what can be checked without looking at the host.
    pub fn validate(&self) -> Result<()> {
        let (machine, process) = (&self.machine.0, &self.process);
        let is_complete = machine.kernel.is_some() || process.config_file.is_some();
        if !is_complete && (process.detach || process.api_sock.is_none() && process.name.is_none())
        {
            bail!("no kernel: name a bzImage or vmlinux with --kernel FILE");
        }
        process.check_background()?;
        if let Some(word) = process.command.first() {
            ensure!(
                machine.initrd.is_some() || process.has_root(),
                "-- {word}: a command needs --initrd FILE, one with a shell"
            );
            ensure!(
                !machine.cmdline_only,
                "--cmdline-only leaves no room for what a command needs: leave one out"
            );
            ensure!(
                process.command.iter().all(|word| !word.contains('\0')),
                "--: the command contains a zero byte"
            );
        }
        ensure!(
            machine.kernel.is_some() || process.jail.is_none(),
            "--jail: it needs --kernel FILE, for files are opened outside of the jail"
        );
        ensure!(!process.no_jail || process.jail.is_none(), "--jail and --no-jail: leave one out");
        let needs_path = machine.vsock.as_ref().is_some_and(|vsock| vsock.path.is_none());
        let has_place = process.name.is_some()
            || process.detach
            || process.by_agent
            || process.snapshot.restore.is_some();
        ensure!(!needs_path || has_place, "--vsock: say path=FILE, or --name NAME");
        DiskConfig::ensure_apart(&machine.disk)?;
        machine.validate()
    }

    /// Has the agent run the command, if there is one, by a vsock device, and if all of that can be: the streams are this
    /// process's, and the machine boots. A guest where nobody can be reached by vsock runs it on its console.
    pub fn prefer_agent(&mut self) {
        let (machine, process) = (&mut self.machine.0, &mut self.process);
        let has_streams = process.console == ConsoleConfig::Stdio && !process.detach;
        let has_vsock = machine.vsock.is_some() || machine.virtio_devices() < layout::MAX_VIRTIO;
        process.by_agent = command::HAS_AGENT
            && !process.command.is_empty()
            && has_streams
            && has_vsock
            && process.snapshot.restore.is_none();
        if process.by_agent {
            machine.vsock.get_or_insert(VsockConfig::new(None));
        }
    }

    /// The machine as it is built: with what the kernel's command line needs for a COMMAND or the agent.
    pub fn machine_to_build(&self) -> MachineConfig {
        let mut machine = self.machine.0.clone();
        if self.process.snapshot.role == TemplateRole::Uses {
            return machine;
        }
        let (has_command, has_name) = (self.process.runs_command(), self.process.name.is_some());
        root::add_shares(&mut machine, &self.process);
        let has_root = self.process.has_root();
        if let Some(own) = command::cmdline(&machine, has_command, has_name, has_root) {
            let given = machine.cmdline.as_deref().map_or(String::new(), |line| format!(" {line}"));
            machine.cmdline = Some(format!("{own}{given}"));
        }
        machine
    }
}

impl ProcessConfig {
    /// Checks what does not go with a machine that has a name, or is detached.
    fn check_background(&self) -> Result<()> {
        ensure!(
            self.jail.is_none() || self.name.is_none() && !self.detach,
            "--name and --jail: leave one out, the jail's user could not remove the machine's folder"
        );
        let to_stderr = self.boot_report.as_deref() == Some("-".as_ref()) || self.trace_exits;
        ensure!(
            !self.detach || !to_stderr,
            "--detach: nobody reads its standard error, say --boot-report=FILE and no --trace-exits"
        );
        Ok(())
    }

    /// Whether the agent enters the guest's root.
    pub fn has_root(&self) -> bool {
        self.root_dir.is_some() || self.root_program.is_some()
    }

    /// Whether the guest has init run a command, which is there already or comes later.
    pub fn runs_command(&self) -> bool {
        !self.command.is_empty() || self.snapshot.role == TemplateRole::Makes
    }

    /// Whether the agent is to listen in the guest: for those who find the machine by its name, which those may have that
    /// are made of a template.
    pub fn has_listener(&self) -> bool {
        self.name.is_some() || self.snapshot.role == TemplateRole::Makes
    }

    /// Whether a reset ends the machine: with --no-reboot, or with a command, which is not to run again.
    pub fn ends_at_reset(&self) -> bool {
        self.no_reboot || !self.command.is_empty()
    }
}

/// A time with its unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "say a number and its unit, as in 30s, 5m or 1h 30m".into())
}

/// A whole number from 1 to `MAX`.
pub fn whole_number<const MAX: u32>(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX).contains(number));
    number.ok_or_else(|| format!("say a whole number from 1 to {MAX}"))
}

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn opt_as_text<S: Serializer>(
    value: &Option<impl Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(serializer)
}

fn as_duration<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|d| humantime::format_duration(d).to_string()).serialize(serializer)
}
