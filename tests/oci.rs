//! Images made by hand, in the OCI layout.

use std::fs;
use std::path::Path;

use archive::Entry;
use sha2::{Digest, Sha256};

use crate::dir::Dir;

/// An entry of a layer, of the kind that `name` ends in `/`, or `link` says.
pub struct Part<'a> {
    pub name: &'a str,
    pub contents: &'a [u8],
    pub link: &'a str,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// A file or, with a slash at its end, a folder, of root's.
pub fn part<'a>(name: &'a str, contents: &'a [u8]) -> Part<'a> {
    Part { name, contents, link: "", mode: 0o755, owner: (0, 0) }
}

/// A symbolic link.
pub fn link<'a>(name: &'a str, target: &'a str) -> Part<'a> {
    Part { link: target, mode: 0o777, ..part(name, b"") }
}

/// A layer, as an archive of tar's.
pub fn layer(parts: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        let kind = match part {
            _ if !part.link.is_empty() => archive::LINK,
            _ if part.name.ends_with('/') => archive::FOLDER,
            _ => archive::FILE,
        };
        let (mode, owner, size) = (part.mode, part.owner, part.contents.len() as u64);
        let (name, link) = (part.name.into(), part.link.into());
        let entry = Entry { kind, name, link, mode, owner, size, ..Entry::default() };
        archive::write_header(&mut bytes, &entry).unwrap();
        bytes.extend(part.contents);
        archive::pad(&mut bytes, size).unwrap();
    }
    archive::write_end(&mut bytes).unwrap();
    bytes
}

/// A folder in which an image of `layers` and `config`, the JSON of what is run, is `image`.
pub fn layout(layers: &[Vec<u8>], config: &str) -> Dir {
    let dir = Dir::new();
    write(&dir.path("image"), layers, config);
    dir
}

fn write(folder: &Path, layers: &[Vec<u8>], config: &str) {
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(folder.join("blobs/sha256").join(&hex), bytes).unwrap();
        format!(r#"{{"digest":"sha256:{hex}","size":{}}}"#, bytes.len())
    };
    let layers: Vec<_> = layers.iter().map(|layer| blob(layer)).collect();
    let config = format!(r#"{{"os":"linux","architecture":"amd64","config":{config}}}"#);
    let config = blob(config.as_bytes());
    let manifest = format!(r#"{{"config":{config},"layers":[{}]}}"#, layers.join(","));
    let index = format!(r#"{{"manifests":[{}]}}"#, blob(manifest.as_bytes()));
    fs::write(folder.join("index.json"), index).unwrap();
}
