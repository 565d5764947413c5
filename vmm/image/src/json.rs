//! The JSON of images: what of it is used (OCI image specification, "Image Index", "Image Manifest" and "Image
//! Configuration"; Docker's are the same but for names that nobody reads here).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Most bytes of one.
pub const MAX_BYTES: u64 = 4 << 20;
/// The annotation with an image's tag.
const TAG: &str = "org.opencontainers.image.ref.name";

/// An index, which names manifests, or a manifest, which names a configuration and layers.
#[derive(Deserialize)]
pub struct Document {
    pub manifests: Option<Vec<Descriptor>>,
    pub config: Option<Descriptor>,
    pub layers: Option<Vec<Descriptor>>,
}

/// What names another part.
#[derive(Clone, Deserialize)]
pub struct Descriptor {
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// The name that people know it by.
    pub fn tag(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(TAG).map(String::as_str)
    }
}

/// What an image is for.
#[derive(Clone, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
}

impl Platform {
    /// Whether a machine of ours runs it.
    pub fn is_ours(&self) -> bool {
        self.architecture == "amd64" && self.os == "linux"
    }
}

/// An image's configuration.
#[derive(Deserialize)]
pub struct Configuration {
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(default)]
    pub config: Option<Run>,
    #[serde(default)]
    pub rootfs: Option<RootFs>,
}

/// Sums of the layers as they are unpacked.
#[derive(Deserialize)]
pub struct RootFs {
    pub diff_ids: Vec<String>,
}

/// What is run, and how. What is missing, or empty, is as if the image had nothing to say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Run {
    /// The first words of what is run.
    pub entrypoint: Option<Vec<String>>,
    /// What follows them, unless the user says something else.
    pub cmd: Option<Vec<String>>,
    /// `NAME=VALUE` each.
    pub env: Option<Vec<String>>,
    /// The folder that it starts in.
    pub working_dir: Option<String>,
    /// `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
}

/// An image in a file of Docker's.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    pub config: String,
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

/// Reads one.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    ensure!(bytes.len() as u64 <= MAX_BYTES, "it has more than {} MiB", MAX_BYTES >> 20);
    serde_json::from_slice(bytes).context("it is not what it should be")
}
