//! The identity of a machine that is made of a snapshot: its guest's agent is asked to take a new one once it runs.
//!
//! Another process does that, which is started before the jail closes, for the machine's own connects to nothing then. It
//! has what the user has, as `tinyvmm exec` does, and ends when the guest has answered, or after some seconds.

use std::io::{self, PipeReader, PipeWriter, Read, Write, stdin};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use agent_wire::{Identity, Kind};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, waitpid};
use rustix::stdio::dup2_stdin;
use tinyvmm::random;
use tinyvmm::timeline::Mark;

use crate::config::{Config, TemplateRole};
use crate::exec::Connection;
use crate::snapshot::Restored;
use crate::{jail, names};

/// Tries: a guest that learns late that its connections have ended ends one that is new, too.
const TRIES: u32 = 5;
/// The interval of tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Has the process begin. Dropping it has a process that has not begun end.
pub struct Renewal(PipeWriter);

impl Renewal {
    /// Starts the process if `restored` is to become another machine, that of `config`. To be called while this process
    /// has one thread.
    pub fn prepare(config: &Config, restored: Option<&Restored>) -> Result<Option<Self>> {
        // A template's guest gets its identity with its command.
        let is_asked = config.process.snapshot.role == TemplateRole::Uses;
        let Some(restored) = restored.filter(|restored| restored.is_renewed() && !is_asked) else {
            return Ok(None);
        };
        let (begins, begin) = io::pipe()?;
        match jail::fork()? {
            Some(child) => {
                // It has a child of its own, so that the machine's process has none to wait for.
                while let Err(Errno::INTR) = waitpid(Some(child), WaitOptions::empty()) {}
                return Ok(Some(Self(begin)));
            }
            None if jail::fork()?.is_some() => std::process::exit(0),
            None => {}
        }
        drop(begin);
        match hold_only(begins) {
            Ok(()) => renew_when_it_runs(config, restored),
            Err(error) => log::warn!("--restore: the guest keeps its identity: {error:#}"),
        }
        std::process::exit(0)
    }

    /// The guest runs.
    pub fn begin(&mut self) {
        // A process that is gone has said why.
        let _ = self.0.write(&[1]);
    }
}

/// Has this process have no files but that, its standard input, and standard output and error.
fn hold_only(begins: PipeReader) -> Result<()> {
    dup2_stdin(&begins)?;
    drop(begins);
    jail::close_inherited()?;
    Ok(rustix::thread::set_name(c"tinyvmm-renewal")?)
}

fn renew_when_it_runs(config: &Config, restored: &Restored) {
    if !matches!(stdin().read(&mut [0]), Ok(1)) {
        return;
    }
    if let Err(error) = renew(config, restored)
        && !has_ended()
    {
        log::warn!(
            "--restore: the guest keeps its host name, machine-id, MAC addresses and time ({error:#}); its random numbers \
             are new if its kernel has the VMGenID driver (CONFIG_VMGENID)"
        );
    }
    if config.process.detach {
        names::reached(Mark::InitMark); // long ago
    }
}

/// Whether the machine's process has ended.
fn has_ended() -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let input = stdin();
    let mut pipe = [PollFd::new(&input, PollFlags::IN)];
    poll(&mut pipe, Some(&now)).is_ok() && pipe[0].revents().contains(PollFlags::HUP)
}

/// Asks the agent.
fn renew(config: &Config, restored: &Restored) -> Result<()> {
    let Some(socket) = socket(config) else {
        bail!("the host reaches no agent without --name NAME or --vsock path=FILE")
    };
    if !restored.has_vsock_driver() {
        bail!("no agent: the guest has no driver of virtio-vsock")
    }
    let mut tries = 1..TRIES;
    loop {
        let identity = encoded(config, restored)?;
        match Connection::ask(&socket, Kind::Identity, &identity) {
            Err(_) if tries.next().is_some() => thread::sleep(PAUSE),
            asked => return asked,
        }
    }
}

fn socket(config: &Config) -> Option<PathBuf> {
    let vsock = config.machine.0.vsock.as_ref()?;
    vsock.path.clone().or_else(|| names::vsock(&config.process))
}

/// The payload of the request that the agent of `restored`, which becomes the machine of `config`, takes an identity.
pub fn encoded(config: &Config, restored: &Restored) -> Result<Vec<u8>> {
    identity(config, restored)?.encode().context("too long an identity")
}

fn identity(config: &Config, restored: &Restored) -> Result<Identity> {
    let process = &config.process;
    let name = process.snapshot.hostname.as_ref().or(process.name.as_ref());
    let machine_id = uuid::Builder::from_random_bytes(random::bytes()?).into_uuid().simple();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let cards = config.machine.0.net.iter().zip(restored.macs());
    let macs = cards.filter_map(|(card, old)| Some((old.as_ref()?.0, card.mac?.0)));
    Ok(Identity {
        host_name: name.map(|name| name.clone().into()),
        machine_id: Some(machine_id.to_string().into()),
        seed: Some(random::bytes::<64>()?.into()),
        macs: macs.filter(|(old, new)| old != new).collect(),
        time_ns: u64::try_from(now.as_nanos()).ok(),
    })
}
