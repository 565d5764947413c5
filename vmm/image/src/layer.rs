//! A layer: an archive of tar's whose entries are laid over what is there, with the names by which it removes some (OCI
//! image specification, "Image Layer Filesystem Changeset").

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use archive::{Entry, Reader};

use crate::disk::Disk;
use crate::tree::{Attributes, Kind, ROOT, Tree};

/// Begins the name of what removes the rest of its name, and the names that are not for that.
const REMOVES: &[u8] = b".wh.";
const RESERVED: &[u8] = b".wh..wh.";
/// Removes all that earlier layers have in its folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What overlayfs would take for its own.
const OF_OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Lays the archive in `source` over `tree`; contents of files go to `disk`.
pub fn apply(source: &mut dyn Read, tree: &mut Tree, disk: &mut Disk) -> Result<()> {
    tree.begin_layer();
    let mut reader = Reader::of_summed(source);
    while let Some(entry) = reader.next_entry()? {
        let name = shown(&entry.name);
        apply_entry(entry, &mut reader, tree, disk).with_context(|| name)?;
    }
    Ok(())
}

fn apply_entry(
    mut entry: Entry,
    contents: &mut Reader<&mut dyn Read>,
    tree: &mut Tree,
    disk: &mut Disk,
) -> Result<()> {
    let path = std::mem::take(&mut entry.name);
    let names = names(&path)?;
    let attributes = attributes(&mut entry);
    let Some((name, folders)) = names.split_last() else {
        ensure!(entry.kind == archive::FOLDER, "the root is no folder");
        return tree.set_attributes(ROOT, attributes);
    };
    if name.starts_with(REMOVES) {
        return remove(name, folders, tree);
    }
    let parent = tree.resolve(folders, true)?.context("no folder")?;
    let device = entry.device;
    let kind = match entry.kind {
        archive::FOLDER => return tree.put_folder(parent, name, attributes),
        archive::HARD_LINK => return link(&entry.link, parent, name, tree),
        archive::FILE => {
            let block = disk.add(contents, entry.size)?;
            Kind::File { block, size: entry.size }
        }
        archive::LINK => Kind::Link(entry.link),
        archive::CHARACTERS => Kind::Characters(device.0, device.1),
        archive::BLOCKS => Kind::Blocks(device.0, device.1),
        archive::PIPE => Kind::Pipe,
        other => bail!("an entry of the kind {:?}, which is not known here", char::from(other)),
    };
    tree.put(parent, name, kind, attributes).map(drop)
}

/// The names on `path`, which is below the root also if it starts with a slash.
fn names(path: &[u8]) -> Result<Vec<&[u8]>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| ![&b""[..], b"."].contains(name));
    let names: Vec<_> = names.collect();
    ensure!(!names.contains(&&b".."[..]), "a path with '..', which could lead out of the image");
    Ok(names)
}

fn remove(name: &[u8], folders: &[&[u8]], tree: &mut Tree) -> Result<()> {
    let Some(parent) = tree.resolve(folders, false)? else { return Ok(()) };
    if name == OPAQUE {
        return tree.hide_lower(parent).map(drop);
    }
    if name.starts_with(RESERVED) {
        return Ok(());
    }
    let removed = &name[REMOVES.len()..];
    ensure!(![&b""[..], b".", b".."].contains(&removed), "it removes a folder that it is in");
    tree.remove_lower(parent, removed)
}

/// Gives the file that `target` names another name.
fn link(target: &[u8], parent: usize, name: &[u8], tree: &mut Tree) -> Result<()> {
    let names = names(target)?;
    let nowhere = || format!("a hard link to {}, which is not there", shown(target));
    let (last, folders) = names.split_last().with_context(nowhere)?;
    let folder = tree.resolve(folders, false)?.with_context(nowhere)?;
    let id = tree.child(folder, last).with_context(nowhere)?;
    ensure!(tree.folder(id).is_none(), "a hard link to a folder");
    tree.link(parent, name, id)
}

fn attributes(entry: &mut Entry) -> Attributes {
    let mut extended = std::mem::take(&mut entry.attributes);
    extended.retain(|(name, _)| !OF_OVERLAY.iter().any(|start| name.starts_with(start)));
    extended.sort();
    Attributes { mode: entry.mode as u16, owner: entry.owner, mtime: entry.mtime, extended }
}

/// A name of the image's, fit to be printed.
pub fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(100)]);
    format!("'{}'", text.escape_debug())
}
