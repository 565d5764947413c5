//! Disks on the host's files and block devices, and what the guest sees of them.

use std::path::Path;
use std::process::{Command, Stdio};

use tinyvmm::layout::MIB;

use crate::fixture::{Outcome, Vmm};
use crate::guests::{self, guest};

guest!(
    /// Prints the first 60 bytes of the first disk's configuration, as they are, and powers off.
    shows_its_disk,
    "mov esi, 0xd0000100",
    "dump 60",
    "power_off",
);

/// A disk's sector, the physical block and the unit of discards, in bytes, as its driver reads them.
fn units(outcome: &Outcome) -> [u32; 3] {
    let bytes = &outcome.stdout;
    assert_eq!(bytes.len(), 60);
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let sector = u32_at(20);
    [sector, sector << bytes[24], u32_at(44) * 512]
}

fn units_of(vmm: Vmm, disk: &str) -> [u32; 3] {
    units(&vmm.guest(shows_its_disk).args(["--disk", disk]).run().exits(0).silently())
}

/// A block device with a file's contents, until it is dropped.
pub struct LoopDevice(pub String);

impl LoopDevice {
    /// `None` where the host has none, or this user may not make one.
    pub fn new(file: &Path, sector: u32) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--sector-size", &sector.to_string()]).arg(file);
        match losetup.stderr(Stdio::piped()).output() {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8(output.stdout).unwrap().trim().into()))
            }
            no => {
                eprintln!("SKIPPED: no loop device: {no:?}");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // An error leaves the device to the next test's losetup.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_files_units_are_the_same_however_it_is_opened() {
    let vmm = || Vmm::new().sparse_file("disk", MIB);
    let plain = units_of(vmm(), "disk");
    assert_eq!(plain[0], 512);
    assert_eq!(units_of(vmm(), "disk,direct"), plain);
    assert_eq!(units_of(vmm(), "disk,readonly"), plain);
    assert_eq!(units_of(vmm(), "disk,overlay")[0], 512);
    let large = [4096, plain[1].max(4096), plain[2].max(4096)];
    assert_eq!(units_of(vmm(), "disk,sector=4096"), large);
    assert_eq!(units_of(vmm(), "disk,direct,sector=4096"), large);
    assert_eq!(units_of(vmm(), "disk,overlay,sector=4096")[0], 4096);
    let odd = Vmm::new().sparse_file("disk", MIB + 512).guest(guests::hello);
    let odd = odd.args(["--disk", "disk,sector=4096"]);
    odd.run().refuses(3, &["disk disk: its size of 1049088", "%4096", "say ,sector=512"]);
}

#[test]
fn a_block_device_shows_its_sectors_with_and_without_direct() {
    for sector in [512, 4096] {
        let vmm = || Vmm::new().sparse_file("image", 16 * MIB);
        for (options, shown) in [
            ("", sector),
            (",direct", sector),
            (",readonly,direct", sector),
            (",overlay", sector),
            (",sector=512", 512),
            (",direct,sector=512", 512),
            (",direct,sector=4096", 4096),
        ] {
            let vmm = vmm();
            let Some(device) = LoopDevice::new(&vmm.dir().path("image"), sector) else { return };
            let units = units_of(vmm, &format!("{}{options}", device.0));
            assert_eq!(units[0], shown, "{sector}: {options}");
            assert!(units[1] >= sector.max(shown), "{sector}: {options}: {units:?}");
            let name = device.0.trim_start_matches("/dev/");
            let granularity = format!("/sys/block/{name}/queue/discard_granularity");
            let granularity = std::fs::read_to_string(granularity).unwrap();
            let granularity = granularity.trim().parse::<u32>().unwrap().max(shown);
            assert!(options == ",overlay" || units[2] == granularity, "{options}: {units:?}");
        }
    }
}

#[test]
fn a_writable_disk_that_is_no_raw_image_is_one_line_and_raw_all_the_same() {
    let image = |at: usize, start: &[u8]| {
        let mut bytes = vec![0; MIB as usize];
        bytes[at..at + start.len()].copy_from_slice(start);
        Vmm::new().file("disk", bytes)
    };
    for (at, start, what, remedy) in [
        (0, &b"QFI\xfb\0\0\0\x03"[..], "qcow2", "qemu-img convert -O raw"),
        (0, b"conectix", "VHD", "qemu-img convert -O raw"),
        (0, b"KDMV", "VMDK", "qemu-img convert -O raw"),
        (0x8001, b"CD001\x01", "ISO", "add ,readonly"),
    ] {
        for options in ["", ",direct"] {
            let vmm = image(at, start).guest(shows_its_disk);
            let outcome = vmm.args(["--disk", &format!("disk{options}")]).run().exits(0);
            let outcome = outcome.says(&["disk disk: ", what, remedy]);
            assert_eq!(outcome.stdout[..8], (MIB / 512).to_le_bytes(), "{what}");
        }
        for options in ["readonly", "overlay"] {
            let vmm = image(at, start).guest(guests::hello);
            vmm.args(["--disk", &format!("disk,{options}")]).run().exits(0).silently();
        }
    }
}
