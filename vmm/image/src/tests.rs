//! Images made by hand, and what is on the disks that are made of them.

mod made;
mod refusals;
mod whiteouts;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use archive::Entry;
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::sum::Sum;

/// More than any of these images needs.
const LIMIT: u64 = 64 << 20;

/// Entries of a layer: kind, name, and contents or where a link leads.
type Entries<'a> = [(u8, &'a str, &'a str)];

fn layer(entries: &Entries) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, text) in entries {
        let is_file = *kind == archive::FILE;
        let link = if is_file { Vec::new() } else { text.as_bytes().into() };
        let size = if is_file { text.len() as u64 } else { 0 };
        let (mode, mtime, owner) = (0o751, 1_600_000_000, (1000, 50));
        let name = name.as_bytes().into();
        let kind = *kind;
        let entry = Entry { kind, name, link, mode, mtime, size, owner, ..Entry::default() };
        archive::write_header(&mut bytes, &entry).unwrap();
        if is_file {
            bytes.extend(text.as_bytes());
        }
        archive::pad(&mut bytes, size).unwrap();
    }
    archive::write_end(&mut bytes).unwrap();
    bytes
}

/// A folder with an image of these layers.
struct Layout {
    folder: TempDir,
    manifests: Vec<String>,
}

impl Layout {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir_all(folder.as_path().join("blobs/sha256")).unwrap();
        Self { folder, manifests: Vec::new() }
    }

    /// Adds a part; returns how others name it.
    fn part(&self, bytes: &[u8]) -> String {
        let sum = Sum::of(bytes);
        let path = self.folder.as_path().join("blobs/sha256").join(sum.hex());
        std::fs::write(path, bytes).unwrap();
        format!(r#""digest":"sha256:{}","size":{}"#, sum.hex(), bytes.len())
    }

    /// Adds an image; returns how an index names it.
    fn image(&self, layers: &[Vec<u8>], config: &str) -> String {
        let layers: Vec<_> =
            layers.iter().map(|layer| format!("{{{}}}", self.part(layer))).collect();
        let config = self.part(config.as_bytes());
        let layers = layers.join(",");
        self.part(format!(r#"{{"config":{{{config}}},"layers":[{layers}]}}"#).as_bytes())
    }

    fn add(mut self, descriptor: &str) -> Self {
        self.manifests.push(format!("{{{descriptor}}}"));
        let index = format!(r#"{{"manifests":[{}]}}"#, self.manifests.join(","));
        std::fs::write(self.folder.as_path().join("index.json"), index).unwrap();
        self
    }

    fn with_layers(layers: &[Vec<u8>]) -> Self {
        let this = Self::new();
        let image = this.image(layers, CONFIG);
        this.add(&image)
    }

    fn open(&self, tag: &str) -> Result<Image> {
        let text = format!("oci:{}{tag}", self.folder.as_path().display());
        Image::open(&text.parse().unwrap())
    }
}

const CONFIG: &str = r#"{"os":"linux","architecture":"amd64"}"#;

fn disk_of(image: &Image) -> Result<File> {
    let file = TempFile::new().unwrap().into_file();
    image.write(&file, LIMIT).map(|()| file)
}

/// What is on the disk that is made of these layers, by path.
#[track_caller]
fn files_of(layers: &[&Entries]) -> BTreeMap<String, String> {
    let layers: Vec<_> = layers.iter().map(|entries| layer(entries)).collect();
    read(&disk_of(&Layout::with_layers(&layers).open("").unwrap()).unwrap())
}

/// Why these layers are refused.
#[track_caller]
fn refused(layers: &[&Entries]) -> String {
    let layers: Vec<_> = layers.iter().map(|entries| layer(entries)).collect();
    format!("{:#}", disk_of(&Layout::with_layers(&layers).open("").unwrap()).err().unwrap())
}

fn number<const N: usize>(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes[..N], at).unwrap();
    u64::from_le_bytes(bytes)
}

/// Reads a disk of ours, as the kernel would: fs/erofs/erofs_fs.h. Each path has `MODE OWNER:GROUP LINKS`, and contents.
fn read(file: &File) -> BTreeMap<String, String> {
    assert_eq!(number::<4>(file, 1024), 0xe0f5_e1e2);
    let blocks = number::<4>(file, 1024 + 36);
    assert_eq!(file.metadata().unwrap().len(), blocks * 4096);
    let meta = number::<4>(file, 1024 + 40) * 4096;
    let mut found = BTreeMap::new();
    let mut left = vec![(String::new(), number::<2>(file, 1024 + 14))];
    let mut numbers = std::collections::BTreeSet::new();
    while let Some((path, nid)) = left.pop() {
        numbers.insert(nid);
        let at = meta + nid * 32;
        let (format, words) = (number::<2>(file, at), number::<2>(file, at + 2));
        let (mode, size) = (number::<2>(file, at + 4), number::<8>(file, at + 8));
        let block = number::<4>(file, at + 16);
        let start = match format {
            1 => block * 4096,
            5 => at + 64 + if words == 0 { 0 } else { 12 + 4 * (words - 1) },
            _ => panic!("format {format} of {path}"),
        };
        let is_device = [0o020_000, 0o060_000].contains(&(mode & 0o170_000));
        let mut contents = vec![0; size as usize];
        file.read_exact_at(&mut contents, start).unwrap();
        let text = if is_device {
            format!("{block:x}")
        } else {
            String::from_utf8_lossy(&contents).into_owned()
        };
        let (user, group) = (number::<4>(file, at + 24), number::<4>(file, at + 28));
        let links = number::<4>(file, at + 44);
        let what = format!("{mode:o} {user}:{group} {links}");
        if mode & 0o170_000 == 0o040_000 {
            found.insert(format!("{path}/"), what);
            for (name, nid, _) in entries(&contents) {
                if ![".", ".."].contains(&&*name) {
                    left.push((format!("{path}/{name}"), nid));
                }
            }
        } else {
            found.insert(path, format!("{what} {text}"));
        }
    }
    assert_eq!(number::<8>(file, 1024 + 16), numbers.len() as u64);
    found
}

/// The entries of a folder, which are in the order of their names.
fn entries(contents: &[u8]) -> Vec<(String, u64, u8)> {
    let mut all = Vec::new();
    for block in contents.chunks(4096) {
        let short = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
        let count = short(8) / 12;
        for index in 0..count {
            let at = index * 12;
            let start = short(at + 8);
            let end = if index + 1 < count { short(at + 20) } else { block.len() };
            let name = block[start..end].split(|byte| *byte == 0).next().unwrap();
            let nid = u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
            all.push((String::from_utf8(name.to_vec()).unwrap(), nid, block[at + 10]));
        }
    }
    assert!(all.is_sorted_by(|one, next| one.0 < next.0), "{all:?}");
    all
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
