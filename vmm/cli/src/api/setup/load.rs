//! PUT /snapshot/load: the description is the snapshot's.

use anyhow::{Context, Result, ensure};
use tinyvmm::arch::saved::Clocks;
use tinyvmm::config::{NetEnd, VsockConfig};
use tinyvmm::machine::Renewal;

use super::Setup;
use crate::api::bodies::SnapshotLoad;
use crate::snapshot::{self, Restored};

impl Setup {
    /// Makes the description that of a snapshot, which has to be the first that a client says of the machine.
    pub(in crate::api) fn load(&mut self, load: &SnapshotLoad) -> Result<Restored> {
        let is_first =
            self.boot_source.is_none() && self.drives.is_empty() && self.interfaces.is_empty();
        ensure!(is_first, "a machine is described already: load a snapshot instead of that");
        let memory = load.memory()?;
        let snapshot = snapshot::read(&load.snapshot_path, None)?;
        let cards = snapshot.cards().to_vec();
        let mut config = self.config.clone();
        let machine = &mut config.machine.0;
        if !load.network_overrides.is_empty() {
            machine.net = snapshot.machine().net.clone();
        }
        for other in &load.network_overrides {
            let index = cards.iter().position(|name| *name == other.iface_id);
            let card = index.and_then(|index| machine.net.get_mut(index));
            let card =
                card.with_context(|| format!("network_overrides: there is no {}", other.iface_id))?;
            card.end = NetEnd::Tap(other.host_dev_name.clone());
        }
        if let Some(other) = &load.vsock_override {
            machine.vsock = Some(VsockConfig::new(Some(other.uds_path.clone())));
        }
        let clocks = if load.clock_realtime { Clocks::FollowHost } else { Clocks::Continue };
        let renewal = Renewal { identity: true, clocks };
        let restored = Restored::new(snapshot, &load.snapshot_path, memory, renewal, machine)?;
        (self.config, self.interfaces) = (config, cards);
        self.track_dirty_pages = load.tracks_changes();
        Ok(restored)
    }
}
