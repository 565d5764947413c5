//! A file with images as `docker save` and `podman save` write it: an archive of tar's, whose `manifest.json` names the
//! parts of each image. Layers are checked by the sums of what they unpack to, which the configuration has.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use archive::Reader;

use crate::json::{Configuration, MAX_BYTES, Saved, parse};
use crate::layout::{open_file, read_all};
use crate::sum::Sum;
use crate::{Image, Layer, Piece, shown};

/// Most entries of the archive.
const MAX_ENTRIES: usize = 1 << 14;
/// Most links from one to the next.
const MAX_LINKS: u32 = 8;

/// What the archive has, by name.
enum Part {
    File { start: u64, size: u64 },
    Link(Vec<u8>),
}

struct Archive {
    file: File,
    parts: BTreeMap<Vec<u8>, Part>,
}

/// Reads the image that `tag` names in the file at `path`, or the only one.
pub fn open(path: &Path, tag: Option<&str>) -> Result<Image> {
    let archive = Archive::open(open_file(path)?)?;
    let read = |name: &str| archive.read(name).with_context(|| shown(name));
    let images: Vec<Saved> = parse(&read("manifest.json")?).context("manifest.json")?;
    let image = pick(&images, tag)?;
    let bytes = read(&image.config)?;
    // Its name is its sum: HEX.json, or blobs/sha256/HEX.
    let name = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    let sum = Sum::of_hex(name).with_context(|| shown(&image.config))?;
    sum.ensure(&Sum::of(&bytes)).context("its configuration")?;
    let config: Configuration = parse(&bytes).context("its configuration")?;
    let sums = config.rootfs.as_ref().map(|rootfs| &rootfs.diff_ids[..]).unwrap_or_default();
    ensure!(sums.len() == image.layers.len(), "its configuration has sums of other layers");
    let layer = |(name, sum): (&String, &String)| {
        let (start, size) = archive.find(name).with_context(|| shown(name))?;
        let (file, digest) = (archive.file.try_clone()?, Sum::parse(sum)?);
        Ok(Layer { file, start, size, digest, is_of_packed: false })
    };
    let layers = image.layers.iter().zip(sums).map(layer).collect::<Result<_>>()?;
    Image::new(config, layers)
}

/// The one that `tag` names, by the end of its name at least, or the only one.
fn pick<'a>(images: &'a [Saved], tag: Option<&str>) -> Result<&'a Saved> {
    let tags = images.iter().flat_map(|image| image.repo_tags.iter().flatten());
    let tags = tags.take(10).map(|tag| shown(tag)).collect::<Vec<_>>().join(", ");
    let Some(tag) = tag else {
        return match images {
            [only] => Ok(only),
            [] => bail!("there is no image in it"),
            _ => bail!("it has several images: name one with :TAG ({tags})"),
        };
    };
    // localhost/busybox:1 is busybox:1, and 1.
    let is_it = |name: &String| {
        name.strip_suffix(tag).is_some_and(|rest| rest.is_empty() || rest.ends_with(['/', ':']))
    };
    let found = images.iter().find(|image| image.repo_tags.iter().flatten().any(is_it));
    found.with_context(|| format!("there is no image {} in it ({tags})", shown(tag)))
}

impl Archive {
    fn open(file: File) -> Result<Self> {
        let mut magic = [0; 4];
        let is_packed = file.read_exact_at(&mut magic, 0).is_ok()
            && (magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd]);
        ensure!(!is_packed, "it is packed: unpack it, as in gunzip or unzstd");
        let mut reader = Reader::of_summed(&file);
        let mut parts = BTreeMap::new();
        // Each part that is used has a sum.
        while let Some(entry) = reader.next_entry()? {
            ensure!(parts.len() < MAX_ENTRIES, "it has more than {MAX_ENTRIES} parts");
            let part = match entry.kind {
                archive::FILE => Part::File { start: reader.skip()?, size: entry.size },
                archive::LINK | archive::HARD_LINK => Part::Link(entry.link),
                _ => continue,
            };
            parts.insert(entry.name, part);
        }
        Ok(Self { file, parts })
    }

    /// Where the part `name` begins, and its bytes. Older programs have a layer once, and links to it: `../ID/layer.tar`.
    fn find(&self, name: &str) -> Result<(u64, u64)> {
        let mut name = name.as_bytes();
        for _ in 0..MAX_LINKS {
            match self.parts.get(name).context("it is not in the file")? {
                Part::File { start, size } => return Ok((*start, *size)),
                Part::Link(target) => name = target.strip_prefix(b"../").unwrap_or(target),
            }
        }
        bail!("more than {MAX_LINKS} links from one to the next")
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let (at, left) = self.find(name)?;
        read_all(Piece { file: &self.file, at, left }, MAX_BYTES)
    }
}
