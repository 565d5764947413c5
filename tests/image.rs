//! Images of containers, up to the machine that has one as its disk. `linux::image` has guests that run what is in one.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use crate::fixture::{Dir, Vmm};
use crate::guests;
use crate::oci::{layer, layout, part};

/// A machine with the image in `place`, whose disk is kept there, too; its own kernel does not look at it.
fn vmm(place: &Dir) -> Vmm {
    let image = format!("oci:{}", place.path("image").display());
    let vmm = Vmm::new().guest(guests::hello).env("XDG_CACHE_HOME", place.path("cache"));
    vmm.args(["--mem", "32M", "--image", &image])
}

/// Boots it without the image's command, of which this guest would not report an end.
#[track_caller]
fn boots(place: &Dir) {
    vmm(place).args(["--cmdline", "init=/x"]).run().exits(0).silently().prints("hello");
}

fn disks(place: &Dir) -> Vec<PathBuf> {
    let files = fs::read_dir(place.path("cache/tinyvmm/disks")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let mut disks: Vec<_> = files.filter(|path| !path.is_symlink()).collect();
    disks.sort();
    disks
}

#[test]
fn an_image_is_made_a_disk_once_and_kept() {
    let place = layout(&[layer(&[part("a", b"contents")])], "{}");
    boots(&place);
    let [disk] = &disks(&place)[..] else { panic!("{:?}", disks(&place)) };
    let found = |disk: &PathBuf| fs::metadata(disk).unwrap();
    assert_eq!(found(disk).permissions().mode() & 0o777, 0o600);
    let folder = fs::metadata(disk.parent().unwrap()).unwrap();
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);
    let (first, bytes) = (found(disk).ino(), fs::read(disk).unwrap());
    boots(&place);
    assert_eq!(found(disk).ino(), first);
    // One that was cut off is made again, with the same bytes.
    fs::write(disk, &bytes[..4096]).unwrap();
    boots(&place);
    assert_eq!(disks(&place).len(), 1);
    assert!(found(disk).ino() != first && fs::read(disk).unwrap() == bytes);

    let cache = |action: &str| {
        let vmm = Vmm::new().env("XDG_CACHE_HOME", place.path("cache"));
        vmm.args(["cache", action]).run().exits(0).silently()
    };
    let name = disk.file_name().unwrap().to_str().unwrap();
    let listed = cache("list").prints(&name[..16]);
    listed.prints(&format!("{:?}", place.path("image").canonicalize().unwrap()));
    cache("clear");
    assert_eq!(fs::read_dir(disk.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn an_image_that_cannot_be_a_machine_is_refused_in_one_line() {
    let runs = |config: &str| layout(&[layer(&[part("a", b"x")])], config);
    let plain = runs(r#"{"Cmd":["/a"]}"#);
    let cases: [(&Dir, &[&str], i32, &str); 7] = [
        (&runs("{}"), &[], 3, "it names no command: say one, as in -- sh"),
        (&plain, &["--initrd", "/dev/null"], 3, "--image and --initrd: leave one out"),
        (&plain, &["--root-dir", "/"], 2, "--root-dir"),
        (&plain, &["--image-limit", "4K"], 3, "unpacked: allow more with --image-limit SIZE"),
        (&plain, &["--disk", "kernel,readonly,id=image"], 3, "has the id image, too"),
        (&plain, &["--cmdline", "init=/x", "--", "a"], 3, "--cmdline init= and -- COMMAND"),
        (&plain, &["--modules", "/var/empty-of-modules"], 125, "it has no modules"),
    ];
    for (place, flags, code, message) in cases {
        vmm(place).args(flags).run().exits(code).says(&[message]);
        // Nothing is kept of one that is refused.
        let folder = place.path("cache/tinyvmm/disks");
        let left = fs::read_dir(folder).into_iter().flatten().flatten();
        assert!(
            left.map(|file| file.file_name())
                .all(|name| !name.to_string_lossy().starts_with("new-"))
        );
    }
    let image = format!("oci:{}", plain.path("image").display());
    Vmm::new()
        .args(["--image", &image])
        .run()
        .exits(3)
        .says(&["an image has no kernel: say --kernel FILE"]);
    Vmm::new().args(["--image", "alpine:3"]).run().exits(2).says(&["say oci:DIR[:TAG]"]);
    let damaged = runs(r#"{"Cmd":["/a"]}"#);
    for blob in fs::read_dir(damaged.path("image/blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    vmm(&damaged).run().exits(3).says(&["it is damaged or was changed"]);
}
