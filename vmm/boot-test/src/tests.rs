//! Tests of the parts that need no machine: patterns, budgets and the schedule.

mod budgets;
mod patterns;
mod schedules;

use std::path::Path;

use super::spec::Spec;
use super::test::Test;
use super::tinyvmm::parse_keys;

/// Some of what `tinyvmm --print-config=json` prints.
const PRINTED: &[u8] = br#"{"config": {"kernel": null, "cpus": "1", "mem": "256M", "disk": []}}"#;

/// The tests of a spec.
fn tests_of(text: &str) -> Vec<Test> {
    let keys = parse_keys(PRINTED).unwrap();
    Spec::parse(text, Path::new("/specs").into(), &keys).unwrap().tests
}

/// The test of a machine with these keys.
fn test_of(keys: &str) -> Test {
    let mut tests = tests_of(&format!("[[machine]]\nname = 'm'\nkernel = 'k'\n{keys}"));
    assert_eq!(tests.len(), 1);
    tests.remove(0)
}
