//! The files of an image while its layers are laid one over the other: all but their contents, in memory. Paths are those
//! of the image; no file of this host is opened by one.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// Most files, folders and links of all layers together.
const MAX_INODES: usize = 1 << 20;
/// Most bytes of their names, targets and extended attributes.
const MAX_BYTES: usize = 128 << 20;
/// Most lookups, for all layers: an image of a million files needs a tenth of it.
const MAX_STEPS: u64 = 1 << 28;
/// Most folders within each other.
const MAX_DEPTH: u32 = 256;
/// Most symbolic links on one path, as Linux's MAXSYMLINKS.
const MAX_LINKS: u32 = 40;
/// Most bytes of a name (NAME_MAX), and of a link's target (PATH_MAX without its zero byte).
const MAX_NAME: usize = 255;
const MAX_TARGET: usize = 4095;

/// An inode's place in [`Tree::inodes`].
pub type Id = usize;
/// The image's root folder.
pub const ROOT: Id = 0;

/// What an inode is.
pub enum Kind {
    /// Its entries by their names, in the order of their bytes.
    Folder(Folder),
    /// The block of the disk at which the contents start, and their bytes.
    File {
        block: u32,
        size: u64,
    },
    /// Where it leads.
    Link(Vec<u8>),
    /// Major and minor number.
    Characters(u32, u32),
    /// Major and minor number.
    Blocks(u32, u32),
    Pipe,
}

/// A folder.
pub struct Folder {
    pub children: BTreeMap<Vec<u8>, Child>,
    /// The folder that it is in; the root is its own.
    pub parent: Id,
    depth: u32,
}

/// An entry of a folder.
pub struct Child {
    pub id: Id,
    /// The layer that has put it there, or changed it.
    layer: usize,
}

/// What a file, folder or link has besides its name.
#[derive(Default)]
pub struct Attributes {
    /// Permissions.
    pub mode: u16,
    /// Numbers of its user and group.
    pub owner: (u32, u32),
    /// The time of its last change, in seconds since 1970.
    pub mtime: u64,
    /// Names and values of extended attributes.
    pub extended: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An inode.
pub struct Inode {
    pub kind: Kind,
    pub attributes: Attributes,
}

/// All of them.
pub struct Tree {
    pub inodes: Vec<Inode>,
    layer: usize,
    bytes: usize,
    steps: u64,
}

fn new_folder(parent: Id, depth: u32) -> Kind {
    Kind::Folder(Folder { children: BTreeMap::new(), parent, depth })
}

/// The attributes of a folder that no layer describes.
fn plain_folder() -> Attributes {
    Attributes { mode: 0o755, ..Attributes::default() }
}

impl Tree {
    /// An empty root.
    pub fn new() -> Self {
        let root = Inode { kind: new_folder(ROOT, 0), attributes: plain_folder() };
        Self { inodes: vec![root], layer: 0, bytes: 0, steps: 0 }
    }

    /// Another layer is laid over what is there.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// The folder at `id`; `None` if something else is there.
    pub fn folder(&self, id: Id) -> Option<&Folder> {
        match &self.inodes[id].kind {
            Kind::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    fn folder_mut(&mut self, id: Id) -> Option<&mut Folder> {
        match &mut self.inodes[id].kind {
            Kind::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    /// What `name` is in the folder `parent`.
    pub fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        self.folder(parent)?.children.get(name).map(|child| child.id)
    }

    fn step(&mut self, count: usize) -> Result<()> {
        self.steps += count as u64;
        ensure!(self.steps <= MAX_STEPS, "it takes more work than any image needs");
        Ok(())
    }

    /// Accounts for memory that is kept.
    fn charge(&mut self, bytes: usize) -> Result<()> {
        self.bytes += bytes;
        ensure!(self.bytes <= MAX_BYTES, "its names have more than {} MiB", MAX_BYTES >> 20);
        Ok(())
    }

    /// The folder at `path` below the root, through symbolic links of the image, which do not lead out of it. What is
    /// missing is made if `make` is set; else `None`.
    pub fn resolve(&mut self, path: &[&[u8]], make: bool) -> Result<Option<Id>> {
        let mut left: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
        let (mut at, mut links) = (ROOT, 0);
        while let Some(name) = left.pop() {
            self.step(1)?;
            let folder = self.folder(at).context("no folder")?;
            at = match (&name[..], folder.children.get(&name)) {
                (b"" | b".", _) => at,
                (b"..", _) => folder.parent,
                (_, None) if !make => return Ok(None),
                (_, None) => self.put(at, &name, new_folder(at, 0), plain_folder())?,
                (_, Some(child)) => match &self.inodes[child.id].kind {
                    Kind::Folder(_) => child.id,
                    Kind::Link(target) => {
                        links += 1;
                        ensure!(links <= MAX_LINKS, "too many symbolic links");
                        let start = if target.starts_with(b"/") { ROOT } else { at };
                        left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                        start
                    }
                    _ => bail!("a folder on its way is a file"),
                },
            };
        }
        Ok(Some(at))
    }

    /// Puts a new inode into the folder `parent`, in place of what has that name there.
    pub fn put(
        &mut self,
        parent: Id,
        name: &[u8],
        kind: Kind,
        attributes: Attributes,
    ) -> Result<Id> {
        let depth = self.folder(parent).context("no folder")?.depth + 1;
        ensure!(depth <= MAX_DEPTH, "more than {MAX_DEPTH} folders within each other");
        ensure!(self.inodes.len() < MAX_INODES, "more than {MAX_INODES} files");
        let kind = match kind {
            Kind::Folder(_) => new_folder(parent, depth),
            Kind::Link(target) => {
                let fits = !target.is_empty() && target.len() <= MAX_TARGET && !target.contains(&0);
                ensure!(fits, "a symbolic link that cannot be");
                self.charge(target.len())?;
                Kind::Link(target)
            }
            other => other,
        };
        self.charge_attributes(&attributes)?;
        self.inodes.push(Inode { kind, attributes });
        let id = self.inodes.len() - 1;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Gives the inode `id` the name `name` in the folder `parent`, in place of what has that there.
    pub fn link(&mut self, parent: Id, name: &[u8], id: Id) -> Result<()> {
        ensure!(name.len() <= MAX_NAME, "a name of more than {MAX_NAME} bytes");
        ensure!(!name.contains(&0), "a name with a zero byte");
        self.charge(name.len())?;
        let layer = self.layer;
        let folder = self.folder_mut(parent).context("no folder")?;
        folder.children.insert(name.to_vec(), Child { id, layer });
        Ok(())
    }

    fn charge_attributes(&mut self, attributes: &Attributes) -> Result<()> {
        let lens = attributes.extended.iter().map(|(name, value)| name.len() + value.len() + 64);
        self.charge(lens.sum())
    }

    /// Makes a folder in `parent`, or gives the one that is there other attributes.
    pub fn put_folder(&mut self, parent: Id, name: &[u8], attributes: Attributes) -> Result<()> {
        match self.child(parent, name).filter(|id| self.folder(*id).is_some()) {
            None => self.put(parent, name, new_folder(parent, 0), attributes).map(drop),
            Some(id) => {
                self.set_attributes(id, attributes)?;
                self.link(parent, name, id)
            }
        }
    }

    /// Gives an inode other attributes.
    pub fn set_attributes(&mut self, id: Id, attributes: Attributes) -> Result<()> {
        self.charge_attributes(&attributes)?;
        self.inodes[id].attributes = attributes;
        Ok(())
    }

    /// Removes what layers before this one have put at `name` in `parent`.
    pub fn remove_lower(&mut self, parent: Id, name: &[u8]) -> Result<()> {
        let Some(child) = self.folder(parent).and_then(|folder| folder.children.get(name)) else {
            return Ok(());
        };
        let (id, is_new) = (child.id, child.layer == self.layer);
        let has_new = self.hide_lower(id)?;
        if !is_new
            && !has_new
            && let Some(folder) = self.folder_mut(parent)
        {
            folder.children.remove(name);
        }
        Ok(())
    }

    /// Removes all that layers before this one have put into the folder `id`. Returns whether something is left.
    pub fn hide_lower(&mut self, id: Id) -> Result<bool> {
        let Some(folder) = self.folder_mut(id) else { return Ok(false) };
        // Not deeper than folders are within each other.
        let mut children = std::mem::take(&mut folder.children);
        self.step(children.len())?;
        let mut failed = None;
        children.retain(|_, child| match self.hide_lower(child.id) {
            Ok(has_new) => has_new || child.layer == self.layer,
            Err(error) => {
                failed = Some(error);
                true
            }
        });
        let is_left = !children.is_empty();
        if let Some(folder) = self.folder_mut(id) {
            folder.children = children;
        }
        failed.map_or(Ok(is_left), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(tree: &mut Tree, name: &str, kind: Kind) -> Result<Id> {
        tree.put(ROOT, name.as_bytes(), kind, Attributes::default())
    }

    #[test]
    fn work_and_memory_are_bounded() {
        let mut tree = Tree::new();
        while tree.inodes.len() < MAX_INODES - 2 {
            tree.inodes.push(Inode { kind: Kind::Pipe, attributes: Attributes::default() });
        }
        let refused = (0..3).find_map(|n| put(&mut tree, &format!("{n}"), Kind::Pipe).err());
        assert!(refused.unwrap().to_string().contains("more than 1048576 files"));
        assert_eq!(tree.inodes.len(), MAX_INODES);

        // Names that take each other's place count as well.
        let mut tree = Tree::new();
        let link = || Kind::Link(vec![b'x'; MAX_TARGET]);
        let refused =
            (0..MAX_BYTES / MAX_TARGET + 1).find_map(|_| put(&mut tree, "l", link()).err());
        assert!(refused.unwrap().to_string().contains("names have more than 128 MiB"));

        let mut tree = Tree::new();
        for name in ["a", "b", "c"] {
            put(&mut tree, name, Kind::Pipe).unwrap();
        }
        tree.steps = MAX_STEPS - 7;
        let done = [0; 4].map(|_| tree.hide_lower(ROOT).is_ok());
        assert_eq!(done, [true, true, false, false]);
        tree.resolve(&[b"a"], false).err().unwrap();
    }
}
