//! Images for guests, made by guest-images/build.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The path of the image `recipe`. Slow if the image is not built yet. Where nothing can be built, `$TINYVMM_IMAGES` is a
/// folder with images of these names.
pub fn image(recipe: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("TINYVMM_IMAGES") {
        return Path::new(&folder).join(recipe);
    }
    static IMAGES: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let build = || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-images/build");
        let built = Command::new(script).arg(recipe).output().expect("guest-images/build runs");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "guest-images/build {recipe}: {said}");
        PathBuf::from(String::from_utf8(built.stdout).unwrap().trim_end())
    };
    let mut images = IMAGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    images.get_or_insert_default().entry(recipe.into()).or_insert_with(build).clone()
}
