//! A disk that is made of a folder of this host.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::disk::Disk;
use crate::layout::open_file;
use crate::tree::{Attributes, Id, Kind, ROOT, Tree};

/// Who nobody else is anybody to (Documentation/admin-guide/sysctl/fs.rst, overflowuid).
const NOBODY: u32 = 65534;

/// Writes a disk with all of the folder at `path` to `file`, which is empty: at most `limit` bytes. If this user is not
/// root, what is this user's belongs to root there, and all else to nobody.
///
/// # Errors
///
/// A file cannot be read, the folder is too large, or `file` cannot be written.
pub fn write_folder(path: &Path, file: &fs::File, limit: u64) -> Result<()> {
    let (mut tree, mut disk) = (Tree::new(), Disk::new(file, limit)?);
    let mut known = HashMap::new();
    let found = fs::metadata(path).with_context(|| path.display().to_string())?;
    tree.set_attributes(ROOT, attributes(&found))?;
    let mut left = vec![(path.to_owned(), ROOT)];
    while let Some((folder, id)) = left.pop() {
        let named = || folder.display().to_string();
        let mut entries = fs::read_dir(&folder)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .with_context(named)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let added = add(&path, id, &mut tree, &mut disk, &mut known);
            if let Some(id) = added.with_context(|| path.display().to_string())? {
                left.push((path, id));
            }
        }
    }
    disk.finish(&tree)
}

/// Adds what is at `path` to the folder `parent`. Returns its own number if it is a folder.
fn add(
    path: &PathBuf,
    parent: Id,
    tree: &mut Tree,
    disk: &mut Disk,
    known: &mut HashMap<(u64, u64), Id>,
) -> Result<Option<Id>> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None), // removed meanwhile
        found => found?,
    };
    let kind = found.file_type();
    if kind.is_dir() {
        tree.put_folder(parent, name, attributes(&found))?;
        return Ok(tree.child(parent, name));
    }
    let key = (found.dev(), found.ino());
    if let Some(id) = known.get(&key) {
        tree.link(parent, name, *id)?;
        return Ok(None);
    }
    let numbers = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
    let kind = if kind.is_file() {
        let mut file = open_file(path)?;
        let size = file.metadata()?.len();
        Kind::File { block: disk.add(&mut file, size)?, size }
    } else if kind.is_symlink() {
        Kind::Link(fs::read_link(path)?.into_os_string().into_vec())
    } else if kind.is_fifo() {
        Kind::Pipe
    } else if kind.is_char_device() {
        Kind::Characters(numbers.0, numbers.1)
    } else if kind.is_block_device() {
        Kind::Blocks(numbers.0, numbers.1)
    } else if kind.is_socket() {
        return Ok(None); // nobody listens to it there
    } else {
        bail!("it is of a kind that is not known here")
    };
    let id = tree.put(parent, name, kind, attributes(&found))?;
    if found.nlink() > 1 {
        known.insert(key, id);
    }
    Ok(None)
}

fn attributes(found: &Metadata) -> Attributes {
    let (own, group) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
    let is_root = geteuid().is_root();
    let seen = |number: u32, own: u32| match number {
        number if is_root => number,
        number if number == own => 0,
        _ => NOBODY,
    };
    Attributes {
        mode: (found.mode() & 0o7777) as u16,
        owner: (seen(found.uid(), own), seen(found.gid(), group)),
        mtime: found.mtime().max(0) as u64,
        extended: Vec::new(),
    }
}
