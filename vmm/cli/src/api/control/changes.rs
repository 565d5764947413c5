//! Drives and network interfaces, changed while the machine runs.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tinyvmm::machine::LiveMachine;
use tinyvmm::rate::Limiter;

use super::Api;
use crate::api::bodies::{PartialDrive, PartialNetworkInterface};
use crate::api::setup::disk;
use crate::disks;

impl Api {
    pub(super) fn change_drive(
        &mut self,
        drive: &PartialDrive,
        machine: &mut LiveMachine,
    ) -> Result<()> {
        let id = &drive.drive_id;
        let index = self.setup.drive_ids().iter().position(|known| known == id);
        let index = index.context("there is no such drive")?;
        ensure!(
            drive.path_on_host.is_some() || drive.rate_limiter.is_some(),
            "Running method expected different backend. Name a path_on_host or a rate_limiter"
        );
        let mut setup = self.setup.clone();
        if let Some(path) = &drive.path_on_host {
            let known = setup.drive_mut(id).context(
                "path_on_host: a flag has named this drive, and only drives of PUT /drives can be exchanged",
            )?;
            ensure!(
                self.may_open,
                "path_on_host: no file can be opened any more, as this host's kernel has no Landlock or no seccomp \
                 filters to limit that to the folders of drives"
            );
            known.path_on_host = Some(path.clone());
            let disk = disk(known).context("path_on_host is required")?;
            machine.while_stopped(|machine| {
                machine.change_disk(index, move |block| {
                    block.set_image(disks::replace(block.image(), &disk)?);
                    Ok(())
                })
            })?;
            self.setup = setup.clone();
        }
        if let Some(update) = drive.rate_limiter {
            let limit = setup.update_limit(id, index, update);
            let limiter = Limiter::new(&limit, Instant::now());
            machine.while_stopped(|machine| {
                machine.change_disk(index, |block| {
                    block.limiter = limiter;
                    Ok(())
                })
            })?;
            self.setup = setup;
        }
        Ok(())
    }

    pub(super) fn change_interface(
        &mut self,
        update: &PartialNetworkInterface,
        machine: &mut LiveMachine,
    ) -> Result<()> {
        let mut setup = self.setup.clone();
        let (index, card) = setup.update_interface(update)?;
        let limiter = |limit| Limiter::new(limit, Instant::now());
        let rx = update.rx_rate_limiter.map(|_| limiter(&card.rx_limit));
        let tx = update.tx_rate_limiter.map(|_| limiter(&card.tx_limit));
        machine.while_stopped(|machine| {
            machine.change_card(index, |net| {
                rx.into_iter().for_each(|limiter| net.rx.limiter = limiter);
                tx.into_iter().for_each(|limiter| net.tx.limiter = limiter);
                Ok(())
            })
        })?;
        self.setup = setup;
        Ok(())
    }
}
