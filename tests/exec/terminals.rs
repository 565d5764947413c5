//! Commands with a terminal.

use super::*;
use crate::fixture::Running;
use crate::terminal::Terminal;

/// Runs `tinyvmm` with `args` on a terminal of 50 lines and 132 columns, and checks that this is as it was afterwards.
#[track_caller]
fn on_a_terminal(machine: &Machine, args: &[&str], code: i32, act: impl Fn(&Terminal, &Running)) {
    let terminal = Terminal::new();
    terminal.resize(50, 132);
    let before = terminal.settings();
    let vmm = Vmm::started_by(&["setsid", "--ctty"]).env("XDG_RUNTIME_DIR", &machine.runtime.0);
    let running = terminal.start(vmm.env("TERM", "xterm-256color").args(args));
    act(&terminal, &running);
    running.wait().exits(code);
    assert_eq!(terminal.settings(), before, "settings after the end");
}

#[test]
fn it_has_the_size_and_the_kind_of_the_users() {
    let machine = Machine::new();
    let script = "stty size; echo $TERM; trap 'stty size' WINCH; trap 'exit 130' INT; echo ready; while :; do sleep 0.01; done";
    on_a_terminal(&machine, &["exec", "-it", "vm", "bash", "-c", script], 130, |terminal, _| {
        terminal.shows("50 132\r\nxterm-256color\r\nready\r\n");
        assert!(terminal.is_raw());
        terminal.resize(20, 70);
        terminal.shows("20 70\r\n").types("\x03");
    });
    // With -t alone, output goes to a terminal, and the keys stay here.
    on_a_terminal(
        &machine,
        &["exec", "-t", "vm", "sh", "-c", "test -t 1; echo $?; read x"],
        130,
        |terminal, running| {
            terminal.shows("0\r");
            assert!(!terminal.is_raw());
            running.signal(libc::SIGINT);
        },
    );
}

#[test]
fn keys_are_the_commands() {
    let machine = Machine::new();
    let script = "echo ready; read line; echo got $line; cat >/dev/null; echo end; exec sleep 1000";
    on_a_terminal(&machine, &["exec", "-it", "vm", "sh", "-c", script], 130, |terminal, _| {
        terminal.shows("ready\r\n").types("some keys\n").shows("some keys\r\ngot some keys\r\n");
        terminal.types("\x04").shows("end\r\n").types("\x03");
    });
}

#[test]
fn a_shell_has_job_control_and_its_users_home() {
    let machine = Machine::new();
    on_a_terminal(&machine, &["shell", "vm"], 7, |terminal, _| {
        // What says that it runs is the job itself: a key that comes before the shell's child has the terminal stops
        // nothing.
        terminal.types("sh -c 'echo $((1230 + 4)) in $PWD; exec sleep 1000'\n");
        let home = std::env::var("HOME").unwrap();
        terminal.shows(&format!("1234 in {home}\r\n"));
        terminal
            .types("\x1a")
            .shows("Stopped")
            .types("kill -9 %1; wait; echo $((2340 + 5))\n")
            .shows("2345\r\n");
        terminal.types("exit 7\n");
    });
    // Where input is no terminal, so is the shell's.
    let vmm = machine.vmm().args(["shell", "vm"]).file("in", "echo $((11 * 11)); exit 3\n");
    let file = File::open(vmm.dir().path("in")).unwrap();
    let outcome = vmm.stdin(file).run().exits(3).silently();
    assert_eq!(outcome.stdout, b"121\n");
}

#[test]
fn a_terminal_that_goes_away_ends_the_command() {
    let machine = Machine::new();
    let terminal = Terminal::new();
    let vmm = Vmm::started_by(&["setsid", "--ctty"]).env("XDG_RUNTIME_DIR", &machine.runtime.0);
    let running =
        terminal.start(vmm.args(["exec", "-it", "vm", "sh", "-c", "echo ready; sleep 1000"]));
    terminal.shows("ready");
    drop(terminal);
    assert_ne!(running.wait().code(), 0);
    assert_eq!(machine.agents_end(), 1);
}
