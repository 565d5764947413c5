//! What a machine is connected to of the host: other processes, and this one's standard streams.

use anyhow::Result;
use tinyvmm::config::VsockConfig;
use tinyvmm::virtio::vsock::host::Host;

use crate::config::{Config, TemplateRole};
use crate::exec::GuestCommand;
use crate::net::Network;
use crate::share::Shares;
use crate::snapshot::Restored;
use crate::vsock::Vsock;
use crate::{identity, names};

/// All of it.
pub struct Outside {
    /// Where the network cards are.
    pub network: Network,
    /// What serves its shares.
    pub shares: Shares,
    /// The sockets of the vsock device, if programs of the host find it.
    pub vsock: Option<Vsock>,
    /// The command that the guest's agent runs.
    pub command: Option<GuestCommand>,
}

impl Outside {
    /// Connects what `config` names, for a machine that goes on from `restored` if there is one.
    pub fn open(config: &Config, restored: Option<&Restored>) -> Result<Self> {
        let (machine, jail) = (&config.machine.0, config.process.jail.as_ref());
        let network = Network::open(&machine.net)?;
        let network = if jail.is_some() { network.ready()? } else { network };
        let shares = Shares::open(&config.machine_to_build())?;
        let path =
            |vsock: &VsockConfig| vsock.path.clone().or_else(|| names::vsock(&config.process));
        let path = machine.vsock.as_ref().and_then(path);
        let vsock = path.map(|path| Vsock::open(&path, jail)).transpose()?;
        let process = &config.process;
        let command = match (process.snapshot.role, restored) {
            (TemplateRole::Makes, _) => Some(GuestCommand::awaited()?),
            (TemplateRole::Uses, Some(restored)) => {
                let identity = identity::encoded(config, restored)?;
                Some(GuestCommand::of_template(&process.command, &identity, process.by_agent)?)
            }
            _ => {
                let of_container = process.root_program.as_deref();
                process.by_agent.then(|| GuestCommand::open(of_container)).transpose()?
            }
        };
        Ok(Self { network, shares, vsock, command })
    }

    /// What the vsock device gets.
    pub fn host(&mut self) -> Result<Option<Host>> {
        let mut host = self.vsock.as_ref().map(|vsock| vsock.host.clone());
        if let Some(command) = &mut self.command {
            command.connect(host.get_or_insert_default())?;
        }
        Ok(host)
    }
}
