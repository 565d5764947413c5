//! The disks of a machine that is saved.

use std::fs;

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
