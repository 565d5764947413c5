//! `scripts/release`: the same bytes twice, and its packages work on a system without a compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::dir::Dir;
use crate::host::elsewhere;
use crate::images::image;

/// Shells, the command that shows whether they have found the completions, and its output.
const SHELLS: [(&str, &str, &str); 3] = [
    (
        "bash",
        ". /usr/share/bash-completion/bash_completion; _completion_loader tinyvmm
        COMP_WORDS=(tinyvmm --kern) COMP_CWORD=1 COMP_LINE='tinyvmm --kern' COMP_POINT=14
        function=$(complete -p tinyvmm | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        $function tinyvmm --kern tinyvmm; printf '%s\\n' \"${COMPREPLY[@]}\"",
        "--kernel",
    ),
    ("fish", "complete -C 'tinyvmm --kern'", "--kernel"),
    // zsh shows completions at its prompt only; shells.rs tests that.
    (
        "zsh",
        "autoload -Uz compinit; compinit -D; autoload +X $_comps[tinyvmm]; functions $_comps[tinyvmm]",
        " complete -- ",
    ),
];

/// Runs a command in the root folder that precedes it.
const ENTER: &str =
    "cd \"$0\" && mount --rbind /dev dev && mount --rbind /proc proc && exec chroot . \"$@\"";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Runs `command` and returns its output.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A root folder with Debian's shells, man and dpkg.
struct Root {
    dir: Dir,
    /// `$XDG_DATA_DIRS`, if that is set.
    data_dirs: Option<&'static str>,
}

impl Root {
    fn new() -> Self {
        let dir = Dir::new();
        run(Command::new("cp").arg("-a").arg(image("debian").join(".")).arg(&dir.0));
        Self { dir, data_dirs: None }
    }

    /// Runs a command in the root folder.
    #[track_caller]
    fn run(&self, words_in_root: &[&str]) -> String {
        let words = elsewhere(ENTER);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&self.dir.0).args(words_in_root);
        command.env_clear().env("HOME", "/tmp");
        command.envs(self.data_dirs.map(|dirs| ("XDG_DATA_DIRS", dirs)));
        run(command.env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
    }

    /// Checks that the command, its manual and its completions are found.
    #[track_caller]
    fn has_tinyvmm(&self) {
        let version = concat!("tinyvmm ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(self.run(&["tinyvmm", "--version"]), version);
        assert!(self.run(&["man", "tinyvmm"]).contains("--kernel"));
        for name in self.sub_commands() {
            self.run(&["man", "-w", &format!("tinyvmm-{name}")]);
        }
        for (shell, script, shown) in SHELLS {
            let offers = self.run(&[shell, "-c", script]);
            assert!(offers.contains(shown), "{shell}: {offers}");
        }
    }

    fn sub_commands(&self) -> Vec<String> {
        let help = self.run(&["tinyvmm", "--help"]);
        let commands = help.split("\nCommands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let starts = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
        let names = commands.lines().filter(starts).map(|line| line.split_whitespace().next());
        let names: Vec<_> = names.map(|name| name.unwrap().to_owned()).collect();
        assert!(names.iter().any(|name| name == "doctor"), "{help}");
        names.into_iter().filter(|name| name != "help").collect()
    }

    /// Files with tinyvmm in their name or folder.
    fn files(&self) -> Vec<PathBuf> {
        let mut find = Command::new("find");
        find.arg(&self.dir.0).args(["-path", "*/usr/*tinyvmm*"]);
        run(&mut find).lines().map(PathBuf::from).collect()
    }
}

/// Makes a release into `dir`, with a umask and in a time zone of its own.
fn release(dir: &Dir, umask: &str, zone: &str) {
    let script = repository().join("scripts/release");
    let mut sh = Command::new("sh");
    sh.args(["-c", "umask $0; exec \"$@\"", umask]).arg(script).arg(&dir.0);
    run(sh.env("TZ", zone).current_dir(&dir.0));
}

/// The only file of `dir` with this ending.
fn only(dir: &Dir, ending: &str) -> PathBuf {
    let mut found = dir.entries();
    found.retain(|name| name.ends_with(ending));
    assert_eq!(found.len(), 1, "{found:?}");
    dir.path(&found[0])
}

#[test]
#[ignore = "builds a release, and needs packages of Debian's: scripts/check runs it"]
fn a_release_has_the_same_bytes_twice_and_works_in_a_clean_root() {
    let (first, second) = (Dir::new(), Dir::new());
    release(&first, "022", "UTC");
    release(&second, "077", "Asia/Tokyo");
    assert_eq!(first.entries(), second.entries());
    assert_eq!(first.entries().len(), 3, "{:?}", first.entries());
    for name in first.entries() {
        let same = fs::read(first.path(&name)).unwrap() == fs::read(second.path(&name)).unwrap();
        assert!(same, "{name} has other bytes the second time");
    }

    let mut root = Root::new();
    // Without it Debian 12's fish looks for nothing in /usr/local.
    root.data_dirs = Some("/usr/local/share:/usr/share");
    assert_eq!(root.files(), [] as [PathBuf; 0]);
    let mut tar = Command::new("tar");
    tar.args(["--strip-components=1", "-C"]).arg(root.dir.path("usr/local"));
    run(tar.arg("-xzf").arg(only(&first, ".tar.gz")));
    root.has_tinyvmm();
    let binary = fs::read(root.dir.path("usr/local/bin/tinyvmm")).unwrap();
    let binary = String::from_utf8_lossy(&binary);
    let home = PathBuf::from(std::env::var_os("HOME").unwrap());
    let cargo = std::env::var_os("CARGO_HOME").map_or(home.join(".cargo"), PathBuf::from);
    assert!(binary.contains("/crates/"), "the places of panics are not in the binary");
    for path in [repository(), cargo, home.join(".rustup")] {
        assert!(!binary.contains(path.to_str().unwrap()), "{} is in the binary", path.display());
    }

    let root = Root::new();
    fs::copy(only(&first, ".deb"), root.dir.path("tinyvmm.deb")).unwrap();
    root.run(&["dpkg", "--install", "/tinyvmm.deb"]);
    root.has_tinyvmm();
    let listed = root.run(&["dpkg", "--contents", "/tinyvmm.deb"]);
    assert!(listed.lines().all(|line| line.contains(" root/root ")), "{listed}");
    for name in ["copyright", "LICENSE-MIT", "LICENSE-APACHE", "README.md"] {
        assert!(root.dir.path("usr/share/doc/tinyvmm").join(name).is_file(), "there is no {name}");
    }
    root.run(&["dpkg", "--purge", "tinyvmm"]);
    assert_eq!(root.files(), [] as [PathBuf; 0]);
}
