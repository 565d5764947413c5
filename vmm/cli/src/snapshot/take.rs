//! The owner's side of making a snapshot: it writes into files that the client has opened.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tinyvmm::config::MachineConfig;
use tinyvmm::machine::Machine;
use tinyvmm::memory::saved::{self, Extent};
use tinyvmm::random;

use super::{FileIdentity, Snapshot, Subject, names};
use crate::disks;

/// Writes the state of `machine` into `files`, which are empty and in the order of [`names`], and returns its
/// description. `pagemap` is this process's /proc/self/pagemap. Of memory, `extent` is written.
pub fn take(
    machine: &mut Machine,
    of: &Subject,
    pagemap: &File,
    extent: Extent,
    files: &[File],
) -> Result<Value> {
    ensure!(
        !of.config.is_served_by_others(),
        "a machine with --share or --vhost-user cannot be saved: what serves them has a state of its own"
    );
    let names = names(of.config);
    ensure!(
        files.len() == names.len(),
        "a snapshot of this machine has the files {}",
        names.join(", ")
    );
    for file in files {
        let status = file.metadata()?;
        ensure!(status.is_file() && status.len() == 0, "a snapshot is made of new, empty files");
    }
    let [state, memory, layers @ ..] = files else { bail!("no files") };
    let mut config = of.config.clone();
    make_absolute(&mut config, of.folder);
    let disks = save_disks(machine, &mut config, layers)?;
    let is_partial = extent == Extent::Diff && saved::needs_base(of.ram);
    let base = of.base.filter(|_| is_partial);
    let bases = base.map(|base| base.borrow().clone()).unwrap_or_default();
    ensure!(
        !is_partial || !bases.is_empty(),
        "Diff: the snapshot that the machine was made of has no marker, make a Full one first"
    );
    let marker = random::bytes()?;
    let markers = [&bases[..], &[marker]].concat();
    saved::save(of.ram, pagemap, extent, &markers, memory).context("memory")?;
    let described = serde_json::to_value(&config)?;
    let tinyvmm = env!("CARGO_PKG_VERSION").to_owned();
    let (cards, state_now) = (of.cards.clone(), machine.save(of.kvm)?);
    let marker = Some(marker);
    let snapshot =
        Snapshot { tinyvmm, machine: config, cards, disks, marker, bases, state: state_now };
    state.write_all_at(&snapshot.to_bytes()?, 0).context("state")?;
    for file in files {
        file.sync_data().context("cannot make the snapshot durable")?;
    }
    if let Some(base) = of.base.filter(|_| extent == Extent::Full) {
        base.replace(markers);
    }
    Ok(described)
}

/// The snapshot may be restored from another folder than `folder`, where this process was started.
fn make_absolute(config: &mut MachineConfig, folder: &Path) {
    let disks = config.disk.iter_mut().map(|disk| &mut disk.path);
    for path in disks.chain(&mut config.kernel).chain(&mut config.initrd) {
        *path = folder.join(&*path);
    }
}

/// Flushes the disks, copies their layers, and returns by what their files are known.
fn save_disks(
    machine: &mut Machine,
    config: &mut MachineConfig,
    layers: &[File],
) -> Result<Vec<Vec<FileIdentity>>> {
    let mut layers = layers.iter();
    let mut disks = Vec::new();
    for (index, disk) in config.disk.iter().enumerate() {
        let to = disk.overlay.as_ref().and_then(|_| layers.next());
        let mut files = Vec::new();
        machine
            .change_disk(index, |block| {
                let (image, path) = (block.image_mut(), disk.path.clone());
                if !image.readonly() {
                    image.flush()?;
                }
                if let (Some(layer), Some(to)) = (image.layer()?, to) {
                    disks::copy(layer, to).context("cannot copy its layer")?;
                }
                files.push(FileIdentity::of(path, &image.file().metadata()?));
                Ok(())
            })
            .with_context(|| format!("disk {}", disk.path.display()))?;
        disks.push(files);
    }
    Ok(disks)
}
