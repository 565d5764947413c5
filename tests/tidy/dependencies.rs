//! Where dependencies come from.

use std::collections::HashSet;

use super::read;

#[test]
fn dependencies_are_from_the_registry_and_locked() {
    let locks: [(&str, &[&str]); 4] = [
        (
            "Cargo.lock",
            &[
                "agent",
                "agent-wire",
                "archive",
                "boot-test",
                "image",
                "tinyvmm",
                "tinyvmm-cli",
                "tinyvmm-fuzz",
                "tinyvmm-oci",
                "unpack",
            ],
        ),
        ("guest-images/hostile/Cargo.lock", &["hostile"]),
        ("tests/client/Cargo.lock", &["client"]),
        ("tests/client/others/Cargo.lock", &["others"]),
    ];
    // All crates are of one registry; .deny.toml allows only cargo's own.
    let mut registries = HashSet::new();
    for (lock, ours) in locks {
        let text = read(lock);
        let (own, others): (Vec<_>, Vec<_>) =
            text.split("[[package]]").skip(1).partition(|package| {
                ours.iter().any(|name| package.contains(&format!("name = \"{name}\"\n")))
            });
        assert_eq!(own.len(), ours.len(), "{lock}: the crates themselves");
        for package in others {
            let source = package.lines().find_map(|line| line.strip_prefix("source = \"registry+"));
            registries.insert(
                source.unwrap_or_else(|| panic!("{lock}: of no registry:{package}")).to_owned(),
            );
            assert!(package.contains("checksum = \""), "{lock}: no checksum:{package}");
        }
    }
    assert_eq!(registries.len(), 1, "one registry for all: {registries:?}");
    let deny = read(".deny.toml");
    for rule in ["unknown-registry = \"deny\"", "unknown-git = \"deny\""] {
        assert!(deny.contains(rule), ".deny.toml has no {rule}");
    }
    // cargo-deny's defaults for sources.
    assert!(!deny.contains("allow-registry") && !deny.contains("allow-git"), "a source is allowed");
}
