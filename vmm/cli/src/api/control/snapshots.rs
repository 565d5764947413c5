//! Snapshots for clients of the API.

use std::fs::{File, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tinyvmm::config::MachineConfig;
use tinyvmm::machine::LiveMachine;
use tinyvmm::memory::saved::Extent;

use super::Api;
use crate::api::bodies::{SnapshotCreate, SnapshotLoad};
use crate::snapshot::{self, Restored, Subject};

impl Api {
    pub(super) fn load(&mut self, load: &SnapshotLoad) -> Result<()> {
        let mut setup = self.setup.clone();
        self.restored = Some(setup.load(load)?);
        self.before_load = Some(std::mem::replace(&mut self.setup, setup));
        self.starts_paused = !load.resume_vm;
        Ok(())
    }

    /// What the machine is to be made of, if a client has loaded a snapshot.
    pub fn take_restored(&mut self) -> Option<Restored> {
        self.restored.take()
    }

    /// The machine could not be made: clients may describe another.
    pub fn forget_loaded(&mut self) {
        if let Some(setup) = self.before_load.take() {
            (self.setup, self.starts_paused) = (setup, false);
        }
    }

    /// Whether the machine is paused until a client resumes it.
    pub fn starts_paused(&self) -> bool {
        self.starts_paused
    }

    pub(super) fn create_snapshot(
        &mut self,
        create: &SnapshotCreate,
        machine: &mut LiveMachine,
        of: &Subject,
    ) -> Result<()> {
        ensure!(machine.is_paused(), "the machine runs: pause it first, PATCH /vm");
        ensure!(
            self.may_open,
            "no file can be made any more: say --snapshots DIR at the start and name files in that folder, or use \
             tinyvmm ctl"
        );
        let count = snapshot::names(&self.config().machine.0).len();
        ensure!(count == 2, "the machine has disks with overlays: use tinyvmm ctl");
        let new = |path: &Path| {
            let file = OpenOptions::new().write(true).create_new(true).open(path);
            file.with_context(|| {
                format!("{}: it has to be a new file below --snapshots", path.display())
            })
        };
        let files = [new(&create.snapshot_path)?, new(&create.mem_file_path)?];
        self.save(machine, of, create.extent(), &files).map(drop)
    }

    /// Writes a snapshot of the machine into `files`.
    pub(super) fn save(
        &mut self,
        machine: &mut LiveMachine,
        of: &Subject,
        extent: Extent,
        files: &[File],
    ) -> Result<Value> {
        let usage = self
            .usage
            .as_ref()
            .context("/proc is not mounted: mount it in this chroot to save machines")?;
        let config = self.config_of_machine(of.config);
        let cards = self.setup.interface_ids().collect();
        let Subject { kvm, ram, folder, base, .. } = *of;
        let of = Subject { kvm, ram, folder, base, config: &config, cards };
        let mut described = Value::Null;
        machine.while_stopped(|machine| {
            described = snapshot::take(machine, &of, &usage.pagemap, extent, files)?;
            Ok(())
        })?;
        Ok(described)
    }

    /// `built`, with what clients have changed since.
    fn config_of_machine(&self, built: &MachineConfig) -> MachineConfig {
        let now = self.config().machine.0;
        MachineConfig { disk: now.disk, ..built.clone() }
    }
}
