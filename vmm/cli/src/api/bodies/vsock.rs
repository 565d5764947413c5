//! The body of requests for the vsock device.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use tinyvmm::config::VsockConfig;

/// PUT /vsock
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockBody {
    /// The guest's address.
    pub guest_cid: u32,
    /// The socket of the host.
    pub uds_path: PathBuf,
    /// A name that has no meaning any more.
    #[serde(skip_serializing)]
    pub vsock_id: Option<String>,
}

impl VsockBody {
    /// What describes `vsock`, which is at `place` unless it says so itself.
    pub fn of(vsock: &VsockConfig, place: Option<PathBuf>) -> Self {
        let path = vsock.path.clone().or(place);
        Self { guest_cid: vsock.cid, uds_path: path.unwrap_or_default(), vsock_id: None }
    }

    /// The device that it describes.
    pub fn device(self) -> Result<VsockConfig> {
        let (cid, cids) = (self.guest_cid, VsockConfig::CIDS);
        ensure!(cids.contains(&cid), "guest_cid {cid}: say {} to {}", cids.start(), cids.end());
        Ok(VsockConfig { path: Some(self.uds_path), cid })
    }
}
