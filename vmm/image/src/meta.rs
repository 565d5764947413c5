//! Inodes and folders of the disk's file system, as fs/erofs/erofs_fs.h has them.

use std::collections::VecDeque;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

use crate::disk::{BLOCK, Disk};
use crate::tree::{Folder, Id, Inode, Kind, ROOT, Tree};

/// Bytes of an inode with all fields, and what inodes are counted in.
const INODE: usize = 64;
const SLOT: usize = 32;
/// Bytes of a folder's entry without its name.
const ENTRY: usize = 12;
/// Bytes before an inode's extended attributes.
const ATTRIBUTES: usize = 12;
/// Most bytes of a folder or a link that are beside the inode instead of in blocks of their own.
const MAX_INLINE: usize = 2048;
/// Names of extended attributes begin with one of these, of which only the number is kept.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Where an inode is.
struct Place {
    id: Id,
    /// Bytes from the first inode's block.
    at: usize,
    /// Bytes of a folder's or a link's contents.
    len: usize,
    /// The first block of contents that are not beside it.
    block: Option<u32>,
}

/// Where all inodes are, in the order in which they are written.
struct Layout {
    places: Vec<Place>,
    /// The place of each inode that is in use.
    of: Vec<Option<usize>>,
    /// How many names each one has.
    names: Vec<u32>,
    /// Bytes of all of them.
    len: usize,
}

/// Writes the inodes of `tree` to `disk`. Returns the number of the root's, and how many there are.
pub fn write(tree: &Tree, disk: &mut Disk) -> Result<(u16, u64)> {
    let mut layout = Layout::new(tree);
    disk.take(layout.len as u64)?;
    for place in &mut layout.places {
        if place.block.is_some() {
            place.block = Some(disk.next);
            disk.take(place.len as u64)?;
        }
    }
    let mut at = 0;
    for place in &layout.places {
        disk.write(&[0; BLOCK][..place.at - at])?;
        let bytes = layout.inode(tree, place)?;
        disk.write(&bytes)?;
        at = place.at + bytes.len();
    }
    disk.pad(at)?;
    for place in layout.places.iter().filter(|place| place.block.is_some()) {
        let contents = layout.contents(tree, place.id)?;
        disk.write(&contents)?;
        disk.pad(contents.len())?;
    }
    let root = layout.number(ROOT).context("no root")?;
    Ok((root.try_into()?, layout.places.len() as u64))
}

impl Layout {
    fn new(tree: &Tree) -> Self {
        let (of, names) = (vec![None; tree.inodes.len()], vec![0; tree.inodes.len()]);
        // No inode has the number 0, which stands for none in other file systems.
        let mut this = Self { places: Vec::new(), of, names, len: INODE };
        let mut left = VecDeque::from([ROOT]);
        while let Some(id) = left.pop_front() {
            this.names[id] += 1;
            if this.of[id].is_some() {
                continue; // a hard link
            }
            this.place(id, &tree.inodes[id]);
            if let Some(folder) = tree.folder(id) {
                left.extend(folder.children.values().map(|child| child.id));
            }
        }
        this
    }

    fn place(&mut self, id: Id, inode: &Inode) {
        let len = match &inode.kind {
            Kind::Folder(folder) => packed_len(&names(folder)),
            Kind::Link(target) => target.len(),
            _ => 0,
        };
        let own = INODE + attributes(inode).len();
        let is_inline = len <= MAX_INLINE && own + len <= BLOCK;
        let whole = if is_inline { own + len } else { own };
        // What is beside an inode may not go over the end of its block.
        if is_inline && len > 0 && self.len % BLOCK + whole > BLOCK {
            self.len = self.len.next_multiple_of(BLOCK);
        }
        self.of[id] = Some(self.places.len());
        self.places.push(Place { id, at: self.len, len, block: (!is_inline).then_some(0) });
        self.len = (self.len + whole).next_multiple_of(SLOT);
    }

    fn number(&self, id: Id) -> Option<u64> {
        let place = &self.places[self.of[id]?];
        Some((place.at / SLOT) as u64)
    }

    /// The inode, its extended attributes, and the contents that are beside it.
    fn inode(&self, tree: &Tree, place: &Place) -> Result<Vec<u8>> {
        let inode = &tree.inodes[place.id];
        let is_folder = |id: &Id| tree.folder(*id).is_some();
        // The format, the size, and what is in the place of the first block.
        let (kind, size, start) = match &inode.kind {
            Kind::Folder(_) => (0o040_000, place.len as u64, place.block.unwrap_or(0)),
            Kind::Link(_) => (0o120_000, place.len as u64, place.block.unwrap_or(0)),
            Kind::File { block, size } => (0o100_000, *size, *block),
            Kind::Characters(major, minor) => (0o020_000, 0, device(*major, *minor)?),
            Kind::Blocks(major, minor) => (0o060_000, 0, device(*major, *minor)?),
            Kind::Pipe => (0o010_000, 0, 0),
        };
        let links = match &inode.kind {
            Kind::Folder(folder) => {
                2 + folder.children.values().filter(|child| is_folder(&child.id)).count() as u32
            }
            _ => self.names[place.id],
        };
        let is_inline = place.len > 0 && place.block.is_none();
        let extended = attributes(inode);
        let words = extended.len().saturating_sub(ATTRIBUTES - 4) / 4;
        let format: u16 = if is_inline { 2 << 1 | 1 } else { 1 };
        let owner = inode.attributes.owner;
        let mut out = Vec::with_capacity(INODE);
        out.extend(format.to_le_bytes());
        out.extend(u16::try_from(words).context("too many extended attributes")?.to_le_bytes());
        out.extend((kind | inode.attributes.mode & 0o7777).to_le_bytes());
        out.extend([0; 2]);
        out.extend(size.to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend(((place.at / SLOT) as u32).to_le_bytes());
        out.extend(owner.0.to_le_bytes());
        out.extend(owner.1.to_le_bytes());
        out.extend(inode.attributes.mtime.to_le_bytes());
        out.extend([0; 4]); // nanoseconds
        out.extend(links.to_le_bytes());
        out.resize(INODE, 0);
        out.extend(extended);
        if is_inline {
            out.extend(self.contents(tree, place.id)?);
        }
        Ok(out)
    }

    /// A folder's entries, or a link's target.
    fn contents(&self, tree: &Tree, id: Id) -> Result<Vec<u8>> {
        let folder = match &tree.inodes[id].kind {
            Kind::Link(target) => return Ok(target.clone()),
            Kind::Folder(folder) => folder,
            _ => return Ok(Vec::new()),
        };
        let names = names(folder);
        let mut out = Vec::new();
        for group in groups(&names) {
            out.resize(out.len().next_multiple_of(BLOCK), 0);
            let names = &names[group];
            let mut name_at = names.len() * ENTRY;
            for name in names {
                let id = match *name {
                    b"." => id,
                    b".." => folder.parent,
                    name => folder.children.get(name).context("no child")?.id,
                };
                out.extend(self.number(id).context("no inode")?.to_le_bytes());
                out.extend((name_at as u16).to_le_bytes());
                out.extend([entry_kind(&tree.inodes[id].kind), 0]);
                name_at += name.len();
            }
            names.iter().for_each(|name| out.extend(*name));
        }
        Ok(out)
    }
}

/// The names in a folder, in the order of their bytes, in which they are looked for.
fn names(folder: &Folder) -> Vec<&[u8]> {
    let mut names: Vec<&[u8]> = folder.children.keys().map(Vec::as_slice).collect();
    names.extend([&b"."[..], b".."]);
    names.sort_unstable();
    names
}

/// Which of `names` share a block: each has its entries first, and then their names.
fn groups(names: &[&[u8]]) -> Vec<Range<usize>> {
    let (mut groups, mut start, mut used) = (Vec::new(), 0, 0);
    for (index, name) in names.iter().enumerate() {
        if used + ENTRY + name.len() > BLOCK {
            groups.push(start..index);
            (start, used) = (index, 0);
        }
        used += ENTRY + name.len();
    }
    groups.push(start..names.len());
    groups
}

fn packed_len(names: &[&[u8]]) -> usize {
    let groups = groups(names);
    let last = groups.last().cloned().unwrap_or_default();
    let used: usize = names[last].iter().map(|name| ENTRY + name.len()).sum();
    (groups.len() - 1) * BLOCK + used
}

/// FT_ of include/linux/fs_types.h.
fn entry_kind(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Folder(_) => 2,
        Kind::Characters(..) => 3,
        Kind::Blocks(..) => 4,
        Kind::Pipe => 5,
        Kind::Link(_) => 7,
    }
}

/// new_encode_dev (include/linux/kdev_t.h).
fn device(major: u32, minor: u32) -> Result<u32> {
    ensure!(major < 1 << 12 && minor < 1 << 20, "a device {major}:{minor}, which cannot be");
    Ok(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// The extended attributes that Linux knows, as they follow the inode; nothing if there are none.
fn attributes(inode: &Inode) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in &inode.attributes.extended {
        let prefix = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix));
        let Some((prefix, number)) = prefix else { continue };
        let name = &name[prefix.len()..];
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(name.len()), u16::try_from(value.len()))
        else {
            continue; // longer than what Linux sets (XATTR_NAME_MAX)
        };
        if out.is_empty() {
            out.resize(ATTRIBUTES, 0);
        }
        out.extend([name_len, *number]);
        out.extend(value_len.to_le_bytes());
        out.extend(name);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}
