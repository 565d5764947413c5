//! Which machines may run side by side.

use super::super::log::file_name;
use super::super::schedule::{Capacity, Job};
use super::super::test::Test;
use super::super::tinyvmm::{DiskFile, Needs};
use super::test_of;

const CAPACITY: Capacity = Capacity { cpus: 4, memory: 1 << 30 };

/// A test whose machine takes so many CPUs and so much memory, in MiB.
fn taking(cpus: u32, mib: u64) -> Test {
    let mut test = test_of("");
    test.machine.needs = Needs { cpus, memory: mib << 20, disks: vec![] };
    test
}

fn alone() -> Test {
    Test { alone: true, ..taking(1, 256) }
}

/// A test with disks: names of files, and whether other machines may have them.
fn with_disks(disks: &[(&str, bool)]) -> Test {
    let mut test = taking(1, 64);
    let disk = |(path, shared): &(&str, bool)| DiskFile { path: path.into(), shared: *shared };
    test.machine.needs.disks = disks.iter().map(disk).collect();
    test
}

/// Whether the last of these may run beside the others.
fn allowed(tests: &[Test]) -> bool {
    let (last, others) = tests.split_last().unwrap();
    let job = |(index, test)| Job { test, index, repetition: 1 };
    CAPACITY.allows(last, &others.iter().enumerate().map(job).collect::<Vec<_>>())
}

#[test]
fn cpus_and_memory_are_counted() {
    assert!(allowed(&[taking(2, 256), taking(2, 256)]));
    assert!(!allowed(&[taking(2, 256), taking(2, 256), taking(1, 256)]));
    assert!(allowed(&[taking(1, 400), taking(1, 512)]));
    assert!(!allowed(&[taking(1, 512), taking(1, 512)]), "a machine takes more than its RAM");
    let most = u64::MAX >> 20;
    assert!(!allowed(&[taking(1, 256), taking(1, most), taking(1, most)]), "no overflow");
}

#[test]
fn what_fits_nowhere_runs_alone() {
    assert!(allowed(&[taking(64, 1 << 20)]));
    assert!(!allowed(&[taking(1, 256), taking(64, 256)]));
    assert!(!allowed(&[taking(64, 256), taking(1, 256)]));
    assert!(!allowed(&[taking(1, 256), alone()]));
    assert!(!allowed(&[alone(), taking(1, 256)]));
}

#[test]
fn a_disk_has_one_writer() {
    let pair = |one: &[_], other: &[_]| allowed(&[with_disks(one), with_disks(other)]);
    assert!(!pair(&[("d", false)], &[("x", false), ("d", false)]));
    assert!(!pair(&[("d", true)], &[("d", false)]));
    assert!(pair(&[("d", true)], &[("d", true)]));
    assert!(pair(&[("d", false)], &[("e", false)]));
    assert!(pair(&[("d", true)], &[("d", true), ("e", false)]));
    assert!(!pair(&[("d", true), ("e", false)], &[("d", true), ("e", false)]));
}

#[test]
fn names_of_files_are_safe_and_differ() {
    let name = |name: &str, index, repeat| {
        let test = Test { name: name.into(), repeat, ..test_of("") };
        file_name(&Job { test: &test, index, repetition: 2 })
    };
    assert_eq!(name("boot", 1, 1), "boot");
    assert_eq!(name("boot", 1, 3), "boot+2");
    assert_eq!(name("a[kernel=../b c]", 7, 1), "a_kernel=.._b_c_7");
    assert_eq!(name(&"x".repeat(300), 3, 1).len(), 121);
}
