//! The size of each crate, and which module may import which.

use std::collections::{BTreeMap, BTreeSet};

use super::{code, has_word, production_lines, read, test_lines};

/// Most lines of code in each crate, without blanks, comments and tests.
const BUDGETS: [(&str, usize); 8] = [
    ("vmm/src/", 11680),
    ("vmm/cli/src/", 14115),
    ("vmm/agent-wire/src/", 300),
    ("vmm/archive/src/", 280),
    ("vmm/boot-test/src/", 1800),
    ("vmm/image/src/", 1460),
    ("vmm/oci/src/", 1710),
    ("vmm/unpack/src/", 300),
];

/// The library's layers from the top: what is in one imports only from those below. A folder is one of them, and what
/// is in a layer may not know each other.
const LAYERS: [&[&str]; 11] = [
    &["machine"],
    &["arch"],
    &["devices", "virtio"],
    &["vcpu", "disk_image", "wire", "backend"],
    &["coalesced", "engine", "overlay"],
    &["geometry", "pieces"],
    &["memory", "rate", "timeline"],
    &["bus", "config", "event"],
    &["worker"],
    &["flock", "random", "sync"],
    &["layout"],
];

/// What the library never does: forbidden words, and the reason.
const NEVER: [(&str, &str); 12] = [
    ("clap", "parses no flags"),
    ("println", "prints nothing"),
    ("eprintln", "prints nothing"),
    ("stdin", "takes what is open"),
    ("stdout", "takes what is open"),
    ("stderr", "takes what is open"),
    ("OpenOptions", "opens nothing"),
    ("seccomp", "leaves the process's rights to the program"),
    ("landlock", "leaves the process's rights to the program"),
    ("httparse", "speaks no HTTP"),
    ("Termios", "knows no terminal"),
    ("args_os", "is no program"),
];

#[test]
fn each_crate_is_within_its_budget() {
    let all = production_lines();
    for (folder, budget) in BUDGETS {
        let code: usize =
            all.iter().filter(|(name, ..)| name.starts_with(folder)).map(|(.., code)| code).sum();
        assert!(code <= budget, "{folder} has {code} lines of code, at most {budget} may be");
    }
    let known = |name: &str| BUDGETS.iter().any(|(folder, _)| name.starts_with(folder));
    let stray: Vec<_> = all.iter().filter(|(name, ..)| !known(name)).collect();
    assert!(stray.is_empty(), "of no crate: {stray:?}");
    assert!(all.len() > 100, "only {} files are found: is this test blind?", all.len());
}

/// Lines of production code of a file, without comments.
fn production(name: &str) -> Vec<String> {
    let text = read(name);
    let lines = text.lines().zip(test_lines(&text)).filter(|(_, is_test)| !is_test);
    lines.map(|(line, _)| code(line).to_owned()).collect()
}

/// The folder or file directly below `crate_folder` that has or is `name`.
fn room<'a>(crate_folder: &str, name: &'a str) -> Option<&'a str> {
    let rest = name.strip_prefix(crate_folder)?;
    Some(rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs"))
}

/// The modules of its own crate that `line` names, one after each `crate::`.
fn named(lines: &[String]) -> BTreeSet<String> {
    let text = lines.join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        match rest.strip_prefix('{') {
            None => _ = found.insert(word(rest)),
            Some(list) => {
                // The top of a list that may have lists in it.
                let mut depth = 0;
                let mut start = true;
                for (index, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && depth == 0 && c.is_alphanumeric() => {
                            found.insert(word(&list[index..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

/// For each module directly below the crate, the others that its files import.
fn imports(crate_folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::<String, BTreeSet<String>>::new();
    let mut rooms = BTreeSet::new();
    let files: Vec<_> = production_lines().into_iter().map(|(name, ..)| name).collect();
    for name in &files {
        rooms.extend(room(crate_folder, name).map(str::to_owned));
    }
    for name in &files {
        let Some(from) = room(crate_folder, name) else { continue };
        // layout.rs is the lowest layer, whichever folder it is in.
        let from = if name.ends_with("/layout.rs") { "layout" } else { from };
        let to = named(&production(name)).into_iter();
        let to = to.filter(|to| *to == "layout" || rooms.contains(to)).filter(|to| to != from);
        all.entry(from.to_owned()).or_default().extend(to);
    }
    all
}

#[test]
fn the_library_imports_only_from_below() {
    let layer = |room: &str| LAYERS.iter().position(|rooms| rooms.contains(&room));
    let imports = imports("vmm/src/");
    assert!(imports.len() > 15, "only {imports:?}: is this test blind?");
    for (from, to) in imports.iter().filter(|(from, _)| *from != "lib") {
        let own = layer(from).unwrap_or_else(|| panic!("vmm/src/{from} is in no layer"));
        for to in to {
            let other = layer(to).unwrap_or_else(|| panic!("vmm/src/{to} is in no layer"));
            assert!(other > own, "vmm/src/{from} imports {to}, which is not below it");
        }
    }
}

#[test]
fn no_two_rooms_of_the_command_import_each_other() {
    let imports = imports("vmm/cli/src/");
    assert!(imports.len() > 15, "only {imports:?}: is this test blind?");
    for (from, to) in &imports {
        for to in to {
            let back = imports.get(to).is_some_and(|back| back.contains(from));
            assert!(!back, "vmm/cli/src: {from} and {to} import each other");
        }
    }
}

#[test]
fn the_library_knows_no_door() {
    for (name, ..) in production_lines().iter().filter(|(name, ..)| name.starts_with("vmm/src/")) {
        for (index, line) in production(name).iter().enumerate() {
            // Strings are for people and may have these words.
            let line: String = line.split('"').step_by(2).collect();
            for (word, why) in NEVER {
                assert!(
                    !has_word(&line, word),
                    "{name}, line {} of code: the library {why}",
                    index + 1
                );
            }
            let opens = ["File::open(", "File::create(", "fs::read", "UnixListener"];
            let found = opens.iter().find(|call| line.contains(**call));
            assert_eq!(
                found,
                None,
                "{name}, line {} of code: the library opens nothing",
                index + 1
            );
        }
    }
}

#[test]
fn the_example_is_short() {
    let text = read("vmm/examples/boot.rs");
    assert!(text.lines().count() <= 50, "examples/boot.rs has {} lines", text.lines().count());
}
