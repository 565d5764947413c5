//! Landlock: this thread, and those that it starts, open nothing from now on, but for files in named paths.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Result;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

/// A file, or a folder with all that is below it, in which something can still be opened.
pub struct AllowedPath {
    file: File,
    access: BitFlags<AccessFs>,
}

impl AllowedPath {
    /// The file or folder at `path`, where files that exist can be opened to read, or also to write.
    pub fn new(path: &Path, writes: bool) -> Result<Self> {
        let read = AccessFs::ReadFile.into();
        Self::with_access(path, if writes { read | AccessFs::WriteFile } else { read })
    }

    /// The folder at `path`, in which new files can be made and written.
    pub fn for_new_files(path: &Path) -> Result<Self> {
        Self::with_access(path, AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::Truncate)
    }

    fn with_access(path: &Path, access: BitFlags<AccessFs>) -> Result<Self> {
        // O_PATH: the file need not be readable.
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_PATH).open(path)?;
        Ok(Self { file, access })
    }
}

/// Folders from which the main thread removes something at the end.
#[derive(Clone, Copy, Default)]
pub struct Kept<'a> {
    /// That of the API's socket, whose files can be removed.
    pub api: Option<&'a File>,
    /// That of all machines with names, whose empty folders can be removed.
    pub names: Option<&'a File>,
}

/// Forbids to open files, to bind or connect TCP sockets, and to reach other processes by signals or abstract sockets,
/// as far as the kernel can. Open files stay open; what is in the folders of `kept` can be removed, and files in
/// `places` opened.
///
/// Returns the version of Landlock's ABI that was used; `None` where the kernel has none.
pub fn forbid_opening(kept: Kept, places: &[AllowedPath]) -> Result<Option<i32>> {
    const ALL: ABI = ABI::V6;
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset =
        ruleset.handle_access(AccessFs::from_all(ALL))?.handle_access(AccessNet::from_all(ALL))?;
    let mut ruleset = ruleset.scope(Scope::from_all(ALL))?.create()?;
    if let Some(folder) = kept.api {
        ruleset = ruleset.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
    }
    if let Some(folder) = kept.names {
        ruleset = ruleset.add_rule(PathBeneath::new(folder, AccessFs::RemoveDir))?;
    }
    for place in places {
        ruleset = ruleset.add_rule(PathBeneath::new(&place.file, place.access))?;
    }
    let status = ruleset.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi as i32),
        _ => None,
    })
}
