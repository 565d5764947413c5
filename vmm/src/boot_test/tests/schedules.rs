//! What may run side by side.

use super::super::log::file_name;
use super::super::schedule::Budget;
use super::super::test::Test;
use super::tests_of;

const BUDGET: Budget = Budget { cpus: 4, memory: 1 << 30 };

/// Whether the last of these machines, of which only the keys are given, may run beside the others.
fn allowed(machines: &[&str]) -> bool {
    let spec: String = machines
        .iter()
        .enumerate()
        .map(|(n, keys)| format!("[[machine]]\nname = 'm{n}'\nkernel = 'k'\n{keys}\n"))
        .collect();
    let tests = tests_of(&spec);
    let (last, others) = tests.split_last().unwrap();
    BUDGET.allows(last, &others.iter().collect::<Vec<&Test>>())
}

#[test]
fn cpus_and_memory_are_counted() {
    assert!(allowed(&["cpus = 2", "cpus = 2"]));
    assert!(!allowed(&["cpus = 2", "cpus = 2", "cpus = 1"]));
    assert!(allowed(&["mem = '400M'", "mem = '512M'"]));
    assert!(!allowed(&["mem = '512M'", "mem = '512M'"]), "a machine takes more than its RAM");
    assert!(!allowed(&["", "mem = '1P'", "mem = '16000P'"]), "no overflow");
}

#[test]
fn what_fits_nowhere_runs_alone() {
    assert!(allowed(&["cpus = 64\nmem = '1T'"]));
    assert!(!allowed(&["", "cpus = 64"]));
    assert!(!allowed(&["cpus = 64", ""]));
    assert!(!allowed(&["", "alone = true"]));
    assert!(!allowed(&["alone = true", ""]));
}

#[test]
fn a_disk_has_one_writer() {
    assert!(!allowed(&["disk = 'd'", "disk = ['x', 'd']"]));
    assert!(!allowed(&["disk = 'd,readonly'", "disk = 'd,direct'"]));
    assert!(allowed(&["disk = 'd,readonly'", "disk = 'd,readonly'"]));
    assert!(allowed(&["disk = 'd'", "disk = 'e'"]));
    assert!(allowed(&["disk = 'd,readonly'", "disk = 'd,overlay'", "disk = 'd,overlay=e'"]));
    assert!(!allowed(&["disk = 'd'", "disk = 'd,overlay'"]));
    assert!(!allowed(&["disk = 'd,overlay=e'", "disk = 'd,overlay=e'"]));
}

#[test]
fn names_of_files_are_safe_and_differ() {
    assert_eq!(file_name("boot", 1), "boot");
    assert_eq!(file_name("a[kernel=../b c]", 7), "a_kernel=.._b_c_7");
    assert_eq!(file_name(&"x".repeat(300), 3).len(), 121);
}
