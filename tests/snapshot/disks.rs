//! The disks of a machine that is saved.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{counting, restored, save};
use crate::api::vmm;
use crate::fixture::Dir;

#[test]
fn disks_have_to_be_as_they_were_unless_others_are_named() {
    let dir = Dir::new();
    let image = dir.path("disk,img");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let disk =
        |options: &str| format!("{}{options}", image.display().to_string().replace(',', ",,"));
    for options in ["", ",readonly", ",overlay"] {
        let snapshot = Dir::new();
        let (running, client) = counting(vmm().args(["--disk", &disk(options)]));
        let running = running.types("x").prints("Aa");
        save(&client, &snapshot);
        // While the first one has it locked, others may only read it.
        let both = || restored(&snapshot).run();
        if options.is_empty() {
            both().refuses(3, &["disk,img", "another"]);
        }
        running.types("q").wait().exits(0).silently();
        let one = restored(&snapshot).start().types("x").prints("Bb");
        restored(&snapshot).start().types("x").prints("Bb").types("q").wait().exits(0).silently();
        one.types("q").wait().exits(0).silently();
        fs::write(&image, vec![8; 1 << 20]).unwrap();
        restored(&snapshot).run().refuses(3, &["disk,img", "it was changed after", "--disk"]);
        let named = restored(&snapshot)
            .args(["--disk", &disk(if options == ",readonly" { options } else { "" })]);
        named.start().types("x").prints("Bb").types("q").wait().exits(0).silently();
        let small = Dir::new();
        fs::write(small.path("small"), vec![7; 4096]).unwrap();
        let other = restored(&snapshot).args(["--disk".into(), small.path("small")]);
        other.run().refuses(
            3,
            &["disk0", if options == ",readonly" { "other options" } else { "1048576" }],
        );
    }
}

#[test]
fn a_snapshot_with_its_disks_needs_no_others_and_each_machine_has_its_own() {
    let dir = Dir::new();
    let image = dir.path("disk,img");
    for options in ["", ",readonly", ",overlay"] {
        fs::write(&image, vec![7; 1 << 20]).unwrap();
        // Half of it is a hole.
        fs::File::options().write(true).open(&image).unwrap().set_len(2 << 20).unwrap();
        let disk = format!("{}{options}", image.display().to_string().replace(',', ",,"));
        let snapshot = Dir::new();
        let (running, client) = counting(vmm().args(["--disk", &disk]));
        let folder = snapshot.path("snap");
        let made = client.ctl(&["snapshot", folder.to_str().unwrap(), "--with-disks"]);
        made.exits(0).silently();
        assert_eq!(client.get("/")["state"], "Running");
        running.types("q").wait().exits(0).silently();
        let copy = folder.join("state.image0");
        assert!(fs::read(&copy).unwrap() == fs::read(&image).unwrap(), "{options}");
        assert!(copy.metadata().unwrap().blocks() * 512 < 2 << 20, "{options}");
        fs::remove_file(&image).unwrap();
        let moved = Dir::new();
        fs::rename(&folder, moved.path("snap")).unwrap();
        let all = [(); 2].map(|()| restored(&moved).start().types("x").prints("Aa"));
        for one in all {
            one.types("q").wait().exits(0).silently();
        }
        assert_eq!(fs::read(moved.path("snap/state.image0")).unwrap()[..1 << 20], vec![7; 1 << 20]);
        // The original is gone, too.
        fs::remove_file(moved.path("snap/state.image0")).unwrap();
        restored(&moved).run().refuses(3, &["disk,img", "No such file"]);
    }
}

#[test]
fn a_pipe_in_the_place_of_a_disk_is_refused_and_not_waited_for() {
    let (dir, disk) = (Dir::new(), Dir::new());
    let image = disk.path("disk");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let (running, client) = counting(vmm().args(["--disk".into(), image.clone()]));
    save(&client, &dir);
    running.types("q").wait().exits(0).silently();
    fs::remove_file(&image).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&image).status().unwrap().success());
    restored(&dir).run().refuses(3, &["disk", "it was changed after"]);
}
