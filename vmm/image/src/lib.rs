//! Images of containers, as other programs have fetched them, and disks that are made of them. What an image has is
//! somebody else's: each part is checked by its sum, all that it names is bounded, and its files are never files of this
//! host, only bytes of a disk. So is what an image of a whole disk has, where its kernel is looked for.

mod bootable;
mod disk;
mod folder;
mod json;
mod layer;
mod layout;
mod meta;
mod partitions;
mod reference;
mod saved;
mod seed;
mod sum;
mod tree;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use unpack::Unpacker;

pub use bootable::Bootable;
pub use disk::is_whole;
pub use folder::write_folder;
pub use json::Run;
pub use reference::{Kind, Reference};
pub use seed::write_seed;

use disk::Disk;
use json::Configuration;
use sum::{Sum, Summed};
use tree::Tree;

/// Changes with the bytes that are made of the same layers.
const VERSION: &str = "tinyvmm image 1";

/// An image.
pub struct Image {
    /// What is run, and how.
    pub run: Run,
    /// Names the disk that is made of it: 64 hexadecimal digits. Layers with the same sums have the same.
    pub key: String,
    layers: Vec<Layer>,
}

/// A layer: a piece of a file, and what is known of it.
struct Layer {
    file: File,
    start: u64,
    size: u64,
    digest: Sum,
    /// The digest is of the layer as it is there, not of what it unpacks to.
    is_of_packed: bool,
}

impl Image {
    /// Finds the image, and reads all of it but its layers.
    ///
    /// # Errors
    ///
    /// There is none, it is damaged, or it is for another kind of machine.
    pub fn open(reference: &Reference) -> Result<Self> {
        let tag = reference.tag.as_deref();
        match reference.kind {
            Kind::Oci => layout::open(&reference.path, tag),
            Kind::DockerArchive => saved::open(&reference.path, tag),
        }
    }

    fn new(config: Configuration, layers: Vec<Layer>) -> Result<Self> {
        let platform = &config.platform;
        ensure!(
            platform.is_ours(),
            "it is for {}/{}: fetch that for linux/amd64, as in skopeo copy --override-arch amd64",
            shown(&platform.os),
            shown(&platform.architecture)
        );
        let mut names = String::from(VERSION);
        layers.iter().for_each(|layer| names += &format!("\n{}", layer.digest.hex()));
        let key = Sum::of(names.as_bytes()).hex().to_owned();
        Ok(Self { run: config.config.unwrap_or_default(), key, layers })
    }

    /// Writes the disk to `file`, which is empty: at most `limit` bytes, of as many unpacked.
    ///
    /// # Errors
    ///
    /// A layer is damaged or is not what its sum says, the image is too large, or `file` cannot be written.
    pub fn write(&self, file: &File, limit: u64) -> Result<()> {
        let (mut tree, mut disk) = (Tree::new(), Disk::new(file, limit)?);
        let mut left = limit;
        for layer in &self.layers {
            let apply = layer.apply(&mut tree, &mut disk, left, limit);
            left = apply.with_context(|| format!("layer {}", layer.digest))?;
        }
        disk.finish(&tree)
    }
}

impl Layer {
    /// Lays the layer over `tree`. It may unpack to `most` bytes; returns how many of these are left.
    fn apply(&self, tree: &mut Tree, disk: &mut Disk, most: u64, limit: u64) -> Result<u64> {
        let mut piece = Piece { file: &self.file, at: self.start, left: self.size };
        let mut packed = Summed::new(&mut piece, self.is_of_packed, u64::MAX);
        let (done, left, unpacked_sum) = {
            let mut unpacker = Unpacker::new(&mut packed)?;
            let mut unpacked = Summed::new(&mut unpacker, !self.is_of_packed, most);
            let done = layer::apply(&mut unpacked, tree, disk);
            (done, unpacked.left(), unpacked.sum())
        };
        let is_too_large = |error: &anyhow::Error| {
            let kind = error.root_cause().downcast_ref().map(io::Error::kind);
            kind == Some(io::ErrorKind::FileTooLarge)
        };
        if done.as_ref().is_err_and(is_too_large) {
            return done.map(|()| 0).context(disk::too_large(limit));
        }
        // What is damaged may look like anything else, so the sum decides.
        let sum = match self.is_of_packed {
            true => {
                io::copy(&mut packed, &mut io::sink())?;
                packed.sum()
            }
            false => unpacked_sum.filter(|_| done.is_ok()),
        };
        sum.iter().try_for_each(|sum| self.digest.ensure(sum))?;
        done.map(|()| left)
    }
}

/// A piece of a file, read from its start.
struct Piece<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let len = self.file.read_at(&mut bytes[..len], self.at)?;
        (self.at, self.left) = (self.at + len as u64, self.left - len as u64);
        Ok(len)
    }
}

/// The SHA-256 sum of `bytes`, as 64 hexadecimal digits.
pub fn sum(bytes: &[u8]) -> String {
    Sum::of(bytes).hex().to_owned()
}

/// A text of the image's, fit to be printed.
fn shown(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

#[cfg(test)]
mod tests;
