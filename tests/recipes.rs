//! How guest-images and scripts/need get packages, from an archive that only this test's apt knows.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::fixture::Dir;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// An archive with one package, `greeting`, and an apt that keeps its lists and files beside it.
struct Archive {
    dir: Dir,
}

impl Archive {
    fn new() -> Self {
        let archive = Self { dir: Dir::new() };
        for folder in [
            "lists/partial",
            "cache/archives/partial",
            "archive",
            "etc/apt.conf.d",
            "etc/preferences.d",
            "package/DEBIAN",
        ] {
            fs::create_dir_all(archive.dir.path(folder)).unwrap();
        }
        let at = archive.dir.0.display();
        let settings = format!(
            "Dir::State \"{at}\";\nDir::State::lists \"{at}/lists\";\nDir::State::status \"{at}/status\";\n\
             Dir::Cache \"{at}/cache\";\nDir::Etc \"{at}/etc\";\nDir::Log \"{at}\";\n\
             APT::Sandbox::User \"\";\nAPT::Get::Download-Only \"true\";\nDebug::NoLocking \"true\";\n"
        );
        fs::write(archive.dir.path("apt.conf"), settings).unwrap();
        fs::write(archive.dir.path("status"), "").unwrap();
        let source = format!("deb [trusted=yes] copy:{at}/archive ./\n");
        fs::write(archive.dir.path("etc/sources.list"), source).unwrap();
        archive
    }

    /// Publishes this version and drops all others, as Debian's archive does.
    fn publish(&self, version: &str) {
        let path = |name: &str| self.dir.path(name);
        fs::remove_dir_all(path("archive")).unwrap();
        fs::create_dir(path("archive")).unwrap();
        let control = format!(
            "Package: greeting\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\nDescription: a greeting\n"
        );
        fs::write(path("package/DEBIAN/control"), &control).unwrap();
        fs::write(path("package/greeting"), version).unwrap();
        let deb = format!("greeting_{version}_all.deb");
        let file = path("archive").join(&deb);
        self.runs(Command::new("dpkg-deb").arg("-b").arg(path("package")).arg(&file));
        let sum = self.runs(Command::new("sha256sum").arg(&file));
        let sum = sum.split(' ').next().unwrap();
        let size = fs::metadata(&file).unwrap().len();
        let index = format!("{control}Filename: ./{deb}\nSize: {size}\nSHA256: {sum}\n");
        fs::write(path("archive/Packages"), index).unwrap();
    }

    /// Runs a command whose apt knows only this archive.
    fn output(&self, command: &mut Command) -> Output {
        command
            .env("APT_CONFIG", self.dir.path("apt.conf"))
            .env("XDG_CACHE_HOME", self.dir.path("home"));
        command.output().unwrap()
    }

    /// Runs such a command, which must succeed; returns its standard output.
    #[track_caller]
    fn runs(&self, command: &mut Command) -> String {
        let output = self.output(command);
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn update(&self) {
        self.runs(Command::new("apt-get").arg("update"));
    }
}

/// A copy of guest-images with small recipes in the place of the real ones: `box` starts from `disk`.
fn recipes(archive: &Archive) -> std::path::PathBuf {
    let real = Path::new(REPOSITORY).join("../..");
    let copy = archive.dir.path("copy");
    for folder in ["guest-images", "scripts"] {
        fs::create_dir_all(copy.join(folder)).unwrap();
    }
    for name in ["guest-images/build", "guest-images/lib.sh", "guest-images/apt.sh", "scripts/need"]
    {
        fs::copy(real.join(name), copy.join(name)).unwrap();
    }
    let make = "make() { unpack_packages \"$work/all\"; cat \"$work/all/greeting\" \"${@:2}\" >\"$1\"; }\n";
    let packages = "packages() { echo greeting; }\n";
    fs::write(copy.join("guest-images/disk.sh"), format!("{packages}{make}")).unwrap();
    let bases = "base_recipes() { echo disk; }\n";
    fs::write(copy.join("guest-images/box.sh"), format!("{packages}{bases}{make}")).unwrap();
    copy.join("guest-images/build")
}

#[test]
fn lists_that_name_versions_which_are_gone_are_updated() {
    let archive = Archive::new();
    let build = recipes(&archive);
    archive.publish("1.0");
    archive.update();
    archive.publish("2.0");
    let built = archive.runs(Command::new(&build).arg("box"));
    assert_eq!(fs::read_to_string(built.trim_end()).unwrap(), "2.02.0");
    // The name is the hash of its inputs, so a build with new lists from the start finds it.
    let again = archive.runs(Command::new(&build).arg("box"));
    assert_eq!(again, built);
}

#[test]
fn a_machine_without_lists_gets_them() {
    let archive = Archive::new();
    let build = recipes(&archive);
    archive.publish("1.0");
    let built = archive.runs(Command::new(&build).arg("disk"));
    assert_eq!(fs::read_to_string(built.trim_end()).unwrap(), "1.0");
}

#[test]
fn what_was_built_before_is_used_where_nothing_can_be_fetched() {
    let archive = Archive::new();
    let build = recipes(&archive);
    archive.publish("1.0");
    let built = archive.runs(Command::new(&build).arg("disk"));
    archive.publish("2.0");
    archive.update();
    fs::remove_dir_all(archive.dir.path("archive")).unwrap();
    let output = archive.output(Command::new(&build).arg("disk"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot get the packages of 'disk'; using what was built"), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), built);
    fs::remove_file(built.trim_end()).unwrap();
    let output = archive.output(Command::new(&build).arg("disk"));
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot get the packages of 'disk'; run 'apt-get update'"), "{said}");
}

#[test]
fn a_missing_command_is_installed_with_new_lists_or_named() {
    let archive = Archive::new();
    archive.publish("1.0");
    archive.update();
    archive.publish("2.0");
    let need = Path::new(REPOSITORY).join("../../scripts/need");
    archive.runs(Command::new(&need).args(["sh:nothing", "/:nothing"]));
    let output = archive.output(Command::new(&need).args(["sh:dash", "greet:greeting"]));
    let said = String::from_utf8_lossy(&output.stderr);
    // apt only downloads; a user who is not root gets the line to type.
    if output.status.success() {
        assert!(said.contains("updating apt's package lists"), "{said}");
    } else {
        let line = "apt-get install -y --no-install-recommends greeting";
        assert_eq!(said, format!("need: no greet here; run: {line}\n"));
    }
    let output = archive.output(Command::new(&need).arg("greet:no-such-package"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// Only the two scripts that update apt's lists call apt.
#[test]
fn nothing_else_asks_apt_for_packages() {
    let listed = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"])
        .args(["guest-images", "scripts", ".ci"])
        .current_dir(Path::new(REPOSITORY).join("../.."))
        .output()
        .unwrap();
    let files = String::from_utf8(listed.stdout).unwrap();
    assert!(files.contains("guest-images/small.sh"), "{files}");
    for name in files.lines() {
        let Ok(text) = fs::read_to_string(Path::new(REPOSITORY).join("../..").join(name)) else {
            continue;
        };
        let calls = ["apt-get install", "apt-get download", "apt-get source", "apt-get update"];
        let found = text.lines().find(|line| calls.iter().any(|call| line.contains(call)));
        let allowed = ["guest-images/apt.sh", "scripts/need"].contains(&name);
        // A message may name what to type.
        let found = found.filter(|line| !line.contains("run: ") && !line.contains("run 'apt-get"));
        assert!(allowed || found.is_none(), "{name}: {found:?}");
    }
}
