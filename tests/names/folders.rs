//! Folders that others have made, or have access to, are not used.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::User;
use crate::guests;

const VICTIM: &str = "not to be touched";

impl User {
    #[track_caller]
    fn is_refused(&self, words: &[&str]) {
        self.vmm().guest(guests::idle).args(["--name", "vm"]).run().refuses(3, words);
    }
}

#[test]
fn a_link_in_the_place_of_the_folder_is_refused() {
    let user = User::new();
    let target = user.0.path("target");
    fs::create_dir(&target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&target, user.machines()).unwrap();
    user.is_refused(&["--name vm", "tinyvmm", "remove it"]);
    user.run(&["ps"]).refuses(1, &["tinyvmm", "remove it"]);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    fs::remove_file(user.machines()).unwrap();
    // The same for a machine's folder.
    fs::create_dir(user.machines()).unwrap();
    fs::set_permissions(user.machines(), fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&target, user.machines().join("vm")).unwrap();
    user.is_refused(&["--name vm", "tinyvmm/vm", "remove it"]);
    user.run(&["logs", "vm"]).refuses(1, &["tinyvmm/vm", "remove it"]);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    fs::remove_file(user.machines().join("vm")).unwrap();
}

#[test]
fn a_folder_that_others_have_access_to_is_refused() {
    let user = User::new();
    fs::create_dir(user.machines()).unwrap();
    for mode in [0o755, 0o777, 0o710, 0o701] {
        fs::set_permissions(user.machines(), fs::Permissions::from_mode(mode)).unwrap();
        user.is_refused(&["--name vm", "others have access", "XDG_RUNTIME_DIR"]);
    }
    fs::set_permissions(user.machines(), fs::Permissions::from_mode(0o700)).unwrap();
    if std::os::unix::fs::chown(user.machines(), Some(12345), None).is_ok() {
        user.is_refused(&["--name vm", "others have access", "XDG_RUNTIME_DIR"]);
        user.run(&["ps"]).refuses(1, &["others have access"]);
        std::os::unix::fs::chown(user.machines(), Some(0), None).unwrap();
    }
    // A machine's own folder.
    fs::create_dir(user.machines().join("vm")).unwrap();
    fs::set_permissions(user.machines().join("vm"), fs::Permissions::from_mode(0o755)).unwrap();
    user.is_refused(&["--name vm", "tinyvmm/vm", "others have access"]);
    fs::remove_dir(user.machines().join("vm")).unwrap();
}

#[test]
fn a_link_in_a_machines_folder_is_not_followed() {
    for file in ["machine.json", "console.log", "console.sock", "api.sock"] {
        let user = User::new();
        let victim = user.0.path("victim");
        fs::write(&victim, VICTIM).unwrap();
        let folder = user.machines().join("vm");
        for path in [&user.machines(), &folder] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        symlink(&victim, folder.join(file)).unwrap();
        user.is_refused(&[]);
        assert_eq!(fs::read_to_string(&victim).unwrap(), VICTIM, "{file}");
        let _ = fs::remove_dir_all(folder);
    }
}

#[test]
fn a_folder_that_is_too_long_for_sockets_is_refused() {
    let user = User::new();
    let long = user.0.path("x".repeat(82 - user.0.0.as_os_str().len()));
    fs::create_dir(&long).unwrap();
    let vmm = |name: &str| {
        let vmm = user.vmm().env("XDG_RUNTIME_DIR", &long);
        vmm.guest(guests::hello).args(["--name", name])
    };
    let words = ["--name abcdefgh", "too long", "XDG_RUNTIME_DIR"];
    vmm("abcdefgh").run().refuses(3, &words);
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
    // 83 + "/tinyvmm/" + 2 bytes: the longest.
    vmm("ab").run().exits(0).silently();
}

#[test]
fn a_folder_with_anything_in_it_does_not_stop_the_others() {
    let user = User::new();
    let _running = user.machine("vm", guests::idle, "idle");
    for name in ["empty", "half", "damaged", "not a name"] {
        fs::create_dir(user.machines().join(name)).unwrap();
        fs::set_permissions(user.machines().join(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::write(user.file("half", "machine.json"), "").unwrap();
    fs::write(user.file("damaged", "machine.json"), "{\"cpus\": \"\u{1b}[2J\"").unwrap();
    fs::write(user.machines().join("file"), "").unwrap();
    let rows = user.ps();
    let states: Vec<_> =
        rows.iter().map(|row| (row["name"].as_str(), row["state"].as_str())).collect();
    let expected = [("damaged", "killed"), ("half", "killed"), ("vm", "running")];
    assert_eq!(states, expected.map(|(name, state)| (Some(name), Some(state))));
    fs::remove_dir(user.machines().join("not a name")).unwrap();
    fs::remove_file(user.machines().join("file")).unwrap();
    // Each is as good as free.
    for name in ["half", "damaged"] {
        user.run(&["stop", name]).exits(0).silently();
    }
    fs::remove_dir(user.machines().join("empty")).unwrap();
}
