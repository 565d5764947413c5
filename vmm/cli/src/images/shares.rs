//! Folders that a guest only reads, where no virtiofsd is installed: each becomes a disk, as it is now.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tinyvmm::config::{DiskConfig, ShareConfig};

use super::keep;
use crate::config::Config;
use crate::{process, share};

/// Makes disks of read-only shares, if nothing can serve them, and says so.
pub fn settle(config: &mut Config) -> Result<()> {
    let limit = config.process.image_limit.bytes();
    let machine = &mut config.machine.0;
    let is_one = |share: &&ShareConfig| share.readonly;
    if !machine.share.iter().any(|share| is_one(&share)) || share::is_installed() {
        return Ok(());
    }
    let shares: Vec<_> = machine.share.iter().filter(is_one).cloned().collect();
    machine.share.retain(|share| !share.readonly);
    for share in shares {
        let path = disk(&share.folder, limit).with_context(|| format!("--share {share}"))?;
        // What does not fit is found by its place alone.
        let id = Some(share.tag.clone()).filter(|tag| tag.len() <= DiskConfig::MAX_ID);
        machine.disk.push(DiskConfig { readonly: true, id, ..DiskConfig::new(path) });
        let letter = ('a'..='z').nth(machine.disk.len() - 1).unwrap_or('?');
        log::warn!(
            "--share {share}: virtiofsd is not installed, so it is a disk, as the folder is now: mount -t erofs \
             /dev/vd{letter} PLACE"
        );
    }
    DiskConfig::ensure_named_apart(&machine.disk)
}

/// The path of a disk with what is in `folder`. Its name is what it has, so that a folder that has not changed has one.
fn disk(folder: &Path, limit: u64) -> Result<PathBuf> {
    keep(folder, image::is_whole, |disk| {
        image::write_folder(folder, disk, limit)?;
        process::trim_heap();
        Ok(())
    })
}
