//! The file `state`: a line with the version of the format, a line with the BLAKE3 hash of the rest, and JSON.

use anyhow::{Context, Result, bail, ensure};

use super::Snapshot;

/// Most bytes of the file: 255 CPUs have a fifth of that.
pub const MOST_BYTES: u64 = 64 << 20;
const MAGIC: &str = "tinyvmm snapshot ";
/// Changes when an older tinyvmm could not read the file, or would take it for something else. Since version 2, `memory`
/// ends with a marker; version 3 is of Diff snapshots, whose `memory` goes with others.
pub const VERSION: u32 = 3;
/// The version of a snapshot that needs no other.
#[cfg(feature = "api")]
const VERSION_OF_FULL: u32 = 2;

impl Snapshot {
    /// The bytes of the file.
    #[cfg(feature = "api")]
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let hash = blake3::hash(&json).to_hex();
        let version = if self.bases.is_empty() { VERSION_OF_FULL } else { VERSION };
        let mut bytes = format!("{MAGIC}{version}\n{hash}\n").into_bytes();
        bytes.extend(json);
        Ok(bytes)
    }

    /// Reads what [`Self::to_bytes`] made. Any other byte is an error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (version, rest) = version(bytes)?;
        ensure!(
            (1..=VERSION).contains(&version),
            "its format is version {version}, and this tinyvmm knows {VERSION}: update it, or make the snapshot anew"
        );
        let (hash, json) = line(rest).context("it ends early")?;
        ensure!(
            hash == blake3::hash(json).to_hex().as_str(),
            "it is damaged: its checksum is wrong"
        );
        serde_json::from_slice(json).context("it is of another version of tinyvmm")
    }
}

/// The version of the file with these `bytes`, and what follows the line with it.
pub(super) fn version(bytes: &[u8]) -> Result<(u32, &[u8])> {
    let (version, rest) = line(bytes).context("it is no snapshot")?;
    let version = version.strip_prefix(MAGIC).context("it is no snapshot")?;
    match version.parse() {
        Ok(version) => Ok((version, rest)),
        Err(_) => bail!("it is damaged: its version is {version:?}"),
    }
}

/// The first line of `bytes`, and what follows it.
fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().take(80).position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}
