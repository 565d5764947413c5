//! A real terminal: raw while the machine runs, restored afterwards, and tinyvmm's keys.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::fixture::{Outcome, Running, Vmm};
use crate::guests::{self, guest};

const CTRL_A: &str = "\x01";

/// A terminal, from its user's side.
pub struct Terminal {
    /// The user's side: what is typed and shown.
    keyboard: File,
    /// The program's side, kept open so that its settings can be looked at.
    line: OwnedFd,
    screen: Arc<Mutex<String>>,
    /// Reads what is shown until the terminal is dropped.
    reader: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Terminal {
    pub fn new() -> Self {
        let (mut user, mut line) = (-1, -1);
        // SAFETY: writes two descriptors; the other arguments may be null (openpty(3)).
        let made =
            unsafe { libc::openpty(&mut user, &mut line, null_mut(), null_mut(), null_mut()) };
        assert_eq!(made, 0, "openpty: {}", std::io::Error::last_os_error());
        // SAFETY: openpty has just made it, and nothing else owns it.
        let user = unsafe { OwnedFd::from_raw_fd(user) };
        // SAFETY: as above.
        let line = unsafe { OwnedFd::from_raw_fd(line) };
        for fd in [&user, &line] {
            // Otherwise a tinyvmm of another test would inherit it and keep it open.
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).unwrap();
        }
        let keyboard = File::from(user);
        let screen = Arc::new(Mutex::new(String::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shown, text, stopped) = (keyboard.try_clone().unwrap(), screen.clone(), stop.clone());
        let reader = Some(thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                text.lock().unwrap().push_str(&read_some(&shown));
            }
        }));
        Self { keyboard, line, screen, reader, stop }
    }

    /// Sets the size; two zeroes stand for an unknown size.
    pub fn resize(&self, ws_row: u16, ws_col: u16) {
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).unwrap();
    }

    /// Starts `vmm` on this terminal, as its session's leader by `setsid --ctty`.
    pub fn start(&self, vmm: Vmm) -> Running {
        let line = || self.line.try_clone().unwrap();
        vmm.stdin(line()).stdout(line()).stderr(line()).start()
    }

    #[track_caller]
    pub fn shows(&self, text: &str) -> &Self {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !self.screen.lock().unwrap().contains(text) {
            let screen = self.screen.lock().unwrap().clone();
            assert!(Instant::now() < deadline, "{text:?} is not shown: {screen:?}");
            thread::sleep(Duration::from_millis(5));
        }
        self
    }

    pub fn types(&self, text: &str) -> &Self {
        (&self.keyboard).write_all(text.as_bytes()).unwrap();
        self
    }

    pub fn settings(&self) -> String {
        format!("{:?}", tcgetattr(&self.line).unwrap())
    }

    /// The number that follows `text` on the screen.
    pub fn number_after(&self, text: &str) -> i32 {
        let screen = self.screen.lock().unwrap();
        let rest = screen.split(text).nth(1).unwrap();
        rest.split('.').next().unwrap().parse().unwrap()
    }

    #[track_caller]
    fn becomes_raw(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.is_raw() {
            assert!(Instant::now() < deadline, "it does not become raw");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.line).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

impl Drop for Terminal {
    /// Hangs up: nothing of the user's side stays open.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.take().unwrap().join().unwrap();
    }
}

/// What the terminal shows next; empty if it shows nothing for a moment.
fn read_some(mut shown: &File) -> String {
    let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let mut fds = [PollFd::new(&shown, PollFlags::IN)];
    let mut bytes = [0; 1024];
    match poll(&mut fds, Some(&moment)) {
        Ok(1..) => {
            let len = shown.read(&mut bytes).unwrap_or(0);
            String::from_utf8_lossy(&bytes[..len]).into()
        }
        _ => String::new(),
    }
}

fn vmm() -> Vmm {
    Vmm::started_by(&["setsid", "--ctty"])
}

/// Runs `vmm` on a terminal, calls `act` and checks that the terminal is as it was.
#[track_caller]
fn leaves_the_terminal_as_it_was(
    vmm: Vmm,
    code: i32,
    act: impl Fn(&Terminal, &Running),
) -> Outcome {
    let terminal = Terminal::new();
    let before = terminal.settings();
    let running = terminal.start(vmm);
    act(&terminal, &running);
    let outcome = running.wait().exits(code);
    assert_eq!(terminal.settings(), before, "settings after the end");
    outcome
}

#[test]
fn it_is_raw_while_the_machine_runs_and_as_it_was_after_a_power_off() {
    leaves_the_terminal_as_it_was(vmm().guest(guests::echo), 0, |terminal, _| {
        assert!(terminal.shows("ready\r\n").is_raw(), "raw while the machine runs");
        terminal.types("hello").shows("hello").types("q");
    });
}

#[test]
fn it_is_as_it_was_after_ctrl_a_x() {
    leaves_the_terminal_as_it_was(vmm().guest(guests::busy), 9, |terminal, _| {
        terminal.shows("busy").types(CTRL_A).types("x").shows("stopped from the terminal");
    });
}

#[test]
fn it_is_as_it_was_after_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let vmm = vmm().guest(guests::idle).args(["--log-level", "info"]);
        leaves_the_terminal_as_it_was(vmm, 8, |terminal, running| {
            terminal.shows("idle");
            running.signal(signal);
            terminal.shows("power button");
            running.signal(signal);
        });
    }
}

#[test]
fn it_is_as_it_was_when_the_guest_or_its_time_ends() {
    let run = |code, exit, args: &[&str], text: &str| {
        leaves_the_terminal_as_it_was(vmm().guest(code).args(args), exit, |terminal, _| {
            terminal.shows(text);
        });
    };
    run(guests::triple_fault, 5, &[], "triple fault");
    run(guests::pvpanic, 6, &[], "kernel panic");
    run(guests::lost, 1, &[], "internal error");
    run(guests::i8042_reset, 4, &["--no-reboot"], "rebooted");
    run(guests::i8042_reset, 7, &["--timeout", "500ms"], "--timeout is over");
    run(guests::busy, 7, &["--timeout", "500ms"], "--timeout is over");
}

#[test]
fn it_is_as_it_was_after_an_error_at_start() {
    let args = ["--kernel", "missing"];
    leaves_the_terminal_as_it_was(vmm().args(args), 3, |terminal, _| {
        terminal.shows("kernel missing");
    });
    let args = ["--console", "missing/log"];
    leaves_the_terminal_as_it_was(vmm().guest(guests::busy).args(args), 3, |terminal, _| {
        terminal.shows("console missing/log");
    });
}

#[test]
fn it_is_left_alone_when_the_console_is_a_file() {
    let vmm = vmm().guest(guests::busy).args(["--console", "log", "--timeout", "2s"]);
    let terminal = Terminal::new();
    let running = terminal.start(vmm).until(|vm| vm.threads().contains(&"vcpu0".into()));
    assert!(!terminal.is_raw(), "nobody types to a console that is a file");
    running.wait().exits(7);
}

#[test]
fn ctrl_a_h_shows_the_keys_and_ctrl_a_a_sends_ctrl_a() {
    leaves_the_terminal_as_it_was(vmm().guest(guests::echo), 0, |terminal, _| {
        terminal.shows("ready").types(CTRL_A).types("h");
        terminal.shows("Ctrl-A x  stop the machine\r");
        terminal.types("<").types(CTRL_A).types("a").types(">").shows("<\x01>").types("q");
    });
}

#[test]
fn ctrl_c_and_the_like_are_the_guests() {
    leaves_the_terminal_as_it_was(vmm().guest(guests::echo), 0, |terminal, _| {
        terminal.shows("ready").types("<\x03\x1a\x1c\x04\r>").shows("<\x03\x1a\x1c\x04\r>");
        terminal.types("q");
    });
}

guest!(
    /// Prints the first 8 KiB of its initrd, and powers off.
    initrd,
    "mov esi, [rsi + 0x218]",
    "dump 8192",
    "power_off",
);

#[test]
fn a_command_gets_its_size_and_kind() {
    for (size, stty, term, file) in [
        ((50, 132), "echo opost rows 50 cols 132\0", "xterm-256color", Some("xterm-256color\0")),
        ((0, 0), "echo opost\0", "$(x)", None),
    ] {
        let terminal = Terminal::new();
        terminal.resize(size.0, size.1);
        let vmm = vmm().guest(initrd).file("initrd", "1234").env("TERM", term);
        let running = terminal.start(vmm.args(["--initrd", "initrd", "--", "true"]));
        terminal.shows("tinyvmm/by-agent").shows(stty);
        let screen = terminal.screen.lock().unwrap().clone();
        assert_eq!(screen.contains("00tinyvmm/term\0"), file.is_some(), "{screen:?}");
        assert!(screen.contains(file.unwrap_or("")), "{screen:?}");
        assert!(!screen.contains("$(x)"), "{screen:?}");
        running.wait().exits(125);
    }
}

/// A shell's job control: the first job starts in the background and comes to the foreground twice.
const SHELL: &str = r#"
set -m
"$@" &
echo "job $!."
read -r line && echo "read $line." && fg >/dev/null
stty sane && echo "stopped."
read -r line && echo "read $line." && fg >/dev/null
stty sane && echo "stopped again." && bg >/dev/null
wait $!
echo "ended $?."
"#;

#[test]
fn a_shell_gives_it_and_takes_it_away_while_the_machine_runs() {
    let terminal = Terminal::new();
    let started_by = ["setsid", "--ctty", "bash", "-c", SHELL, "bash"];
    let vmm = Vmm::started_by(&started_by).guest(guests::echo).args(["--log-level", "info"]);
    let running = terminal.start(vmm);
    let job = terminal.shows("ready").shows("job ").number_after("job ");
    let signal = |signal| kill_process(Pid::from_raw(job).unwrap(), signal).unwrap();
    assert!(!terminal.is_raw(), "in the background it is the shell's");
    terminal.types("<1>\n").shows("read <1>.").becomes_raw();
    terminal.types("<2>").shows("<2>");
    signal(Signal::STOP);
    terminal.shows("stopped.").types("<3>\n").shows("read <3>.").becomes_raw();
    terminal.types("<4>").shows("<4>");
    signal(Signal::TSTP);
    terminal.shows("stopped again.");
    let before = terminal.settings();
    signal(Signal::TERM);
    terminal.shows("power button");
    thread::sleep(Duration::from_millis(600));
    signal(Signal::TERM);
    terminal.shows("ended 8.");
    assert_eq!(terminal.settings(), before, "in the background it is the shell's");
    running.wait().exits(0);
}

#[test]
fn a_window_that_changes_its_size_is_harmless() {
    leaves_the_terminal_as_it_was(vmm().guest(guests::echo), 0, |terminal, _| {
        terminal.shows("ready");
        (20..40).for_each(|lines| terminal.resize(lines, 80));
        terminal.types("still here").shows("still here").types("q");
    });
}

#[test]
fn a_terminal_that_stops_output_does_not_stop_the_machine() {
    leaves_the_terminal_as_it_was(vmm().guest(guests::flood), 9, |terminal, _| {
        terminal.shows("xxxx").types(CTRL_A).types("x");
    });
}

#[test]
fn a_terminal_that_goes_away_presses_the_power_button() {
    let terminal = Terminal::new();
    let running = terminal.start(vmm().guest(guests::obedient));
    terminal.shows("ready");
    drop(terminal);
    running.wait().exits(0);
}
