//! Where unsafe code may be.

use super::*;

/// The only files that may contain `unsafe`.
const UNSAFE_FILES: [&str; 34] = [
    "vmm/src/arch/x86_64/saved.rs",
    "vmm/src/coalesced.rs",
    "vmm/cli/src/command.rs",
    "vmm/cli/src/measure/exits.rs",
    "vmm/cli/src/measure/instructions.rs",
    "vmm/cli/src/jail/raw.rs",
    "vmm/src/memory/mod.rs",
    "vmm/src/memory/saved.rs",
    "vmm/src/memory/served.rs",
    "vmm/src/memory/slots.rs",
    "vmm/cli/src/net/tap.rs",
    "vmm/cli/src/process.rs",
    "vmm/cli/src/share/virtiofsd.rs",
    "vmm/cli/src/signals.rs",
    "vmm/src/vcpu.rs",
    "vmm/src/wire.rs",
    "vmm/src/worker.rs",
    "vmm/oci/src/create.rs",
    "vmm/oci/src/exec.rs",
    "vmm/oci/src/init.rs",
    "vmm/oci/src/network.rs",
    "vmm/oci/src/rootfs.rs",
    "vmm/oci/src/supervisor.rs",
    "vmm/src/engine/ring.rs",
    "vmm/src/memory/buffers.rs",
    "guest-images/agent/src/sys.rs",
    "guest-images/hostile/src/driver.rs",
    "guest-images/hostile/src/machine.rs",
    "guest-images/hostile/src/main.rs",
    "tests/fixture.rs",
    "tests/guests.rs",
    "tests/share.rs",
    "tests/snapshot/page_server.rs",
    "tests/terminal.rs",
];

#[test]
fn unsafe_is_in_a_handful_of_files_and_explained() {
    let mut found = HashSet::new();
    for name in rust_files().iter().filter(|name| *name != "tests/tidy/unsafety.rs") {
        let text = read(name);
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let line = code(line);
            if !has_word(line, "unsafe") {
                continue;
            }
            let place = format!("{name}:{}", index + 1);
            assert!(UNSAFE_FILES.contains(&name.as_str()), "{place}: unsafe is not for this file");
            found.insert(name.clone());
            // A declaration does nothing yet.
            if line.contains("unsafe extern") {
                continue;
            }
            let above = &lines[index.saturating_sub(8)..index];
            let explained = above.iter().any(|line| line.contains("// SAFETY: "));
            assert!(explained, "{place}: no SAFETY comment above");
        }
    }
    for name in UNSAFE_FILES {
        assert!(found.contains(name), "{name} needs no place in the list of files with unsafe");
    }
}

/// Lints and macros by which unsafe code could come in unseen are as they should be.
#[test]
fn nothing_gets_around_the_rules_for_unsafe() {
    for name in ["Cargo.toml", "guest-images/hostile/Cargo.toml"] {
        let text = read(name);
        for lint in [
            "undocumented_unsafe_blocks",
            "multiple_unsafe_ops_per_block",
            "unsafe_op_in_unsafe_fn",
        ] {
            assert!(text.contains(&format!("{lint} = \"deny\"")), "{name} does not deny {lint}");
        }
    }
    for folder in CRATES {
        let manifest = format!("{}/Cargo.toml", folder.trim_end_matches("/src"));
        assert!(read(&manifest).contains("[lints]\nworkspace = true"), "{manifest}");
    }
    for name in rust_files().iter().filter(|name| *name != "tests/tidy/unsafety.rs") {
        for (index, line) in read(name).lines().enumerate() {
            let line = code(line);
            let place = format!("{name}:{}", index + 1);
            let allows = line.contains("allow(") || line.contains("expect(");
            assert!(!(allows && line.contains("unsafe_")), "{place}: a lint for unsafe is off");
            // Files without the ending .rs are not checked here.
            assert!(!has_word(line, "include"), "{place}: code from elsewhere");
        }
    }
}
