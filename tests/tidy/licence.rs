//! All files name the same licence.

use super::{files, read};

#[test]
fn every_crate_has_the_licence_whose_texts_are_here() {
    let manifests = files().into_iter().filter(|name| name.ends_with("Cargo.toml"));
    for name in manifests {
        let text = read(&name);
        let has = |line: &str| text.lines().any(|other| other == line);
        let licence = "license = \"Apache-2.0 OR MIT\"";
        assert!(
            has(licence) || has("license.workspace = true"),
            "{name} has no licence, or another"
        );
    }
    assert!(read("LICENSE-APACHE").contains("Version 2.0, January 2004"));
    assert!(read("LICENSE-MIT").starts_with("MIT License\n\nCopyright (c) "));
}
