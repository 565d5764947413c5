//! Landlock: from now on this thread, and those that it starts, open nothing.

use std::fs::File;

use anyhow::Result;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

/// Forbids to open files, to bind or connect TCP sockets, and to reach other processes by signals or
/// abstract sockets, as far as the kernel can. What is open stays open; what is in `folder` can be removed.
///
/// Returns the version of Landlock that was used; `None` where the kernel has none.
pub fn forbid_opening(folder: Option<&File>) -> Result<Option<i32>> {
    const ALL: ABI = ABI::V6;
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset =
        ruleset.handle_access(AccessFs::from_all(ALL))?.handle_access(AccessNet::from_all(ALL))?;
    let mut ruleset = ruleset.scope(Scope::from_all(ALL))?.create()?;
    if let Some(folder) = folder {
        ruleset = ruleset.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
    }
    let status = ruleset.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi as i32),
        _ => None,
    })
}
