//! `tinyvmm cp`.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use archive::{Entry, FILE, FOLDER, HARD_LINK, LINK};

use super::lies::{answers, frames};
use super::*;
use agent_wire::Kind;

impl Machine {
    #[track_caller]
    fn cp(&self, source: impl AsRef<Path>, target: impl AsRef<Path>) -> Outcome {
        self.vmm().args(["cp"]).args([source.as_ref(), target.as_ref()]).run()
    }
}

/// The path in the guest, which is this host.
fn guest(path: &Path) -> String {
    format!("vm:{}", path.display())
}

/// A folder with all that is copied: `tree`.
fn tree(dir: &Dir) {
    let name = "long ".repeat(40);
    fs::create_dir_all(dir.path("tree/sub").join(&name)).unwrap();
    fs::write(dir.path("tree/sub").join(&name).join("file"), "deep").unwrap();
    fs::write(dir.path("tree/empty"), "").unwrap();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
    fs::write(dir.path("tree/-large"), bytes).unwrap();
    fs::set_permissions(dir.path("tree/-large"), fs::Permissions::from_mode(0o750)).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::options().write(true).open(dir.path("tree/empty")).unwrap().set_modified(old).unwrap();
    symlink("x".repeat(200), dir.path("tree/link")).unwrap();
    fs::create_dir(dir.path("tree/closed")).unwrap();
    fs::set_permissions(dir.path("tree/closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

/// All that is there below `path`, as text.
fn listing(path: &Path) -> String {
    let script = "cd \"$1\" && find . -printf '%P %y %m %l %s\n' | sed '/ d /s/ [0-9]*$//' | LC_ALL=C sort && \
        find . -type f -exec cksum {} + | LC_ALL=C sort && stat -c %Y empty";
    let out = Command::new("sh").args(["-c", script, "sh"]).arg(path).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_folder_goes_in_and_comes_out_as_it_was() {
    let machine = Machine::new();
    let dir = Dir::new();
    tree(&dir);
    let expected = listing(&dir.path("tree"));
    machine.cp(dir.path("tree"), guest(&dir.path("in"))).exits(0).silently();
    assert_eq!(listing(&dir.path("in")), expected);
    machine.cp(guest(&dir.path("in")), dir.path("out")).exits(0).silently();
    assert_eq!(listing(&dir.path("out")), expected);
    // Into folders that are there; what is there is replaced.
    for folder in ["guest", "host"] {
        fs::create_dir(dir.path(folder)).unwrap();
    }
    for _ in 0..2 {
        machine.cp(dir.path("tree"), guest(&dir.path("guest"))).exits(0).silently();
        machine.cp(guest(&dir.path("in")), dir.path("host")).exits(0).silently();
        assert_eq!(listing(&dir.path("guest/tree")), expected);
        assert_eq!(listing(&dir.path("host/in")), expected);
    }
}

#[test]
fn a_file_gets_the_name_of_the_target() {
    let machine = Machine::new();
    let dir = Dir::new();
    fs::write(dir.path("a"), "contents").unwrap();
    machine.cp(dir.path("a"), guest(&dir.path("b"))).exits(0).silently();
    machine.cp(guest(&dir.path("b")), dir.path("c")).exits(0).silently();
    assert_eq!(fs::read(dir.path("c")).unwrap(), b"contents");
    let here =
        |args: &[&str]| machine.vmm().file("x", "from here").args(args).run().exits(0).silently();
    here(&["cp", "./x", &guest(&dir.path("d"))]);
    assert_eq!(fs::read(dir.path("d")).unwrap(), b"from here");
    let outcome = here(&["cp", &guest(&dir.path("d")), "."]);
    assert_eq!(outcome.file("d"), "from here");
    // A link is not followed, here or there.
    symlink("/etc/passwd", dir.path("link")).unwrap();
    machine.cp(guest(&dir.path("link")), dir.path("copy")).exits(0).silently();
    assert!(dir.path("copy").is_symlink());
}

#[test]
fn what_cannot_be_copied_is_one_line() {
    let machine = Machine::new();
    let dir = Dir::new();
    fs::write(dir.path("a"), "contents").unwrap();
    let refuse = |source: &str, target: &str, words: &[&str]| {
        let outcome = machine.vmm().args(["cp", source, target]).run();
        outcome.exits(1).says(words).leaves_nothing();
    };
    refuse("a", "b", &["a b", "MACHINE:PATH"]);
    refuse("vm:a", "vm:b", &["vm:a vm:b", "MACHINE:PATH"]);
    refuse("missing", "vm:/tmp/x", &["missing", "No such file"]);
    refuse("vm:/no/such", "x", &["vm:/no/such", "the guest: ", "/no"]);
    refuse("vm:/etc/no-such", "x", &["vm:/etc/no-such", "the guest: ", "no-such"]);
    refuse("other:/etc", "x", &["other", "no such machine"]);
    refuse("vm:/etc/passwd", "/no/such/x", &["/no/such", "No such file"]);
    let file = dir.path("a").display().to_string();
    refuse(&file, "vm:/no/such/x", &["vm:/no/such/x", "the guest: "]);
    refuse("/bin", &guest(&dir.path("a/b")), &["the guest: "]);
    fs::create_dir(dir.path("folder")).unwrap();
    refuse(
        &guest(&dir.path("a")),
        &dir.path("folder/../a/b").display().to_string(),
        &["Not a directory"],
    );
    fs::create_dir(dir.path("folder/a")).unwrap();
    refuse(
        &guest(&dir.path("a")),
        &dir.path("folder").display().to_string(),
        &["a folder is in its place"],
    );
    let mut pipe = Command::new("mkfifo");
    assert!(pipe.arg(dir.path("folder/pipe")).status().unwrap().success());
    let outcome = machine.cp(dir.path("folder"), guest(&dir.path("copy"))).exits(0);
    outcome.says(&["folder/pipe", "left out"]);
    machine
        .cp(guest(&dir.path("folder")), dir.path("other"))
        .exits(0)
        .says(&["1 devices, sockets and pipes are left out"]);
}

/// What the host makes of an archive that a guest sends for `vm:/x`, copied to `target` in a folder that has `link`,
/// which leads to another folder, and `file`.
fn unpacked(entries: &[(u8, &str, &str)]) -> (Dir, Outcome) {
    let mut bytes = Vec::new();
    for (kind, name, link) in entries {
        let contents = if *kind == FILE { "hostile" } else { "" };
        let entry = Entry {
            kind: *kind,
            name: name.as_bytes().into(),
            link: link.as_bytes().into(),
            mode: 0o7777,
            mtime: u64::MAX >> 1,
            size: contents.len() as u64,
            ..Entry::default()
        };
        archive::write_header(&mut bytes, &entry).unwrap();
        bytes.extend(contents.as_bytes());
        archive::pad(&mut bytes, entry.size).unwrap();
    }
    archive::write_end(&mut bytes).unwrap();
    let machine = answers(frames(&[(Kind::Output, &bytes), (Kind::Status, &[0, 0])]));
    let dir = Dir::new();
    for folder in ["here/x", "outside"] {
        fs::create_dir_all(dir.path(folder)).unwrap();
    }
    fs::write(dir.path("outside/file"), "mine").unwrap();
    symlink(dir.path("outside"), dir.path("here/x/link")).unwrap();
    let outcome = machine.cp("vm:/x", dir.path("here"));
    (dir, outcome)
}

#[test]
fn a_guest_writes_nowhere_but_where_it_was_asked_to() {
    let escapes: [&[(u8, &str, &str)]; 12] = [
        &[(FILE, "/etc/hostile", "")],
        &[(FILE, "../outside/new", "")],
        &[(FILE, "x/../../outside/new", "")],
        &[(FILE, "y", "")],
        &[(FILE, "", "")],
        &[(FILE, ".", "")],
        &[(FILE, "x/link/new", "")],
        &[(FOLDER, "x/link", "")],
        &[(FOLDER, "x/link/new", "")],
        &[(LINK, "x/out", "../../outside"), (FILE, "x/out/new", "")],
        &[(HARD_LINK, "x/hard", "../outside/file"), (FILE, "x/hard", "")],
        &[(HARD_LINK, "x/hard", "x/link/file")],
    ];
    for entries in escapes {
        let (dir, outcome) = unpacked(entries);
        outcome.exits(1).says(&["vm:/x: "]);
        assert_eq!(fs::read_dir(dir.path("outside")).unwrap().count(), 1, "{entries:?}");
        assert_eq!(fs::read(dir.path("outside/file")).unwrap(), b"mine", "{entries:?}");
        assert!(!dir.path("outside/../y").exists() && !dir.path("here/y").exists(), "{entries:?}");
    }
}

#[test]
fn a_guest_gives_no_file_rights_and_makes_no_device() {
    // A link that was there is replaced, not written through.
    let (dir, outcome) = unpacked(&[
        (b'3', "x/device", ""),
        (b'6', "x/pipe", ""),
        (FILE, "x/link", ""),
        (FILE, "./x//./new", ""),
        (FOLDER, "x/sub/", ""),
    ]);
    outcome.exits(0).says(&["2 devices, sockets and pipes are left out"]);
    assert_eq!(fs::read(dir.path("outside/file")).unwrap(), b"mine");
    assert_eq!(fs::read(dir.path("here/x/link")).unwrap(), b"hostile");
    let mode = |path| fs::symlink_metadata(dir.path(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("here/x/new"), mode("here/x/sub"), mode("here/x/link")),
        (0o777, 0o777, 0o777)
    );
    assert!(!dir.path("here/x/device").exists() && !dir.path("here/x/pipe").exists());
}

#[test]
fn what_is_no_archive_or_ends_early_is_refused() {
    let refuse = |sent: &[(Kind, &[u8])], words: &[&str]| {
        let dir = Dir::new();
        answers(frames(sent)).cp("vm:/x", dir.path("y")).exits(1).says(words);
    };
    refuse(&[(Kind::Output, &[b'x'; 4096]), (Kind::Status, &[0, 0])], &["vm:/x", "no archive"]);
    refuse(&[(Kind::Output, b"x"), (Kind::Status, &[0, 0])], &["vm:/x", "cut off"]);
    refuse(&[(Kind::Status, &[0, 0])], &["vm:/x", "cut off"]);
    refuse(
        &[(Kind::Errors, b"tar: \x1bno\nmore"), (Kind::Status, &[0, 2])],
        &["the guest: tar: ?no"],
    );
    refuse(&[(Kind::Status, &[1, 9])], &["a signal has ended it"]);
    refuse(&[(Kind::Failure, b"\x7fno tar here")], &["no tar here"]);
    refuse(&[(Kind::Done, b"")], &["no agent of tinyvmm's"]);
}
