//! A folder with an image, as the OCI image specification has it ("Image Layout"): what skopeo, podman and buildah write.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::json::{Configuration, Descriptor, Document, MAX_BYTES, parse};
use crate::sum::Sum;
use crate::{Image, Layer, shown};

/// Most indexes that lead from one to the next.
const MAX_DEPTH: u32 = 4;

/// Reads the image that `tag` names in `folder`, or the only one.
pub fn open(folder: &Path, tag: Option<&str>) -> Result<Image> {
    let read = |name: &str| read_all(open_file(&folder.join(name))?, MAX_BYTES);
    let index = read("index.json").context(
        "index.json: the folder is no OCI layout: make one, as in skopeo copy docker://NAME oci:DIR",
    )?;
    let index: Document = parse(&index).context("index.json")?;
    let all = index.manifests.unwrap_or_default();
    let mut found = pick(&all, tag)?.clone();
    for _ in 0..MAX_DEPTH {
        let document: Document =
            part(folder, &found).with_context(|| format!("manifest {}", shown(&found.digest)))?;
        match (document.manifests, document.config, document.layers) {
            (Some(manifests), ..) => found = of_platform(manifests)?,
            (None, Some(config), Some(layers)) => return image(folder, &config, &layers),
            _ => bail!("manifest {}: it names no layers", shown(&found.digest)),
        }
    }
    bail!("more than {MAX_DEPTH} indexes that lead from one to the next")
}

/// The one that `tag` names, or the only one.
fn pick<'a>(all: &'a [Descriptor], tag: Option<&str>) -> Result<&'a Descriptor> {
    let mut tags: Vec<_> = all.iter().filter_map(Descriptor::tag).map(shown).take(10).collect();
    tags.sort_unstable();
    let tags = if tags.is_empty() { "none has a name".into() } else { tags.join(", ") };
    match (tag, all) {
        (None, [only]) => Ok(only),
        (None, []) => bail!("there is no image in it"),
        (None, _) => bail!("it has several images: name one with :TAG ({tags})"),
        (Some(tag), _) => all
            .iter()
            .find(|one| one.tag() == Some(tag))
            .with_context(|| format!("there is no image {} in it ({tags})", shown(tag))),
    }
}

fn of_platform(manifests: Vec<Descriptor>) -> Result<Descriptor> {
    let is_ours =
        |one: &Descriptor| one.platform.as_ref().is_none_or(|platform| platform.is_ours());
    manifests.into_iter().find(is_ours).context(
        "none of its images is for linux/amd64: fetch that one, as in skopeo copy --override-arch amd64",
    )
}

fn image(folder: &Path, config: &Descriptor, layers: &[Descriptor]) -> Result<Image> {
    let config: Configuration = part(folder, config).context("its configuration")?;
    let layer = |layer: &Descriptor| {
        let digest = Sum::parse(&layer.digest)?;
        let name = digest.to_string();
        let file = blob(folder, &digest, layer.size).with_context(|| format!("layer {name}"))?;
        Ok(Layer { file, start: 0, size: layer.size, digest, is_of_packed: true })
    };
    Image::new(config, layers.iter().map(layer).collect::<Result<_>>()?)
}

/// Reads and checks a part that is JSON.
fn part<T: serde::de::DeserializeOwned>(folder: &Path, descriptor: &Descriptor) -> Result<T> {
    let sum = Sum::parse(&descriptor.digest)?;
    let bytes = read_all(blob(folder, &sum, descriptor.size)?, descriptor.size.min(MAX_BYTES))?;
    sum.ensure(&Sum::of(&bytes))?;
    parse(&bytes)
}

/// The file with this sum, which has `size` bytes.
fn blob(folder: &Path, sum: &Sum, size: u64) -> Result<File> {
    let path = folder.join("blobs/sha256").join(sum.hex());
    let file = open_file(&path).context("it is not in the folder")?;
    let found = file.metadata()?.len();
    ensure!(found == size, "it has {found} bytes instead of {size}");
    Ok(file)
}

/// Opens a file; a named pipe is refused instead of waited for.
pub fn open_file(path: &Path) -> Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    ensure!(file.metadata()?.is_file(), "it is no file");
    Ok(file)
}

/// All of `file`, which may have `most` bytes.
pub fn read_all(file: impl Read, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= most, "it has more than {most} bytes");
    Ok(bytes)
}
