//! The command line: errors are one line; help is complete and can be piped.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;

use crate::fixture::{Outcome, Vmm};
use crate::guests;

/// A machine that would write a file if it started: a refusal must leave no trace.
fn vmm() -> Vmm {
    Vmm::new().guest(guests::hello).args(["--console", "console.txt"])
}

fn run(args: &[&str]) -> Outcome {
    Vmm::new().args(args).run()
}

/// The standard output of tinyvmm, which prints nothing else.
#[track_caller]
fn printed(args: &[&str]) -> String {
    String::from_utf8(run(args).exits(0).silently().leaves_nothing().stdout).unwrap()
}

#[test]
fn a_machine_without_a_kernel() {
    run(&[]).refuses(2, &["no kernel", "--kernel FILE"]);
    run(&["--mem", "64M"]).refuses(2, &["no kernel", "--kernel FILE"]);
    run(&["--kernel"]).refuses(2, &["--kernel", "value"]);
}

#[test]
fn an_unknown_flag_is_reported_with_the_nearest_one() {
    run(&["--kernal", "bzImage"]).refuses(2, &["'--kernal'", "'--kernel'"]);
    vmm().args(["--memory", "1G"]).run().refuses(2, &["'--memory'", "--mem SIZE"]);
    vmm().args(["--frobnicate"]).run().refuses(2, &["'--frobnicate'", "--help"]);
    run(&["docter"]).refuses(2, &["'docter'", "'doctor'"]);
    run(&["bzImage"]).refuses(2, &["'bzImage'", "--help"]);
    run(&["--KERNEL", "x"]).refuses(2, &["'--kernel'"]);
    run(&["--no_reboot"]).refuses(2, &["'--no-reboot'"]);
    // An unknown word with no similar one gets no suggestion.
    let far = run(&["--frobnicate"]).exits(2);
    assert!(!far.stderr.contains("nearest") && !far.stderr.contains("-- --"), "{}", far.stderr);
}

/// A row of a table: the arguments, separated by spaces, and words of the error.
type Typed = (&'static str, &'static [&'static str]);

#[track_caller]
fn all_refused(lines: &[Typed]) {
    for (line, words) in lines {
        let args: Vec<_> = line.split_whitespace().collect();
        let outcome = run(&args).exits(2).says(words).leaves_nothing();
        for misleading in ["'man'", "tip:", "'-- -", "Usage"] {
            assert!(!outcome.stderr.contains(misleading), "{line}: {}", outcome.stderr);
        }
    }
}

#[test]
fn flags_of_other_programs_are_reported_with_what_to_say_here() {
    all_refused(&[
        ("-m 512", &["'-m'", "--mem SIZE"]),
        ("-smp 2 --kernel x", &["'-smp'", "--cpus N"]),
        ("--vcpus 2", &["'--vcpus'", "--cpus N"]),
        ("-drive file=x", &["'-drive'", "--disk FILE"]),
        ("--drive=x", &["'--drive=x'", "--disk FILE"]),
        ("-hda x", &["'-hda'", "--disk FILE"]),
        ("-cdrom x", &["readonly"]),
        ("-snapshot", &["overlay"]),
        ("-append quiet", &["--cmdline STRING"]),
        ("-kernel x", &["'-kernel'", "say --kernel"]),
        ("-nographic", &["--console"]),
        ("-enable-kvm", &["leave it out"]),
        ("--net none", &["--net none: say user"]),
        ("--network none", &["--net user"]),
        ("-p 80", &["-p", "'80'", "as in 8080:80"]),
        ("--netdev user", &["--net user"]),
        ("--volume a:b", &["no shared folders"]),
        ("-it", &["'-it'", "leave it out"]),
        ("--rm", &["leave it out"]),
        ("--daemonize", &["--detach"]),
        ("-n vm", &["--name NAME"]),
        ("-device x", &["'-device'", "virtio"]),
        ("-version", &["--version"]),
        ("-v", &["--version"]),
        ("--verbose", &["--log-level"]),
        ("--seccomp off", &["--no-jail"]),
        ("-x", &["'-x'", "--help"]),
        ("- x", &["'-'", "--help"]),
    ]);
}

#[test]
fn words_of_other_programs_are_reported_with_what_to_say_here() {
    all_refused(&[
        ("run", &["'run'", "--kernel FILE"]),
        ("run --kernel x", &["'run'", "--kernel FILE"]),
        ("start", &["'start'", "--kernel FILE"]),
        ("boot", &["'boot'", "--kernel FILE"]),
        ("list", &["'list'", "tinyvmm ps"]),
        ("ls -l", &["'ls'", "tinyvmm ps"]),
        ("exec vm", &["COMMAND", "tinyvmm exec --help"]),
        ("shell", &["MACHINE is missing", "tinyvmm shell MACHINE"]),
        ("cp x", &["TARGET is missing"]),
        ("stop", &["MACHINE is missing", "tinyvmm stop MACHINE"]),
        ("kill vm", &["tinyvmm stop MACHINE"]),
        ("shutdown", &["ctl MACHINE power-button"]),
        ("pause", &["ctl MACHINE pause"]),
        ("images", &["'images'", "--disk"]),
        ("log", &["tinyvmm logs MACHINE"]),
        ("version", &["--version"]),
        ("help run", &["'run'", "--kernel FILE"]),
        ("boot_test x", &["'boot-test'"]),
        ("completion bash", &["'completions'"]),
        ("\u{2014}kernel x", &["dash", "--kernel"]),
        ("no-such-bzimage", &["'no-such-bzimage'", "--kernel FILE"]),
    ]);
    Vmm::new().file("vm.toml", "").args(["vm.toml"]).run().refuses(2, &["--config vm.toml"]);
    Vmm::new().file("x", "").args(["x"]).run().refuses(2, &["--kernel x"]);
}

#[test]
fn words_that_are_out_of_place_are_reported_with_their_place() {
    all_refused(&[
        ("--kernel x extra", &["'extra'", "quote", "--"]),
        ("--kernel x --cmdline a b", &["'b'", "quote"]),
        ("--kernel x initrd y", &["'initrd'", "say --initrd"]),
        ("--kernel x doctor", &["'doctor'", "tinyvmm doctor"]),
        ("--hugepages on", &["'on'", "--hugepages", "="]),
        ("--kernel --mem 1G", &["--kernel", "FILE"]),
        ("--mem 1G --mem 2G", &["--mem is there twice"]),
        ("--config-file x --kernel y", &["--config-file and --kernel", "leave one out"]),
        ("--mem -5M", &["--mem -5M", "negative", "512M"]),
        ("--cpus -1", &["--cpus -1", "not a number of CPUs"]),
        ("--timeout -5s", &["--timeout -5s", "30s"]),
        ("--console -5", &["--console=-5"]),
        ("doctor all", &["'all'", "leave it out"]),
        ("doctor --kernel", &["doctor", "'--kernel'"]),
        ("doctor --jso", &["'--json'"]),
        ("boot-test", &["SPEC is missing", "tinyvmm boot-test SPEC"]),
        ("cache", &["list or clear"]),
        ("cache ls", &["'ls'", "list or clear"]),
        ("completions csh", &["completions csh", "bash", "zsh"]),
    ]);
}

#[test]
fn what_ctl_cannot_do_is_a_usage_error_without_a_machine() {
    all_refused(&[
        ("ctl", &["say what to do", "power-button"]),
        ("ctl S", &["say what to do", "power-button"]),
        ("ctl S foo", &["'foo'", "status", "memory or balloon"]),
        ("ctl S shutdown", &["'shutdown'", "say power-button"]),
        ("ctl S stat", &["say status"]),
        ("ctl status", &["MACHINE is missing", "tinyvmm ctl MACHINE status"]),
        ("ctl S status x", &["'x'", "leave it out"]),
        ("ctl S balloon", &["SIZE is missing"]),
        ("ctl S balloon x", &["balloon x", "512M"]),
        ("ctl S balloon 5K", &["balloon 5K", "whole number of M"]),
        ("ctl S memory 300", &["memory 300", "whole number of M"]),
        ("ctl S memory -1M", &["-1"]),
        ("ctl S pause --watch", &["--watch"]),
        ("ctl S memory 512M --watch", &["--watch"]),
        ("ctl S --jsn status", &["'--json'"]),
    ]);
}

#[test]
fn a_message_is_a_line_whatever_is_typed() {
    for word in ["a\nb", "--a\nb", "--mem=1\nG", "\u{1b}[2J", "--cpus=1\u{202e}\r"] {
        let outcome = run(&[word]).exits(2).says(&[]);
        let message = outcome.stderr.trim_end_matches('\n');
        assert!(!message.contains(char::is_control), "{message:?}");
    }
}

#[test]
fn memory_that_cannot_be() {
    let mem = |size: &str| vmm().args([format!("--mem={size}")]).run();
    mem("5").refuses(2, &["--mem 5", "16M"]);
    mem("0").refuses(2, &["--mem 0", "16M"]);
    mem("15M").refuses(2, &["--mem 15M", "16M"]);
    mem("100000001").refuses(2, &["--mem 100000001", "multiple of 4K"]);
    mem("1P").refuses(3, &["--mem 1P", "at most"]);
    mem("16383P").refuses(3, &["--mem 16383P", "at most"]);
    for size in ["", "x", "1X", "-1", "-1M", "1e9", "99999999999999999999", "16384P"] {
        mem(size).refuses(2, &["--mem"]);
    }
    vmm().args(["--mem", "33M", "--hugepages"]).run().refuses(2, &["multiple of 2M"]);
    vmm().args(["--mem", "60G", "--hugepages"]).run().refuses(3, &["30720", "nr_hugepages"]);
}

#[test]
fn cpus_that_cannot_be() {
    let cpus = |text| vmm().args(["--cpus", text]).run();
    cpus("0").refuses(2, &["--cpus"]);
    cpus("10000").refuses(3, &["--cpus 10000", "at most"]);
    cpus("4294967296").refuses(2, &["--cpus"]);
    cpus("4,cores=3").refuses(2, &["--cpus", "not 4 CPUs"]);
    cpus("4,sockets=4294967295,cores=4294967295").refuses(2, &["--cpus"]);
    cpus("4,legs=2").refuses(2, &["legs", "sockets, cores, threads"]);
    cpus("two").refuses(2, &["--cpus", "two"]);
}

#[test]
fn disks_that_cannot_be() {
    let disk = |text| vmm().sparse_file("disk", 1 << 20).args(["--disk", text]).run();
    disk("").refuses(2, &["--disk"]);
    disk("disk,ro").refuses(2, &["--disk disk,ro", "'ro'", "say readonly"]);
    let twice = |other| vmm().sparse_file("disk", 1 << 20).args(["--disk=disk", "--disk", other]);
    twice("disk").run().refuses(2, &["--disk disk", "twice", "readonly"]);
    twice("disk,readonly").run().refuses(2, &["--disk disk", "twice", "readonly"]);
    disk("disk,id=123456789012345678901").refuses(2, &["id", "20 bytes"]);
    let same = vmm().args(["--disk=a,id=x", "--disk=b,id=x"]);
    same.run().refuses(2, &["--disk b,id=x: a has the id x, too"]);
    let many = ["--disk=disk,readonly"; 14];
    let many = vmm().sparse_file("disk", 1 << 20).args(many);
    many.run().refuses(2, &["14 disks", "at most 12"]);
    let many = vmm().args(["--balloon=off"]).args(["--disk=disk,readonly"; 14]);
    many.run().refuses(2, &["14 disks", "at most 13"]);
}

#[test]
fn as_many_disks_as_can_be_had_are_had() {
    for (count, balloon) in [(12, "0"), (13, "off")] {
        let many =
            Vmm::new().args(["--balloon", balloon]).args(vec!["--disk=disk,readonly"; count]);
        many.guest(guests::hello).sparse_file("disk", 1 << 20).run().exits(0);
    }
}

#[test]
fn balloons_that_cannot_be() {
    let balloon = |text| vmm().args(["--mem", "64M", "--balloon", text]);
    balloon("on").run().refuses(2, &["--balloon", "or off"]);
    balloon("64M").run().refuses(2, &["--balloon 64M", "--mem 64M"]);
    balloon("1M").args(["--hugepages"]).run().refuses(2, &["--balloon 1M", "--hugepages"]);
}

#[test]
fn a_command_line_that_cannot_be() {
    let cmdline = |text: &str| vmm().args(["--cmdline", text]).run();
    cmdline(&"x".repeat(2100)).refuses(3, &["bytes", "at most 2047", "shorten --cmdline"]);
    vmm().args(["--cmdline-only"]).run().refuses(2, &["--cmdline-only", "add --cmdline"]);
}

#[test]
fn other_values_that_cannot_be() {
    vmm().args(["--timeout", "soon"]).run().refuses(2, &["--timeout", "soon"]);
    vmm().args(["--uuid", "me"]).run().refuses(2, &["--uuid", "me"]);
    vmm().args(["--log-level", "loud"]).run().refuses(2, &["--log-level", "loud"]);
    Vmm::new().guest(guests::hello).args(["--console", ""]).run().refuses(2, &["stdio"]);
    vmm().args(["--mem", "64M", "--mem", "32M"]).run().refuses(2, &["--mem", "twice"]);
}

#[test]
fn bytes_that_are_not_text_are_refused_where_text_is_needed_and_kept_in_paths() {
    let bytes = OsString::from_vec(b"caf\xe9".to_vec());
    let cmdline = ["--cmdline".into(), bytes.clone()];
    vmm().args(cmdline).run().refuses(2, &["UTF-8"]);
    let vmm = Vmm::new();
    fs::write(vmm.dir().path(&bytes), guests::elf(&guests::hello())).unwrap();
    vmm.args(["--kernel".into(), bytes]).run().exits(0).silently();
}

#[test]
fn help_names_every_flag_and_every_exit_code() {
    let help = printed(&["--help"]);
    for flag in ["cpus", "mem", "hugepages", "kernel", "initrd", "cmdline", "cmdline-only", "disk"]
    {
        assert!(help.contains(&format!("--{flag}")), "--{flag} is not in {help}");
    }
    for flag in ["console", "uuid", "timeout", "no-reboot", "config", "print-config", "log-level"] {
        assert!(help.contains(&format!("--{flag}")), "--{flag} is not in {help}");
    }
    for code in 0..=9 {
        assert!(help.contains(&format!("\n    {code}  ")), "exit code {code} is not in {help}");
    }
    let short = printed(&["-h"]);
    assert!(short.contains("--kernel") && short.len() < help.len(), "{short}");
    assert!(printed(&["doctor", "--help"]).contains("--json"));
    assert!(printed(&["help", "doctor"]).contains("--json"));
}

#[test]
fn the_version_is_one_line() {
    assert_eq!(printed(&["--version"]), concat!("tinyvmm ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(printed(&["-V"]), printed(&["--version"]));
}

#[test]
fn the_manual_names_every_flag() {
    let page = printed(&["man"]);
    for line in printed(&["--help"]).lines() {
        if let Some(flag) = line.trim_start().strip_prefix("--") {
            let flag = flag.split([' ', '[']).next().unwrap().replace('-', "\\-");
            assert!(page.contains(&format!("\\fB\\-\\-{flag}\\fR")), "--{flag} is not in {page}");
        }
    }
    assert!(printed(&["man", "ctl"]).contains("power\\-button"));
    run(&["man", "nothing"]).refuses(2, &["man nothing", "ctl"]);
}

#[test]
fn three_shells_get_completions() {
    for shell in ["bash", "fish", "zsh"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains(" complete -- "), "{shell}: {script}");
    }
    run(&["completions", "csh"]).refuses(2, &["csh", "bash, fish or zsh"]);
    run(&["completions"]).refuses(2, &["SHELL", "tinyvmm completions SHELL"]);
    // No words are no harm.
    assert_eq!(printed(&["complete"]), "");
    assert_eq!(printed(&["complete", "--", "doct"]).split('\t').next(), Some("doctor"));
}

#[test]
fn a_reader_that_has_gone_away_is_no_error() {
    let print = ["--kernel", "vmlinux", "--print-config"].as_slice();
    let bash = ["completions", "bash"].as_slice();
    for args in [["--help"].as_slice(), &["--version"], &["man"], bash, print] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Vmm::new().args(args).stdout(writer).run().exits(0).silently();
    }
}

#[test]
fn errors_without_a_reader_are_still_exit_codes() {
    for (args, code) in [(["--mem", "0"], 2), (["--kernel", "missing"], 3)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Vmm::new().args(args).stderr(writer).run().exits(code);
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Vmm::new().guest(guests::pvpanic).stderr(writer).run().exits(6);
}
