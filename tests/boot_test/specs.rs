//! The error for a wrong spec names its file, line and key, and nothing is run.

use super::{boot_test, one};
use crate::fixture::Vmm;

#[track_caller]
fn refused(spec: &str, line: usize, words: &[&str]) {
    let place = format!("spec.toml: line {line}: ");
    boot_test(spec).run().refuses(2, &[&[place.as_str()], words].concat());
}

/// The keys begin at line 5.
#[track_caller]
fn refused_key(keys: &str, words: &[&str]) {
    refused(&one(&format!("kernel = 'hello'\n{keys}")), 6, words);
}

#[test]
fn what_is_no_spec() {
    let run = |path: &str| Vmm::new().args(["boot-test", path]).run();
    run("missing.toml").refuses(2, &["missing.toml: cannot read it", "No such file"]);
    run(".").refuses(2, &[".: cannot read it", "directory"]);
    let binary = Vmm::new().file("binary", b"\x7fELF\xff").args(["boot-test", "binary"]);
    binary.run().refuses(2, &["binary: cannot read it", "UTF-8"]);
    let large = Vmm::new().sparse_file("large", 2 << 20).args(["boot-test", "large"]);
    large.run().refuses(2, &["large: is larger than 1024 KiB"]);
    run("/dev/zero").refuses(2, &["/dev/zero: is larger than 1024 KiB"]);
    Vmm::new().args(["boot-test"]).run().refuses(2, &["SPEC"]);
}

#[test]
fn no_machines() {
    refused("", 1, &["machine", "there is none", "[[machine]]"]);
    refused("[matrix]\ncpus = [1]", 1, &["machine"]);
    refused("machine = 7", 1, &["machine", "integer", "[[machine]]"]);
    refused("machine = []", 1, &["machine", "there is none"]);
    refused("# one\nmachine = [7]", 2, &["machine", "integer", "a table"]);
    refused("\n[machine.m]\nkernel = 'hello'", 2, &["machine", "table", "[[machine]]"]);
}

#[test]
fn what_is_not_toml() {
    refused("[[machine]]\nname = \n", 2, &[]);
    refused("[[machine]]\nname = 'm'\nname = 'n'\n", 3, &["duplicate"]);
}

#[test]
fn unknown_keys_are_reported_with_the_nearest() {
    refused("[[machines]]\nname = 'm'", 1, &["machines", "the nearest is 'machine'"]);
    refused("[defaults]\nmemory = '1G'", 2, &["defaults.memory", "'mem'"]);
    refused("[defaults]\nname = 'm'", 2, &["defaults.name", "no key 'name'"]);
    refused_key("kernal = 'x'", &["machine.kernal", "'kernel'"]);
    refused_key("expects = 'x'", &["machine.expects", "'expect'"]);
    refused_key("print-config = true", &["machine.print-config", "no key"]);
    refused_key("budget = { exit = 1 }", &["machine.budget.exit", "'exits'"]);
    refused_key("budget = { exits = { p95 = 1 } }", &["machine.budget.exits.p95", "'p99'"]);
    refused_key("tolerance = { exit = '1%' }", &["machine.tolerance.exit", "'exits'"]);
    refused_key("expect = [{ patern = 'x' }]", &["machine.expect.patern", "'pattern'"]);
    refused_key("matrix = { expect = ['a'] }", &["machine.matrix.expect", "no key 'expect'"]);
    refused("[matrix]\nmemory = ['1G']", 2, &["matrix.memory", "'mem'"]);
}

#[test]
fn wrong_types_and_values() {
    refused_key("mem = true", &["machine.mem", "--mem true"]);
    refused_key("cpus = 0", &["machine.cpus", "at least 1"]);
    refused_key("cmdline = ['a', 'b']", &["machine.cmdline", "array", "a string"]);
    refused_key("console = 'file'", &["machine.console", "the runner reads the console"]);
    refused_key("detach = true", &["machine.detach", "no key"]);
    refused_key("boot-report = 'file'", &["machine.boot-report", "for itself"]);
    refused_key("expect = 7", &["machine.expect", "integer"]);
    refused_key("expect = []", &["machine.expect", "empty list"]);
    refused_key("expect = ['']", &["machine.expect", "is empty"]);
    refused_key("expect = ['a*']", &["machine.expect", "matches even an empty line"]);
    refused_key("expect = ['a(']", &["machine.expect", "'a(' is not a regular expression"]);
    refused_key("expect = [{ timeout = '1s' }]", &["machine.expect", "no pattern"]);
    refused_key("expect = [{ pattern = 'a', timeout = '0s' }]", &["expect.timeout", "'0s'"]);
    refused_key("fail-on = [1]", &["machine.fail-on", "integer", "a string"]);
    refused_key("fail-on-warning = 1", &["machine.fail-on-warning", "true or false"]);
    refused_key("timeout = 'soon'", &["machine.timeout", "'soon'", "30s"]);
    refused_key("timeout = 30", &["machine.timeout", "integer", "a string"]);
    refused_key("timeout = '1000d'", &["machine.timeout", "at most 7d"]);
    refused_key("repeat = 0", &["machine.repeat", "from 1 to 1000"]);
    refused_key("repeat = '3'", &["machine.repeat", "string", "whole number"]);
    refused_key("alone = 'yes'", &["machine.alone", "true or false"]);
    refused_key("budget = {}", &["machine.budget", "names no figure"]);
    refused_key("budget = { exits = '9' }", &["machine.budget.exits", "median"]);
    refused_key("budget = { exits = -1 }", &["machine.budget.exits", "from 0 on"]);
    refused_key("budget = { exits = nan }", &["machine.budget.exits", "from 0 on"]);
    refused_key("tolerance = '10'", &["machine.tolerance", "10%"]);
    refused_key("tolerance = 0.1", &["machine.tolerance", "float"]);
}

#[test]
fn ends_and_commands() {
    refused_key("end = 'explosion'", &["machine.end", "'explosion'", "power-off, reboot"]);
    refused_key("exit-status = -1", &["machine.exit-status", "from 0 to 255"]);
    refused_key("exit-status = 1\nend = 'panic'", &["machine.exit-status", "leave one out"]);
    refused_key("run = ''", &["machine.run", "is empty"]);
    refused_key("run = []", &["machine.run", "empty list"]);
    refused_key("run = ['ls', 7]", &["machine.run", "integer"]);
    refused_key("end = 'panic'\nrun = 'true'\ninitrd = 'hello'", &["machine.end", "its command"]);
    refused_key("exit-status = 256", &["machine.exit-status", "from 0 to 255"]);
}

#[test]
fn names() {
    refused("[[machine]]\nkernel = 'hello'", 1, &["machine", "no name"]);
    let twice = "[[machine]]\nname = 'm'\nkernel = 'hello'\n";
    refused(&[twice, twice].concat(), 5, &["machine.name", "'m' already"]);
    for name in ["a b", "../x", "a/b", ".x", "-x", "a\\nb", "ü"] {
        let spec = format!("[[machine]]\nname = \"{name}\"\nkernel = 'hello'");
        refused(&spec, 2, &["machine.name", "letters, digits"]);
    }
    refused("[[machine]]\nname = ''\nkernel = 'hello'", 2, &["machine.name", "is empty"]);
}

#[test]
fn a_machine_as_a_whole() {
    refused("# none\n[[machine]]\nname = 'm'", 2, &["machine", "no kernel"]);
    let spec = "[[machine]]\nname = 'm'\nkernel = 'hello'\nmem = '5'";
    refused(spec, 4, &["machine.mem: --mem 5", "16M"]);
    let spec = "[[machine]]\nname = 'm'\nkernel = 'hello'\nrun = 'true'";
    refused(spec, 1, &["machine", "a command needs --initrd"]);
}

#[test]
fn matrices() {
    let machine = "\n[[machine]]\nname = 'm'\nkernel = 'hello'\n";
    refused(&format!("[matrix]\ncpus = 2{machine}"), 2, &["matrix.cpus", "a list of values"]);
    refused(&format!("[matrix]\ncpus = []{machine}"), 2, &["matrix.cpus", "lists no value"]);
    refused(&format!("[matrix]\ncpus = [1, 0]{machine}"), 2, &["matrix.cpus", "at least 1"]);
    refused(
        &format!("[matrix]\ncpus = [1, 1]{machine}"),
        4,
        &["machine.name", "m[cpus=1]' already"],
    );
    let own = format!("{machine}cpus = 1\nmatrix = {{ cpus = [1, 2] }}");
    refused(&own, 5, &["machine.cpus", "this machine's matrix too"]);
    let many = (1..=100).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let many = format!("[matrix]\ncpus = [{many}]\ncmdline = [{many}]{machine}");
    refused(&many, 4, &["machine", "more than 1000 machines"]);
}

#[test]
fn flags_and_baselines() {
    let run = |spec: &str, flags: &[&str]| boot_test(spec).args(flags).run();
    let hello = one("kernel = 'hello'");
    run(&hello, &["--save-baseline"]).refuses(2, &["--save-baseline", "baseline = \"FILE\""]);
    run(&hello, &["--only", "x"]).refuses(2, &["--only x", "no machine"]);
    run(&hello, &["--jobs", "0"]).refuses(2, &["--jobs", "0"]);
    let compared = format!("baseline = 'base.json'\n{hello}");
    run(&compared, &[]).refuses(2, &["base.json", "cannot read it", "--save-baseline"]);
    let with = |text: &str| boot_test(&compared).file("base.json", text).run();
    with("{").refuses(2, &["base.json"]);
    with(r#"{"schema":2,"machines":{}}"#).refuses(2, &["base.json", "schema is 2, not 1"]);
    with(r#"{"schema":1,"machines":{"m":{"speed":1}}}"#).refuses(2, &["base.json", "speed"]);
}
