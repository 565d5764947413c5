//! Configuration files: keys are flags, flags win, errors name the file and the place.

use serde_json::Value;

use crate::fixture::{Outcome, Vmm};
use crate::guests;

fn with_config(text: &str) -> Vmm {
    Vmm::new().file("vm.toml", text).args(["--config", "vm.toml"])
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let words = [&["vm.toml:"], words].concat();
    let vmm = with_config(text).guest(guests::hello);
    vmm.args(["--console", "console.txt"]).run().refuses(2, &words);
}

/// The output of `--print-config`.
#[track_caller]
fn printed(vmm: Vmm) -> String {
    let outcome = vmm.args(["--print-config"]).run().exits(0).silently().leaves_nothing();
    String::from_utf8(outcome.stdout).unwrap()
}

#[track_caller]
fn assert_has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|other| other == *line), "no line {line:?} in:\n{text}");
    }
}

#[test]
fn a_machine_can_be_run_from_a_file_alone() {
    let text = "kernel = 'vmlinux'\nmem = '32M'\ncpus = 2\nno-reboot = true\nconsole = 'log'\n";
    let vmm = with_config(text).file("vmlinux", guests::elf(&guests::acpi_reset()));
    // The log is new: the folder is not as it was.
    assert_eq!(vmm.run().exits(4).says(&["rebooted"]).file("log"), "boot 1\n");
}

#[test]
fn what_is_printed_is_read_back_as_the_same_machine() {
    let flags = [
        "--cpus=8,sockets=2,cores=2,threads=2",
        "--mem=4.5G",
        "--hugepages",
        "--balloon=off",
        "--kernel=a folder/vm=linux",
        "--initrd=it's \"quoted\"",
        "--cmdline=quiet \"x y\" back\\slash\nand 'more'",
        "--cmdline-only",
        "--disk=root.img,readonly,direct,id=root",
        "--disk=data.img",
        "--disk=base.img,overlay",
        "--disk=base.img,overlay=own.layer,id=own",
        "--console=log,txt",
        "--uuid=01234567-89ab-cdef-0123-456789abcdef",
        "--timeout=1h 30m",
        "--no-reboot",
        "--jail=user=1000,group=2000,chroot=/a folder,netns=n",
    ];
    let first = printed(Vmm::new().args(flags));
    assert_eq!(printed(with_config(&first)), first);
    assert_has(&first, &["cpus = \"8,sockets=2,cores=2,threads=2\"", "mem = \"4608M\""]);
    assert_has(&first, &["hugepages = true", "cmdline-only = true", "timeout = \"1h 30m\""]);
    let keys = first.lines().filter(|line| line.contains(" = ")).count();
    assert!(keys >= flags.len() - 1, "every flag is a key:\n{first}");
    let grows = printed(Vmm::new().args(["--mem=512M,max=8G"]));
    assert_has(&grows, &["mem = \"512M,max=8G\""]);
    assert_eq!(printed(with_config(&grows)), grows);
    let defaults = printed(Vmm::new());
    assert_eq!(printed(with_config(&defaults)), defaults);
    assert_has(
        &defaults,
        &["balloon = \"0\"", "cpus = \"1\"", "mem = \"256M\"", "console = \"stdio\""],
    );
}

fn json(vmm: Vmm) -> (Outcome, Value) {
    let outcome = vmm.args(["--print-config=json"]).run().leaves_nothing();
    let json = serde_json::from_slice(&outcome.stdout).unwrap();
    (outcome, json)
}

#[test]
fn json_has_every_key_and_what_the_machine_takes() {
    let text = "kernel = 'k'\ncpus = '4,cores=2,threads=2'\nmem = '512M,max=1G'";
    let disks = ["--disk=a,readonly", "--disk=b", "--disk=c,overlay", "--disk=d,overlay=e"];
    let (outcome, printed) = json(with_config(text).args(disks));
    outcome.exits(0).silently();
    let config = &printed["config"];
    assert_eq!(
        [&config["mem"], &config["kernel"], &config["log-level"]],
        ["512M,max=1G", "k", "warn"]
    );
    assert!(config["initrd"].is_null() && config.as_object().unwrap().contains_key("initrd"));
    assert_eq!([&printed["cpus"], &printed["memory"]], [4, 512 << 20]);
    let files = [("a", true), ("b", false), ("c", true), ("d", true), ("e", false)];
    let files = files.map(|(path, shared)| serde_json::json!({ "path": path, "shared": shared }));
    assert_eq!(printed["disks"], serde_json::json!(files));
    let command = ["--print-config=json", "--kernel=k", "--initrd=i", "--", "sh", "-c", "exit 7"];
    let outcome = Vmm::new().args(command).run().exits(0).silently();
    let printed: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(printed["command"], serde_json::json!(["sh", "-c", "exit 7"]));
}

#[test]
fn json_of_what_cannot_be_run_comes_with_the_reason() {
    let (outcome, printed) = json(Vmm::new());
    outcome.exits(2).says(&["no kernel"]);
    assert_eq!(printed["disks"], serde_json::json!([]));
    json(Vmm::new().args(["--kernel=k", "--mem=5"])).0.exits(2).says(&["--mem 5: too little"]);
    Vmm::new().args(["--print-config=xml"]).run().refuses(2, &["xml: say toml or json"]);
}

#[test]
fn flags_win_over_the_file() {
    let text = "mem = '1G'\ncpus = 4\nkernel = 'theirs'\ndisk = ['theirs.img']\nno-reboot = false";
    let vmm = || with_config(text);
    assert_has(&printed(vmm()), &["mem = \"1G\"", "cpus = \"4\"", "kernel = \"theirs\""]);
    let flags = ["--mem=64M", "--kernel=mine", "--disk=mine.img", "--no-reboot"];
    let merged = printed(vmm().args(flags));
    assert_has(&merged, &["mem = \"64M\"", "cpus = \"4\"", "kernel = \"mine\""]);
    assert_has(&merged, &["disk = [\"mine.img\"]", "no-reboot = true"]);
}

#[test]
fn a_disk_list_keeps_its_order() {
    let text = "disk = ['b.img', 'a.img,readonly', 'c.img,id=c']";
    let line = "disk = [\"b.img\", \"a.img,readonly\", \"c.img,id=c\"]";
    let shown = printed(with_config(text)).replace("[\n    ", "[").replace(",\n    ", ", ");
    assert_has(&shown.replace(",\n]", "]"), &[line]);
    assert_has(&printed(with_config("disk = 'one.img'")), &["disk = [\"one.img\"]"]);
}

#[test]
fn a_disk_can_be_a_table_and_its_file_have_a_comma() {
    let table = "[[disk]]\npath = 'a,b.img'\nreadonly = true\ndirect = false\nsector = 4096\n\
        [[disk]]\npath = 'c'\noverlay = 'd,e'\nid = 'x,y'\n";
    let first = printed(with_config(table));
    let lines = ["\"a,,b.img,readonly,sector=4096\"", "\"c,overlay=d,,e,id=x,,y\""];
    assert!(lines.iter().all(|line| first.contains(line)), "{first}");
    assert_eq!(printed(with_config(&first)), first);
    let flags = ["--disk=a,,b.img,readonly,sector=4096", "--disk=c,overlay=d,,e,id=x,,y"];
    assert_eq!(printed(Vmm::new().args(flags)), first);
    let mixed = "disk = [{ path = 'a,b', overlay = true }, 'c,,d']";
    let vmm = with_config(mixed).sparse_file("a,b", 1 << 20).sparse_file("c,d", 1 << 20);
    vmm.guest(guests::hello).run().exits(0).prints("hello").silently();
    assert_has(&printed(with_config("[disk]\npath = 'a'\nid = 5")), &["disk = [\"a,id=5\"]"]);
    refused("cpus = 2\n[[disk]]\nreadonly = true", &["vm.toml:2: disk: say its file", "path ="]);
    refused("[[disk]]\npath = 'a'\n[[disk]]\npath = 'b'\nro = true", &["vm.toml:3: ", "'ro'"]);
    refused("[[disk]]\npath = 'a'\nid = 1.5", &["disk: id", "float"]);
    refused("[[disk]]\npath = 'a,b'\n[[disk]]\npath = 'a,b'", &["vm.toml:1: ", "a,,b: ", "twice"]);
}

#[test]
fn an_unknown_key_is_reported_with_the_nearest_one() {
    refused("memory = '1G'", &["'memory'", "'mem'"]);
    refused("kernal = 'x'", &["'kernal'", "'kernel'"]);
    refused("no_reboot = true", &["'no_reboot'", "'no-reboot'"]);
    refused("[machine]\nmem = '1G'", &["vm.toml:1: ", "'machine'", "tinyvmm --help"]);
    refused("mem = '1G'\n\nfrobnicate = 1", &["vm.toml:3: ", "'frobnicate'"]);
    refused("help = true", &["'help'"]);
    refused("config = 'other.toml'", &["'config'"]);
}

#[test]
fn wrong_types_and_values_name_the_key() {
    refused("mem = true", &["--mem true", "512M"]);
    refused("mem = 1.5", &["mem", "float", "say a string"]);
    refused("mem = ['1G']", &["mem", "array", "say a string"]);
    refused("cpus = -1", &["--cpus", "-1"]);
    refused("hugepages = 1", &["hugepages", "true or false"]);
    refused("disk = [1]", &["disk", "list of strings"]);
    refused("disk = ['a.img,ro']", &["'ro'", "readonly"]);
    refused("timeout = 'soon'", &["--timeout", "soon"]);
    refused("uuid = 'me'", &["--uuid", "me"]);
    refused("log-level = 'loud'", &["--log-level", "loud"]);
    refused("[mem]\nsize = 1", &["mem", "table"]);
}

#[test]
fn wrong_values_are_reported_with_their_line() {
    refused("cpus = 2\n# more\nmem = '1X'\n", &["vm.toml:3: --mem 1X: ", "'X'"]);
    refused("cpus = 2\nmem = 1.5", &["vm.toml:2: mem ", "float"]);
    refused("disk = [\n  'a.img',\n  'b.img,ro',\n]", &["vm.toml:3: --disk b.img,ro: "]);
    refused("disk = [\n  'a.img',\n  1,\n]", &["vm.toml:3: disk", "list of strings"]);
    refused("mem = '1G'\nno-reboot = 'yes'", &["vm.toml:2: --no-reboot yes: ", "true or false"]);
    // Each value is valid by itself, their combination is not.
    refused("cpus = 2\nmem = '5'", &["vm.toml:2: --mem 5: ", "16M"]);
    refused("cpus = 2\n\nballoon = '1G'", &["vm.toml:3: --balloon 1G: "]);
    refused("disk = [\n'a',\n'b',\n'b']", &["vm.toml:3: --disk b: ", "twice"]);
    refused("disk = [\n'a,id=x',\n'b,id=x']", &["vm.toml:3: --disk b,id=x: a has the id x"]);
    let host = with_config("mem = '64M'\ncpus = 10000").guest(guests::hello);
    host.args(["--console", "c"]).run().refuses(3, &["vm.toml:2: --cpus 10000", "at most"]);
    // Flags of the command line are not the file's.
    let vmm = with_config("cpus = 2\nmem = '64M'").guest(guests::hello).args(["--mem", "5"]);
    let outcome = vmm.run().exits(2).says(&["--mem 5"]);
    assert!(!outcome.stderr.contains("vm.toml"), "{}", outcome.stderr);
}

#[test]
fn what_is_not_toml_is_reported_with_its_line() {
    refused("mem = '1G'\ncpus = 2\nkernel = \n", &["vm.toml:3: "]);
    refused("mem 1G", &["vm.toml:1: "]);
    refused("# ok\n\nmem = '1G'\nmem = '2G'", &["vm.toml:4: ", "duplicate"]);
    refused("mem = \"unclosed", &["vm.toml:1: "]);
}

#[test]
fn a_file_that_cannot_be_read() {
    let run = |path| Vmm::new().args(["--config", path]).run();
    run("missing.toml").refuses(2, &["configuration file missing.toml", "No such file"]);
    run(".").refuses(2, &["configuration file .", "cannot read it", "directory"]);
    let binary = Vmm::new().file("binary", b"\x7fELF\xff\xfe").args(["--config", "binary"]);
    binary.run().refuses(2, &["configuration file binary", "UTF-8"]);
    run("/dev/zero").refuses(2, &["configuration file /dev/zero", "larger than 1024 KiB"]);
}

#[test]
fn a_file_that_does_not_make_a_machine() {
    with_config("mem = '64M'").run().refuses(2, &["no kernel", "--kernel FILE"]);
    with_config("").run().refuses(2, &["no kernel"]);
    with_config("mem = '5'").guest(guests::hello).run().refuses(2, &["--mem 5", "16M"]);
}

#[test]
fn an_error_of_the_command_line_is_not_blamed_on_the_file() {
    let vmm = with_config("mem = '64M'").args(["--kernal", "x"]);
    let outcome = vmm.run().exits(2).says(&["'--kernal'", "'--kernel'"]);
    assert!(!outcome.stderr.contains("vm.toml"), "{}", outcome.stderr);
}
