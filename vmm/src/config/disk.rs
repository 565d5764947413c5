//! The configuration of a disk.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::text::{self, ensure_once};
use super::{RateLimit, is_default};

/// A raw disk image or block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct DiskConfig {
    /// The image file or block device.
    pub path: PathBuf,
    /// The guest may not write.
    pub readonly: bool,
    /// Uses O_DIRECT, without the host's page cache.
    pub direct: bool,
    /// Serial number that the guest sees, at most [`DiskConfig::MAX_ID`] bytes.
    pub id: Option<String>,
    /// The layer that takes the guest's writes; the disk's file is only read then.
    pub overlay: Option<Overlay>,
    /// How many of its requests are kept going at a time.
    pub aio: Aio,
    /// Bytes of a sector that the guest sees, 512 or 4096; `None` is the host's choice.
    pub sector: Option<u32>,
    /// Other machines are not kept from using its files meanwhile.
    pub unlocked: bool,
    /// Limits of bandwidth and requests; only the API sets them.
    pub limit: RateLimit,
}

/// How many requests of a disk are kept going at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// By io_uring where the host has it, by threads elsewhere.
    #[default]
    Auto,
    /// By io_uring.
    IoUring,
    /// By threads.
    Threads,
}

impl Aio {
    const NAMES: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("io_uring", Self::IoUring), ("threads", Self::Threads)];
}

const SECTORS: [(&str, u32); 2] = [("512", 512), ("4096", 4096)];

/// The layer that takes the guest's writes instead of the disk's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// A file without a name, lost when tinyvmm ends.
    Temporary,
    /// This file.
    Kept(PathBuf),
}

impl DiskConfig {
    /// Longest serial number, in bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID).
    pub const MAX_ID: usize = 20;
    /// What can follow the file; a value that is not named follows a `=`.
    pub const OPTIONS: [&str; 10] = [
        "readonly",
        "direct",
        "overlay",
        "overlay=",
        "aio=threads",
        "aio=io_uring",
        "sector=512",
        "sector=4096",
        "lock=off",
        "id=",
    ];

    /// A disk in the file at `path`, without options.
    pub fn new(path: PathBuf) -> Self {
        let (readonly, direct, unlocked) = (false, false, false);
        let (id, overlay, aio, sector, limit) = Default::default();
        Self { path, readonly, direct, id, overlay, aio, sector, unlocked, limit }
    }

    /// Refuses a file to which two of `disks` would write, or that one writes and another reads.
    pub fn ensure_apart(disks: &[Self]) -> Result<()> {
        for (index, disk) in disks.iter().enumerate() {
            let Self { path, overlay, .. } = disk;
            for other in &disks[..index] {
                ensure!(
                    *path != other.path || disk.is_shared() && other.is_shared(),
                    "--disk {}: it is there twice: leave one out, or say readonly or overlay in both",
                    text::part(path.display())
                );
                ensure!(
                    !matches!(overlay, Some(Overlay::Kept(_))) || *overlay != other.overlay,
                    "--disk {disk}: another disk has this overlay: name another file"
                );
            }
        }
        Ok(())
    }

    /// Refuses two of `disks` that have one serial number: a guest finds one of them by it.
    pub fn ensure_named_apart(disks: &[Self]) -> Result<()> {
        let names: Vec<_> = disks.iter().enumerate().map(|(at, disk)| disk.name(at)).collect();
        for (at, name) in names.iter().enumerate() {
            if let Some(first) = names[..at].iter().position(|other| other == name) {
                let (disk, first) = (&disks[at], disks[first].path.display());
                bail!("--disk {disk}: {first} has the id {name}, too: give each one of its own");
            }
        }
        Ok(())
    }

    /// The serial number that the guest sees, of the disk at `index`.
    pub fn name(&self, index: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("disk{index}"))
    }

    /// Its files: the image, and the layer that takes its writes; and whether other machines may have each open.
    pub fn files(&self) -> impl Iterator<Item = (&Path, bool)> {
        let layer = match &self.overlay {
            Some(Overlay::Kept(path)) => Some((&**path, false)),
            _ => None,
        };
        std::iter::once((&*self.path, self.is_shared())).chain(layer)
    }

    /// Whether other machines may have the disk's file open at the same time.
    pub fn is_shared(&self) -> bool {
        self.readonly || self.overlay.is_some()
    }
}

/// A serialized disk: as its flag's value, with fields beside that for what only the API sets.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Flag(String),
    Limited { disk: String, limit: RateLimit },
}

impl From<DiskConfig> for Form {
    fn from(disk: DiskConfig) -> Self {
        match (disk.to_string(), disk.limit) {
            (flag, limit) if is_default(&limit) => Self::Flag(flag),
            (disk, limit) => Self::Limited { disk, limit },
        }
    }
}

impl TryFrom<Form> for DiskConfig {
    type Error = String;

    fn try_from(form: Form) -> Result<Self, String> {
        match form {
            Form::Flag(flag) => flag.parse(),
            Form::Limited { disk, limit } => Ok(Self { limit, ..disk.parse()? }),
        }
    }
}

impl FromStr for DiskConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text::parts(text);
        let (path, options) = match parts.split_first() {
            Some((path, options)) if !path.is_empty() => (path, options),
            _ => return Err("say the disk's file first, then its options".into()),
        };
        ensure_once(options.iter().map(String::as_str))?;
        let mut disk = Self::new(path.into());
        for part in options.iter().map(String::as_str) {
            match part.split_once('=') {
                None if part == "readonly" => disk.readonly = true,
                None if part == "direct" => disk.direct = true,
                Some(("id", id)) if id.is_empty() || id.len() > Self::MAX_ID => {
                    return Err(format!("id '{id}' is not 1 to {} bytes long", Self::MAX_ID));
                }
                Some(("id", id)) => disk.id = Some(id.to_owned()),
                Some(("aio", name)) => disk.aio = choice("aio", name, &Aio::NAMES)?,
                Some(("lock", how)) => disk.unlocked = choice("lock", how, &[("off", true)])?,
                Some(("sector", size)) => disk.sector = Some(choice("sector", size, &SECTORS)?),
                None if part == "overlay" => disk.overlay = Some(Overlay::Temporary),
                Some(("overlay", file)) if !file.is_empty() => {
                    disk.overlay = Some(Overlay::Kept(file.into()));
                }
                _ => return Err(format!("'{part}' is no option of a disk: {}", remedy(part))),
            }
        }
        match disk {
            Self { overlay: Some(_), readonly: true, .. } => {
                Err("an overlay is for writing: leave out overlay or readonly".into())
            }
            Self { overlay: Some(_), direct: true, .. } => {
                Err("a disk with an overlay is read through the page cache: leave out direct"
                    .into())
            }
            disk => Ok(disk),
        }
    }
}

/// What `name` stands for among the values of `option`.
fn choice<T: Copy>(option: &str, name: &str, known: &[(&str, T)]) -> Result<T, String> {
    match known.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => Ok(*value),
        None => {
            let known: Vec<_> = known.iter().map(|(name, _)| format!("{option}={name}")).collect();
            Err(format!("'{option}={name}': say {}", known.join(" or ")))
        }
    }
}

/// The remedy for an unknown option.
fn remedy(part: &str) -> &'static str {
    let name = part.split('=').next().unwrap_or_default().to_lowercase();
    let name = match &*name {
        "ro" | "read-only" | "read_only" => "readonly",
        "cache" => "direct",
        "io" | "engine" | "io_engine" => "aio",
        "snapshot" | "cow" => "overlay",
        "locking" | "file.locking" => "lock",
        "logical_block_size" | "block_size" | "blocksize" => "sector",
        "serial" | "name" => "id",
        "rw" | "writable" => return "leave it out, a disk can be written unless readonly",
        "format" | "if" | "media" | "index" => return "leave it out, a disk is raw and virtio",
        name => name,
    };
    let names = ["readonly", "direct", "aio", "overlay", "lock", "sector", "id"];
    match text::nearest(name, names.into_iter()) {
        Some("readonly") => "say readonly, or leave it out",
        Some("direct") => "say direct, or leave it out",
        Some("aio") => "say aio=io_uring or aio=threads, or leave it out",
        Some("overlay") => "say overlay or overlay=FILE",
        Some("lock") => "say lock=off, or leave it out",
        Some("sector") => "say sector=512 or sector=4096",
        Some("id") => "say id=NAME",
        _ => {
            "say readonly, direct, overlay, overlay=FILE, aio=WAY, sector=SIZE, lock=off or \
             id=NAME; a comma of a file's name is ,,"
        }
    }
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&text::part(self.path.display()))?;
        if self.readonly {
            f.write_str(",readonly")?;
        }
        if self.direct {
            f.write_str(",direct")?;
        }
        match &self.overlay {
            None => {}
            Some(Overlay::Temporary) => f.write_str(",overlay")?,
            Some(Overlay::Kept(file)) => write!(f, ",overlay={}", text::part(file.display()))?,
        }
        if let Some((name, _)) =
            Aio::NAMES.iter().find(|(_, aio)| *aio == self.aio && *aio != Aio::Auto)
        {
            write!(f, ",aio={name}")?;
        }
        if let Some(sector) = self.sector {
            write!(f, ",sector={sector}")?;
        }
        if self.unlocked {
            f.write_str(",lock=off")?;
        }
        match &self.id {
            Some(id) => write!(f, ",id={}", text::part(id)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_file() {
        let disk: DiskConfig =
            "a b.img,direct,id=root,readonly,aio=threads,sector=4096,lock=off".parse().unwrap();
        assert!(disk.readonly && disk.direct && disk.aio == Aio::Threads);
        assert_eq!((disk.sector, disk.unlocked), (Some(4096), true));
        assert_eq!(disk.id.as_deref(), Some("root"));
        assert_eq!(disk.to_string().parse(), Ok(disk));
        for (text, why) in [
            ("", "file first"),
            (",readonly", "file first"),
            ("a,ro", "'ro' is no option of a disk: say readonly"),
            ("a,rw", "leave it out"),
            ("a,", "say readonly, direct"),
            ("a,id", "say id=NAME"),
            ("a,snapshot=on", "say overlay"),
            ("a,format=raw", "leave it out"),
            ("a,aio=native", "say aio=auto or aio=io_uring or aio=threads"),
            ("a,readnoly", "'readnoly' is no option of a disk: say readonly"),
            ("a,Direct", "say direct"),
            ("a,overlya=b", "say overlay or overlay=FILE"),
            ("a,sectors=512", "say sector=512"),
            ("a,locks=off", "say lock=off"),
            ("a,b.img", "a comma of a file's name is ,,"),
            ("a,lock=on", "'lock=on': say lock=off"),
            ("a,file.locking=off", "say lock=off"),
            ("a,sector=1024", "'sector=1024': say sector=512 or sector=4096"),
            ("a,sector", "say sector=512 or sector=4096"),
            ("a,logical_block_size=512", "say sector=512"),
            ("a,io=sync", "say aio=io_uring or aio=threads"),
            ("a,id=b,id=c", "'id' is there twice"),
            ("a,overlay,overlay=b", "'overlay' is there twice"),
            ("a,id=", "1 to 20 bytes"),
            ("a,id=123456789012345678901", "1 to 20 bytes"),
            ("a,readonly=1", "say readonly"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_written_is_one_disk() {
        let apart = |disks: &[&str]| {
            let disks: Vec<DiskConfig> = disks.iter().map(|text| text.parse().unwrap()).collect();
            DiskConfig::ensure_apart(&disks).map_err(|error| error.to_string())
        };
        for disks in [["a", "b"], ["a,readonly", "a,overlay"], ["a,overlay", "a,overlay=b"]] {
            apart(&disks).unwrap();
        }
        for disks in [["a", "a"], ["a,readonly", "a"], ["a,id=b", "a,direct"]] {
            assert!(apart(&disks).unwrap_err().contains("--disk a: it is there twice"));
        }
        assert!(apart(&["a,overlay=l", "b", "c,overlay=l"]).unwrap_err().contains("another file"));
    }

    #[test]
    fn no_two_disks_have_one_id() {
        let apart = |disks: &[&str]| {
            let disks: Vec<DiskConfig> = disks.iter().map(|text| text.parse().unwrap()).collect();
            DiskConfig::ensure_named_apart(&disks).map_err(|error| error.to_string())
        };
        apart(&["a,id=x", "b,id=y", "c"]).unwrap();
        let error = apart(&["a,id=x", "c", "b,id=x"]).unwrap_err();
        assert_eq!(error, "--disk b,id=x: a has the id x, too: give each one of its own");
        apart(&["a", "b,id=disk0"]).unwrap_err();
    }

    #[test]
    fn an_overlay_is_temporary_or_a_file() {
        for (text, overlay) in [
            ("a,overlay", Overlay::Temporary),
            ("a,overlay=b c.layer,id=x", Overlay::Kept("b c.layer".into())),
            ("a,,b,overlay=c,,,id=x,,y", Overlay::Kept("c,".into())),
        ] {
            let disk: DiskConfig = text.parse().unwrap();
            assert_eq!(disk.overlay, Some(overlay));
            assert!(disk.is_shared() && !disk.readonly);
            assert_eq!(disk.to_string(), text);
        }
        for text in ["a,overlay=", "a,overlay,readonly", "a,readonly,overlay=b", "a,direct,overlay"]
        {
            text.parse::<DiskConfig>().unwrap_err();
        }
    }
}
