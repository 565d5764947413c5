//! `--template` with a guest that does what init's agent does. `linux::template` has real ones.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::fixture::{Dir, Outcome, Vmm};
use crate::guests::guest;

guest!(
    /// Connects to the agent's port of the host, and again when its connections have ended, and greets. Its command, when it
    /// comes, writes a letter, 'a' for the first connection, and what was received, and ends with status 7.
    waits,
    "mov ebx, 0xcffff000",
    "2: add ebx, 0x1000",
    "cmp dword ptr [rbx + 8], 19", // its vsock device
    "jne 2b",
    "virtqueues 3, 0x200000",
    "mov dword ptr [0x200000], 0x210000", // a buffer for what comes
    "mov dword ptr [0x200008], 4096",
    "mov dword ptr [0x20000c], 2",
    "mov dword ptr [0x203000], 0x220000", // a header, and data
    "mov dword ptr [0x206000], 0x211000", // a buffer for events
    "mov dword ptr [0x206008], 16",
    "mov dword ptr [0x20600c], 2",
    "mov dword ptr [0x220000], 3",
    "mov dword ptr [0x220008], 2",
    "mov dword ptr [0x220014], 1024",
    "mov dword ptr [0x220024], 0x10000",
    "inc word ptr [0x201002]",
    "mov dword ptr [rbx + 0x50], 0",
    "mov r13d, 98",
    "xor r15d, r15d",
    "3: inc word ptr [0x207002]", // connects
    "mov dword ptr [rbx + 0x50], 2",
    "inc r13d",
    "mov [0x220010], r13d",
    "mov dword ptr [0x220018], 0",
    "mov dword ptr [0x22001c], 0x10001", // REQUEST of a stream
    "mov dword ptr [0x203008], 44",
    "inc word ptr [0x204002]",
    "mov dword ptr [rbx + 0x50], 1",
    "jmp 5f",
    "4: mov [0x220018], ecx", // sends what is there
    "mov dword ptr [0x22001c], 0x50001", // RW
    "add ecx, 44",
    "mov [0x203008], ecx",
    "inc word ptr [0x204002]",
    "mov dword ptr [rbx + 0x50], 1",
    "6: inc word ptr [0x201002]", // receives
    "mov dword ptr [rbx + 0x50], 0",
    "5: cmp [0x208002], r15w",
    "jne 7f",
    "mov ax, [0x204002]", // nothing is received before all that was sent has left the buffer
    "cmp ax, [0x205002]",
    "jne 5b",
    "mov ax, [0x201002]",
    "cmp ax, [0x202002]",
    "jne 5b",
    "cmp byte ptr [0x21001e], 2", // RESPONSE
    "je 8f",
    "cmp byte ptr [0x21001e], 5", // RW
    "je 9f",
    "cmp byte ptr [0x21001e], 4", // SHUTDOWN, of both directions
    "jne 6b",
    "cmp byte ptr [0x210020], 3",
    "jne 6b",
    "mov al, 7",
    "mov edx, {report} + 1",
    "out dx, al",
    "sleep",
    "7: inc r15w", // all connections have ended
    "jmp 3b",
    "8: lea rsi, [rip + 3f]",
    "mov edi, 0x22002c",
    "mov ecx, 16",
    "rep movsb",
    "mov ecx, 16",
    "jmp 4b",
    "9: cmp byte ptr [0x21002c], 't'", // the hello and the requests; the end of the input comes later
    "jne 6b",
    "mov edi, 0x22002c", // Done, if it was asked for an identity, Output, Status
    "cmp r13d, 99",
    "je 2f",
    "mov eax, 69",
    "stosb",
    "xor eax, eax",
    "stosd",
    "2: mov eax, 64",
    "stosb",
    "mov ecx, [0x210018]",
    "lea eax, [rcx + 1]",
    "stosd",
    "lea eax, [r13 + 'a' - 99]",
    "stosb",
    "mov esi, 0x21002c",
    "rep movsb",
    "mov al, 67",
    "stosb",
    "mov eax, 2",
    "stosd",
    "mov eax, 0x700",
    "stosw",
    "lea ecx, [rdi - 0x22002c]",
    "jmp 4b",
    r#"3: .ascii "tinyvmm-agent 1\n""#,
);

/// What nobody but one run knows.
const SECRET: &str = "rosebud-4711";

/// A machine whose templates are in `cache`, before `-- COMMAND`.
fn templated(cache: &Dir) -> Vmm {
    of(Vmm::new().guest(waits), cache)
}

fn of(vmm: Vmm, cache: &Dir) -> Vmm {
    let vmm = vmm.file("initrd", "x").env("XDG_CACHE_HOME", cache.path(""));
    vmm.args(["--template", "--balloon", "off", "--mem", "16M", "--initrd", "initrd"])
}

fn runs(vmm: Vmm) -> Outcome {
    vmm.args(["--", "echo", SECRET]).run().exits(7)
}

/// Checks that the machine of `outcome` was made of a template, or was not.
#[track_caller]
fn is_restored(outcome: &Outcome, expected: bool) {
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert_eq!(text.starts_with('b'), expected, "{text}");
    // One that boots has the command in its initrd.
    assert_eq!(text.contains(SECRET), expected, "{text}");
}

fn templates(cache: &Dir) -> Vec<PathBuf> {
    let folder = fs::read_dir(cache.path("tinyvmm/templates")).unwrap();
    folder.map(|entry| entry.unwrap().path()).collect()
}

/// The only template.
#[track_caller]
fn template(cache: &Dir) -> PathBuf {
    let all = templates(cache);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

fn has(file: &Path, text: &str) -> bool {
    let bytes = fs::read(file).unwrap();
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[test]
fn all_runs_go_on_from_one_template_which_knows_no_command_and_each_is_another_machine() {
    let cache = Dir::new();
    let mut seen = HashSet::new();
    let mut made = None;
    for _ in 0..3 {
        let outcome = runs(templated(&cache)).silently().leaves_nothing();
        is_restored(&outcome, true);
        let text = String::from_utf8_lossy(&outcome.stdout);
        let is_id = |part: &&str| part.len() >= 32 && part.bytes().all(|c| c.is_ascii_hexdigit());
        let id = text.split(|c: char| !c.is_ascii_hexdigit()).find(is_id).expect("a machine-id");
        assert!(seen.insert(id.to_owned()), "{id} twice");
        let now = template(&cache);
        let inode = std::os::unix::fs::MetadataExt::ino(&now.metadata().unwrap());
        assert_eq!(*made.get_or_insert(inode), inode, "it was made anew");
        for file in fs::read_dir(&now).unwrap() {
            let file = file.unwrap().path();
            assert!(!has(&file, SECRET) && !has(&file, id), "{file:?}");
        }
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&template(&cache).metadata().unwrap());
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn another_kernel_initrd_disk_or_flag_is_another_template() {
    let cache = Dir::new();
    let [disk, other] = ["disk", "other"].map(|name| cache.path(name));
    [&disk, &other].iter().for_each(|disk| fs::write(disk, [0; 4096]).unwrap());
    let expect = |vmm: Vmm, count: usize| {
        is_restored(&runs(vmm).silently(), true);
        assert_eq!(templates(&cache).len(), count);
    };
    expect(templated(&cache), 1);
    expect(templated(&cache).file("initrd", "y"), 2);
    expect(templated(&cache).args(["--cpus", "2"]), 3);
    expect(templated(&cache).args(["--cmdline", "x"]), 4);
    let mut kernel = crate::guests::elf(&waits());
    kernel.push(0);
    expect(of(Vmm::new().kernel(&kernel), &cache), 5);
    let with = |disk: &Path| templated(&cache).args([format!("--disk={},overlay", disk.display())]);
    // What it is known by may not show yet another change.
    let age = |disk: &Path| disk.metadata().unwrap().modified().unwrap().elapsed().unwrap();
    while age(&other) < Duration::from_secs(4) {
        sleep(Duration::from_millis(100));
    }
    expect(with(&disk), 6);
    expect(with(&other), 7);
    fs::write(&disk, [1; 4096]).unwrap();
    let words = ["--template", "has changed just now", "boots without"];
    let outcome = runs(with(&disk)).says(&words);
    is_restored(&outcome, false);
    assert_eq!(templates(&cache).len(), 7);
}

#[test]
fn a_damaged_template_is_made_anew_with_a_line() {
    let cache = Dir::new();
    is_restored(&runs(templated(&cache)).silently(), true);
    let damage: [&dyn Fn(&Path); 5] = [
        &|at| fs::write(at.join("seal"), "").unwrap(),
        &|at| fs::remove_file(at.join("state")).unwrap(),
        &|at| File::options().write(true).open(at.join("memory")).unwrap().set_len(4096).unwrap(),
        &|at| {
            let file = File::options().write(true).open(at.join("memory")).unwrap();
            std::os::unix::fs::FileExt::write_at(&file, b"x", 0x100_000).map(drop).unwrap();
        },
        &|at| fs::write(at.join("machine.json"), "{}").unwrap(),
    ];
    for damage in damage {
        damage(&template(&cache));
        let outcome = runs(templated(&cache)).says(&["--template", "it is made anew"]);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        is_restored(&outcome, true);
        is_restored(&runs(templated(&cache)).silently(), true);
    }
}

#[test]
fn one_of_two_makes_it_and_what_a_killed_one_has_left_is_removed() {
    let cache = Dir::new();
    is_restored(&runs(templated(&cache)).silently(), true);
    let whole = template(&cache);
    let key = whole.file_name().unwrap().to_str().unwrap().to_owned();
    fs::remove_dir_all(&whole).unwrap();
    let left = whole.with_file_name(format!("new-{key}"));
    fs::create_dir(&left).unwrap();
    let lock = File::open(&left).unwrap();
    lock.lock().unwrap();
    // It is being made.
    is_restored(&runs(templated(&cache)).silently(), false);
    assert_eq!(template(&cache), left);
    drop(lock);
    fs::write(left.join("memory"), "half").unwrap();
    is_restored(&runs(templated(&cache)).silently(), true);
    assert_eq!(template(&cache), whole);
    // All at once.
    let all: Vec<_> = (0..3)
        .map(|_| templated(&cache).args(["--cpus", "2", "--", "echo", SECRET]).start())
        .collect();
    let restored = all.into_iter().map(|one| one.wait().exits(7).silently());
    assert!(restored.map(|outcome| outcome.stdout[0]).any(|letter| letter == b'b'));
    assert_eq!(templates(&cache).len(), 2);
}

#[test]
fn a_guest_that_never_comes_to_its_agent_boots_without() {
    let cache = Dir::new();
    let outcome = of(Vmm::new().guest(crate::guests::hello), &cache).args(["--", "true"]).run();
    let outcome = outcome.exits(125);
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert!(lines[0].contains("--template: its guest has ended before"), "{lines:?}");
    assert!(lines[0].ends_with("the machine boots without one"), "{lines:?}");
    assert!(lines[1].contains("the guest powered off") && lines.len() == 2, "{lines:?}");
    assert!(templates(&cache).is_empty());
}

#[test]
fn the_cache_lists_templates_and_removes_them() {
    let cache = Dir::new();
    runs(templated(&cache)).silently();
    let key = template(&cache).file_name().unwrap().to_string_lossy().into_owned();
    let command = |what| {
        let vmm = Vmm::new().env("XDG_CACHE_HOME", cache.path("")).args(["cache", what]);
        String::from_utf8(vmm.run().exits(0).silently().stdout).unwrap()
    };
    let listed = command("list");
    assert!(listed.contains(&key[..16]) && listed.contains("template of \""), "{listed}");
    assert!(!listed.contains(SECRET), "{listed}");
    assert_eq!(command("clear"), "");
    assert!(templates(&cache).is_empty());
}

#[test]
fn a_command_that_has_the_console_goes_on_from_a_template_too() {
    let cache = Dir::new();
    let on_console = || templated(&cache).args(["--console", "log"]);
    for _ in 0..2 {
        let outcome = runs(on_console()).silently();
        assert_eq!(outcome.stdout, b"");
    }
    template(&cache);
    is_restored(&runs(templated(&cache)).silently(), true);
    template(&cache);
}

#[test]
fn a_boot_test_can_use_one() {
    let cache = Dir::new();
    let spec = "[[machine]]\nname = \"one\"\nkernel = \"kernel\"\ninitrd = \"initrd\"\nmem = \"16M\"\nballoon = \"off\"\n\
        run = \"true\"\nexit-status = 7\nrepeat = 2\nalone = true\ntemplate = true\n";
    let vmm = Vmm::new().file("kernel", crate::guests::elf(&waits())).file("initrd", "x");
    let vmm = vmm.file("spec.toml", spec).env("XDG_CACHE_HOME", cache.path(""));
    vmm.args(["boot-test", "spec.toml"]).run().exits(0);
    template(&cache);
}

#[test]
fn what_a_template_cannot_have_is_refused() {
    let cache = Dir::new();
    for (args, words) in [
        (&["--disk", "kernel"][..], &["kernel,readonly", "kernel,overlay"][..]),
        (&["--disk", "kernel,overlay=layer"], &["kernel,readonly"]),
        (&["--share", ".,tag=a"], &["--share", "cannot be saved"]),
        (&["--net", "tap=a"], &["--net tap=a", "say --net user"]),
        (&["--restore", "x"], &["--template and --restore"]),
        (&["--hostname", "x"], &["--template and --hostname"]),
        (&["--jail", "user=65534"], &["--template and --jail"]),
    ] {
        let vmm = templated(&cache).args(args).args(["--", "true"]);
        vmm.run().refuses(125, &[&["--template"], words].concat());
    }
    templated(&cache).run().refuses(3, &["--template", "say -- COMMAND"]);
}
