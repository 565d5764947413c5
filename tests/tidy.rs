//! Style rules as tests.

mod dependencies;
mod licence;
mod unsafety;
mod walls;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_ARCHITECTURE_LINES: usize = 150;
const MAX_THREAT_MODEL_LINES: usize = 245;
/// The crates, from below.
const CRATES: [&str; 8] = [
    "vmm/unpack/src",
    "vmm/archive/src",
    "vmm/image/src",
    "vmm/src",
    "vmm/agent-wire/src",
    "vmm/boot-test/src",
    "vmm/cli/src",
    "vmm/oci/src",
];
/// The attributes of items that are not part of a build for users.
const TEST_ONLY: [&str; 2] = ["#[cfg(test)]", "#[cfg(any(test, fuzzing))]"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every file that git has, or would have after `git add`.
fn files() -> Vec<String> {
    let mut git = Command::new("git");
    // In a container the folder may belong to another user.
    git.args(["-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]);
    let listed = git.current_dir(root()).output().expect("git is installed");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).unwrap();
    // A file that is being merged is listed for each side.
    let files: BTreeSet<_> = listed.lines().map(String::from).collect();
    // A deleted file that is not staged is still listed.
    files.into_iter().filter(|name| root().join(name).is_file()).collect()
}

fn rust_files() -> Vec<String> {
    let files: Vec<_> = files().into_iter().filter(|name| name.ends_with(".rs")).collect();
    assert!(
        files.iter().any(|name| name == "vmm/cli/src/main.rs"),
        "the sources are found: {files:?}"
    );
    files
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Index of the line that ends the item which starts at `start`, as rustfmt lays it out.
fn end_of_item(lines: &[&str], start: usize) -> usize {
    let depth = indent(lines[start]);
    let ends = |line: &&str| {
        indent(line) == depth && (line.trim_start().starts_with('}') || line.ends_with(';'))
    };
    let first = lines[start].trim_end();
    if first.ends_with([';', '}', ',']) {
        return start;
    }
    let after = lines[start + 1..].iter().position(ends);
    start + 1 + after.unwrap_or_else(|| panic!("no end of: {first}"))
}

/// Whether each line of `text` is for tests only.
fn test_lines(text: &str) -> Vec<bool> {
    let lines: Vec<&str> = text.lines().collect();
    let mut is_test = vec![false; lines.len()];
    let is_mark = |line: &str| TEST_ONLY.contains(&line.trim());
    for (index, _) in lines.iter().enumerate().filter(|(_, line)| is_mark(line)) {
        let item = (index + 1..lines.len()).find(|at| !lines[*at].trim().starts_with("#["));
        let end = end_of_item(&lines, item.expect("an item after its mark"));
        is_test[index..=end].fill(true);
    }
    is_test
}

/// Modules in files of their own that are for tests only, e.g. `vmm/src/virtio/contract`.
fn test_modules(files: &[String]) -> HashSet<String> {
    let mut modules = HashSet::new();
    for name in files {
        let text = read(name);
        let tests = test_lines(&text);
        let folder = match name.strip_suffix("/mod.rs").or(name.strip_suffix("/lib.rs")) {
            Some(folder) => folder,
            None => name.trim_end_matches(".rs"),
        };
        for (line, _) in text.lines().zip(tests).filter(|(_, is_test)| *is_test) {
            let module = line.trim().trim_start_matches("pub ").strip_prefix("mod ");
            if let Some(module) = module.and_then(|rest| rest.strip_suffix(';')) {
                modules.insert(format!("{folder}/{module}"));
            }
        }
    }
    modules
}

/// Lines of each production file of vmm/: all of them, and those that are neither blank nor comments.
fn production_lines() -> Vec<(String, usize, usize)> {
    let mut files = rust_files();
    let apart = |name: &str| name.contains("/examples/") || name.ends_with("/build.rs");
    files.retain(|name| name.starts_with("vmm/") && !apart(name));
    let modules = test_modules(&files);
    let in_tests = |name: &str| {
        modules.iter().any(|module| {
            name.strip_prefix(module.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    };
    files.retain(|name| !in_tests(name));
    let count = |name: &String| {
        let text = read(name);
        let tests = test_lines(&text);
        let lines: Vec<_> = text
            .lines()
            .zip(tests)
            .filter(|(_, test)| !test)
            .map(|(line, _)| line.trim())
            .collect();
        let code = lines.iter().filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        (name.clone(), lines.len(), code)
    };
    files.iter().map(count).collect()
}

/// The line without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|other| other == word)
}

#[test]
fn no_file_is_long() {
    for (name, lines, _) in production_lines() {
        assert!(lines <= MAX_FILE_LINES, "{name} has {lines} lines without its tests");
    }
    for name in rust_files() {
        let tests = test_lines(&read(&name)).iter().filter(|is_test| **is_test).count();
        assert!(tests <= MAX_FILE_LINES, "{name} has {tests} lines of tests");
    }
    for name in rust_files().iter().filter(|name| name.starts_with("tests/")) {
        let lines = read(name).lines().count();
        assert!(lines <= MAX_FILE_LINES, "{name} has {lines} lines");
    }
}

#[test]
fn no_function_is_long() {
    let mut functions = 0;
    for name in rust_files() {
        let text = read(&name);
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let before = code(line).split(['(', '<', '"']).next().unwrap();
            if has_word(before, "fn") && !before.contains(['=', ':']) {
                let len = end_of_item(&lines, start) - start + 1;
                assert!(len <= MAX_FUNCTION_LINES, "{name}:{}: {len} lines", start + 1);
                functions += 1;
            }
        }
    }
    assert!(functions > 200, "only {functions} functions are found: is this test blind?");
}

/// The runner starts the command and reads its JSON: the one interface between the two programs.
#[test]
fn the_runner_of_boot_tests_does_not_link_the_machine() {
    let manifest = read("vmm/boot-test/Cargo.toml");
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
    for word in ["path =", "tinyvmm", "kvm"] {
        assert!(!dependencies.contains(word), "vmm/boot-test depends on {word}");
    }
}

#[test]
fn the_architecture_is_described_in_short_and_whole() {
    let text = read("ARCHITECTURE.md");
    let lines = text.lines().count();
    assert!(lines <= MAX_ARCHITECTURE_LINES, "ARCHITECTURE.md has {lines} lines");
    let long = text.lines().find(|line| line.chars().count() > 120);
    assert_eq!(long, None, "ARCHITECTURE.md has lines of more than 120 columns");
    for folder in &CRATES[1..] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let entry = entry.unwrap();
            let slash = if entry.path().is_dir() { "/" } else { "" };
            let name = format!("{}{slash}", entry.file_name().into_string().unwrap());
            let is_there = text.contains(&name) || name == "lib.rs" || name.contains("test")
                // Tests of the file of that name.
                || text.contains(&name.replace('/', ".rs"));
            assert!(is_there, "ARCHITECTURE.md does not say what {folder}/{name} is for");
        }
    }
    let sources = rust_files();
    let is_part = |c: char| !c.is_alphanumeric() && !"_./".contains(c);
    for word in text.split(is_part).filter(|word| word.ends_with(".rs") && word.len() > 3) {
        let exists = sources.iter().any(|name| format!("/{name}").ends_with(&format!("/{word}")));
        assert!(exists, "ARCHITECTURE.md names {word}, which does not exist");
    }
}

#[test]
fn tests_that_the_threat_model_names_exist() {
    let mut sources = rust_files();
    sources.retain(|name| name.starts_with("vmm/") || name.starts_with("tests/"));
    let sources: Vec<_> = sources.iter().map(|name| read(name)).collect();
    // A function after an attribute or, in proptest!, a comment: a helper has neither.
    let is_test = |name: &str| {
        let head = format!("    fn {name}(");
        sources.iter().any(|text| {
            let text = text.replace("#[test]\nfn ", "#[test]\n    fn ");
            text.match_indices(&head).any(|(at, _)| text[..at].trim_end().ends_with("#[test]"))
        })
    };
    let text = read("THREAT_MODEL.md");
    let words = text.split('`').skip(1).step_by(2);
    let is_name = |word: &&str| {
        word.contains('_')
            && word.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let names: HashSet<_> =
        words.filter(is_name).filter(|word| *word != "code_like_this").collect();
    for name in &names {
        assert!(is_test(name), "THREAT_MODEL.md names the test {name}, which does not exist");
    }
    assert!(names.len() > 50, "only {} tests are found: is this test blind?", names.len());
    assert!(text.lines().count() <= MAX_THREAT_MODEL_LINES, "THREAT_MODEL.md is long");
}

#[test]
fn scripts_can_be_run() {
    let mut scripts = 0;
    for name in files() {
        let path = root().join(&name);
        if fs::read(&path).unwrap().starts_with(b"#!/") {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert!(mode & 0o111 == 0o111, "{name} starts with #! and cannot be run: {mode:o}");
            scripts += 1;
        }
    }
    assert!(scripts > 0, "no script is found: is this test blind?");
}

#[test]
fn nothing_names_a_path_of_the_machine_it_was_written_on() {
    // In parts, so that this file does not.
    let paths = [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat()];
    for name in files() {
        let bytes = fs::read(root().join(&name)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for (index, line) in text.lines().enumerate() {
            let found = paths.iter().find(|path| line.contains(path.as_str()));
            assert!(found.is_none(), "{name}:{}: {line}", index + 1);
        }
    }
}

/// A package has a name, and whoever fetches it knows from where: a mirror, a proxy, a folder.
#[test]
fn nothing_names_a_registry_s_host() {
    // In parts, so that this file does not.
    let hosts = [
        ["crates", ".io"],
        ["docs", ".rs"],
        ["debian", ".org"],
        ["ubuntu", ".com"],
        ["pypi", ".org"],
        ["ghcr", ".io"],
    ];
    for name in files().iter().filter(|name| !name.ends_with(".lock")) {
        let bytes = fs::read(root().join(name)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for (index, line) in text.lines().enumerate() {
            let found = hosts.iter().find(|host| line.contains(&host.concat()));
            assert!(found.is_none(), "{name}:{}: {line}", index + 1);
        }
    }
}
