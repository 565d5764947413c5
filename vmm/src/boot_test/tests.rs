//! Tests of the parts that need no machine: patterns, budgets and the schedule.

mod budgets;
mod patterns;
mod schedules;

use std::path::Path;

use super::spec::Spec;
use super::test::Test;

/// The tests of a spec.
fn tests_of(text: &str) -> Vec<Test> {
    Spec::parse(text, Path::new("/specs").into()).unwrap().tests
}

/// The test of a machine with these keys.
fn test_of(keys: &str) -> Test {
    let mut tests = tests_of(&format!("[[machine]]\nname = 'm'\nkernel = 'k'\n{keys}"));
    assert_eq!(tests.len(), 1);
    tests.remove(0)
}
