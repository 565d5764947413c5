//! Commands with pipes.

use std::process::Stdio;

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::*;

#[test]
fn a_command_has_its_output_and_errors_apart_and_its_status() {
    let machine = Machine::new();
    let outcome = machine.sh("echo out; echo err >&2; exit 7").exits(7);
    assert_eq!((&outcome.stdout[..], &outcome.stderr[..]), (&b"out\n"[..], "err\n"));
    machine.sh("kill -TERM $$").exits(143).silently();
    assert_eq!(machine.agents_end(), 2);
}

#[test]
fn words_reach_it_as_they_are_and_what_looks_like_a_flag_is_its_own() {
    let machine = Machine::new();
    let words = ["it's", "", "a b", "$HOME", "\"`\\", "new\nline", "-e", "--", "ä"];
    let outcome = machine.exec(&["vm", "printf", "%s|"]).args(words).run().exits(0).silently();
    assert_eq!(outcome.stdout, (words.join("|") + "|").as_bytes());
}

#[test]
fn it_has_an_environment_a_user_and_a_folder() {
    let machine = Machine::new();
    let show = r#"echo "$A|$B|$C|$HOME|$USER|$PATH|$(pwd)""#;
    let args = ["-e", "A=1", "--env", "B", "-e", "C", "-w", "/usr/bin", "vm", "sh", "-c", show];
    let outcome = machine.exec(&args).env("B", "two").run().exits(0).silently();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let home = std::env::var("HOME").unwrap();
    let expected = format!("1|two||{home}|root|{path}|/usr/bin\n");
    if geteuid().is_root() {
        assert_eq!(String::from_utf8(outcome.stdout).unwrap(), expected);
        let id = |user| machine.exec(&["-u", user, "vm", "sh", "-c", "id; umask"]).run().exits(0);
        id("nobody").prints("uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)\n0022\n");
        id("65534:0").prints("uid=65534(nobody) gid=0(root) groups=0(root)");
        id("4321").prints("uid=4321 gid=0(root) groups=0(root)");
        id("daemon:adm").prints("uid=1(daemon) gid=4(adm) groups=4(adm)");
    }
    machine
        .exec(&["-e", "PATH=/nowhere", "vm", "/bin/sh", "-c", "echo $PATH"])
        .run()
        .prints("/nowhere\n");
}

#[test]
fn what_cannot_run_is_one_line_and_has_dockers_exit_codes() {
    let machine = Machine::new();
    let refuse =
        |args: &[&str], code, words: &[&str]| machine.exec(args).run().refuses(code, words);
    refuse(&["vm", "no-such-command"], 127, &["no-such-command: it is not there"]);
    refuse(&["vm", "/no/such"], 127, &["/no/such: it is not there"]);
    refuse(&["vm", "/etc/passwd"], 126, &["/etc/passwd: permission denied"]);
    refuse(&["vm", ""], 127, &["it is not there"]);
    refuse(&["-w", "/no/such", "vm", "true"], 126, &["folder /no/such: it is not there"]);
    refuse(&["-u", "no-such-user", "vm", "true"], 126, &["no user or group no-such-user"]);
    refuse(
        &["-u", "root:no-such-group", "vm", "true"],
        126,
        &["no user or group root:no-such-group"],
    );
    refuse(&["other", "true"], 125, &["other: there is no such machine, tinyvmm ps lists them"]);
    refuse(&["vm"], 2, &["COMMAND"]);
    let long = "x".repeat(100_000);
    refuse(&["vm", "true", &long, &long], 125, &["longer than 128 KiB"]);
    refuse(&["-it", "vm", "true"], 125, &["-t: standard input is no terminal"]);
}

#[test]
fn input_is_bytes_to_their_end_and_only_with_i() {
    let machine = Machine::new();
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at % 253 * (at / 253) % 251) as u8).collect();
    let input = |vmm: Vmm| vmm.file("in", &bytes).stdin(Stdio::piped());
    let vmm = input(machine.exec(&["-i", "vm", "cat"]));
    let file = File::open(vmm.dir().path("in")).unwrap();
    let outcome = vmm.stdin(file).run().exits(0).silently();
    assert!(outcome.stdout == bytes, "{} bytes of {}", outcome.stdout.len(), bytes.len());
    let running = machine.exec(&["-i", "vm", "sh", "-c", "read a; echo $a; cat; echo end"]);
    let running = running.stdin(Stdio::piped()).start().types("first\n").prints("first\n");
    running.types("second").prints("second").ends_input().prints("end\n").wait().exits(0);
    // Without -i there is none.
    machine.exec(&["vm", "cat"]).stdin(Stdio::piped()).run().exits(0).silently();
    // A command that does not read its input holds nothing up.
    let vmm = input(machine.exec(&["-i", "vm", "true"]));
    let file = File::open(vmm.dir().path("in")).unwrap();
    vmm.stdin(file).run().exits(0).silently();
}

#[test]
fn a_hundred_mebibytes_come_and_go_whole() {
    let machine = Machine::new();
    let zeroes = "head -c 104857600 /dev/zero | cksum";
    let expected = Command::new("sh").args(["-c", zeroes]).output().unwrap().stdout;
    let vmm = machine.exec(&["-i", "vm", "cksum"]).sparse_file("in", 100 << 20);
    let file = File::open(vmm.dir().path("in")).unwrap();
    assert_eq!(vmm.stdin(file).run().exits(0).stdout, expected);
    let outcome = machine.exec(&["vm", "head", "-c", "104857600", "/dev/zero"]).run().exits(0);
    assert!(outcome.stdout.len() == 100 << 20 && outcome.stdout.iter().all(|byte| *byte == 0));
}

#[test]
fn signals_are_the_commands() {
    let machine = Machine::new();
    for (signal, name) in [(libc::SIGTERM, "TERM"), (libc::SIGINT, "INT"), (libc::SIGUSR1, "USR1")]
    {
        let script = format!(
            "trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.01; done"
        );
        let running = machine.exec(&["vm", "sh", "-c", &script]).start().prints("ready");
        running.signal(signal);
        running.prints(&format!("got {name}")).wait().exits(3);
    }
    // Its children get them, too.
    let running =
        machine.exec(&["vm", "sh", "-c", "echo ready; sleep 1000; true"]).start().prints("ready");
    running.signal(libc::SIGTERM);
    running.wait().exits(143);
    // Input that it does not read is no obstacle.
    let vmm = machine.exec(&["-i", "vm", "sh", "-c", "echo ready; exec sleep 1000"]);
    let running = vmm.stdin(File::open("/dev/zero").unwrap()).start().prints("ready");
    running.signal(libc::SIGINT);
    running.wait().exits(130);
}

#[test]
fn one_that_listens_to_no_signal_is_left_alone_at_the_third() {
    let machine = Machine::new();
    let script =
        "trap 'echo again' INT TERM; trap 'exit 0' HUP; echo ready; while :; do sleep 0.01; done";
    let running = machine.exec(&["vm", "sh", "-c", script]).start().prints("ready");
    running.signal(libc::SIGINT);
    let running = running.prints("again\n");
    running.signal(libc::SIGTERM);
    let running = running.prints("again\nagain\n");
    running.signal(libc::SIGINT);
    running.wait().exits(130);
    assert_eq!(machine.agents_end(), 1, "the command has got SIGHUP, and has ended");
}

#[test]
fn a_client_that_is_killed_leaves_no_command_behind() {
    let machine = Machine::new();
    let running =
        machine.exec(&["vm", "sh", "-c", "echo $$; exec sleep 1000"]).start().prints("\n");
    running.signal(libc::SIGKILL);
    drop(running);
    assert_eq!(machine.agents_end(), 1);
    // Nor does one whose output nobody reads.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    machine.exec(&["vm", "yes"]).stdout(writer).run().exits(141).silently();
    assert_eq!(machine.agents_end(), 2);
}

#[test]
fn what_it_leaves_in_the_background_does_not_hold_it_up() {
    let machine = Machine::new();
    let outcome = machine.sh("sleep 1000 & echo $!; exit 5").exits(5).silently();
    let pid = String::from_utf8(outcome.stdout).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).expect("it goes on");
    machine.sh("yes & exit 6").exits(6);
    // All that it has printed is there, though it has ended long before that is read.
    let outcome = machine.sh("head -c 1000000 /dev/zero; exit 7").exits(7);
    assert_eq!(outcome.stdout.len(), 1_000_000);
}

#[test]
fn a_hundred_at_once_do_not_disturb_each_other() {
    let machine = Machine::new();
    let start = |n: usize| {
        let vmm = machine
            .exec(&["-i", "vm", "sh", "-c", "read x; echo $x $1", "sh"])
            .args([n.to_string()]);
        vmm.stdin(Stdio::piped()).start()
    };
    let all: Vec<_> = (0..100).map(start).collect();
    for (n, running) in all.into_iter().enumerate().rev() {
        let outcome = running.types(&format!("line {n}\n")).wait().exits(0).silently();
        assert_eq!(outcome.stdout, format!("line {n} {n}\n").as_bytes());
    }
    assert_eq!(machine.agents_end(), 100);
}

#[test]
fn a_machine_may_have_its_vsock_elsewhere() {
    let machine = Machine::new();
    let (folder, place) = (machine.runtime.path("tinyvmm/vm"), machine.runtime.path("elsewhere"));
    fs::rename(folder.join("vsock"), &place).unwrap();
    machine.exec(&["vm", "true"]).run().refuses(125, &["vm: the machine has no vsock device"]);
    let description = serde_json::json!({ "vsock": place }).to_string();
    fs::write(folder.join("machine.json"), description).unwrap();
    machine.exec(&["vm", "true"]).run().exits(0).silently();
}
