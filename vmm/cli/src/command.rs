//! What is added to an initrd: for `tinyvmm ... -- COMMAND` an init that runs the command and reports its exit status
//! through [`tinyvmm::devices::guest_report`], so that this is tinyvmm's; for a machine with a name the agent.
//!
//! A small cpio archive is put before the initrd; Linux unpacks one after the other.
//!
//! Not behind it: a compressed initrd need not say where it ends. Linux takes what follows LZ4's legacy frame for more of
//! the frame, but for zeroes since 5.14 (lib/decompress_unlz4.c), and does not look at what follows an error.

use std::fmt::Write;
use std::io::{IsTerminal, stdin, stdout};

use rustix::termios::{Winsize, tcgetwinsize};
use tinyvmm::config::MachineConfig;

/// Exit code when the machine ended without a status of the command.
pub const EXIT_NO_STATUS: u8 = 125;
/// Added to the kernel command line, so that nothing is printed but the command's output and emergencies.
const CMDLINE: &str = "quiet loglevel=1 rdinit=/tinyvmm/init";
/// Added for the agent, which stays in the background and becomes /init.
const CMDLINE_AGENT: &str = "rdinit=/tinyvmm/agent";
/// Added for the agent, which makes a folder of the host the root, and becomes /tinyvmm/init there, or another init.
const CMDLINE_ROOT: &str = "quiet loglevel=1 rdinit=/tinyvmm/agent";
/// The agent, a program that needs nothing beside it.
#[cfg(feature = "agent")]
const AGENT: &[u8] = include_bytes!(env!("TINYVMM_AGENT"));
#[cfg(not(feature = "agent"))]
const AGENT: &[u8] = b"";
/// Whether there is an agent for guests.
pub const HAS_AGENT: bool = cfg!(feature = "agent");

const INIT: &str = include_str!("../../../guest-images/command-init");

core::arch::global_asm!(include_str!("../../../guest-images/tell.s"), options(raw));

/// The program with which that init reports, an ELF file.
fn report_program() -> &'static [u8] {
    unsafe extern "C" {
        static tinyvmm_tell: u8;
        static tinyvmm_tell_end: u8;
    }
    let (start, end) = (&raw const tinyvmm_tell, &raw const tinyvmm_tell_end);
    // SAFETY: the two are the ends of the program in our read-only data.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Bytes of a page, from whose start the initrd is copied faster.
const PAGE: usize = 4096;

/// What the command line of the kernel has first: with a command, or for the agent of a machine with a name. A user's own
/// `rdinit=` is left alone.
pub fn cmdline(
    machine: &MachineConfig,
    has_command: bool,
    has_name: bool,
    has_root: bool,
) -> Option<&'static str> {
    let given = machine.cmdline.as_deref().unwrap_or("");
    let has_init = given.split_ascii_whitespace().any(|word| word.starts_with("rdinit="));
    let has_agent = has_name && HAS_AGENT && machine.initrd.is_some();
    match has_command {
        true if has_root => Some(CMDLINE_ROOT),
        true => Some(CMDLINE),
        false if has_root => Some(CMDLINE_AGENT),
        false => Some(CMDLINE_AGENT).filter(|_| has_agent && !has_init && !machine.cmdline_only),
    }
}

/// The archive that [`cmdline`] needs, which `machine` has, with zeroes at its end up to a whole page; empty if nothing
/// is to be added to the initrd. The agent is for those who find the machine by its name, and for the command if it is
/// `by_agent`.
pub fn archive(
    machine: &MachineConfig,
    command: &[String],
    by_agent: bool,
    has_name: bool,
) -> Vec<u8> {
    let mut archive = Vec::new();
    let starts_agent = machine.cmdline.as_ref().is_some_and(|line| line.starts_with(CMDLINE_AGENT));
    // In a template the command comes later, from the agent.
    if command.is_empty() && !starts_agent && !by_agent {
        return archive;
    }
    add_all(&mut archive, command, by_agent, has_name, &[]);
    archive
}

/// The same, for a guest whose root is a folder of the host, with `files` in /tinyvmm.
pub fn archive_of_root(
    command: &[String],
    by_agent: bool,
    has_name: bool,
    files: &[(String, Vec<u8>)],
) -> Vec<u8> {
    let mut archive = Vec::new();
    add_all(&mut archive, command, by_agent, has_name, files);
    archive
}

/// Adds an archive with `files` in /tinyvmm, and zeroes at its end.
fn add_all(
    archive: &mut Vec<u8>,
    command: &[String],
    by_agent: bool,
    has_name: bool,
    files: &[(String, Vec<u8>)],
) {
    add(archive, "tinyvmm", FOLDER, b"");
    if files.iter().any(|(name, _)| name.starts_with("modules/")) {
        add(archive, "tinyvmm/modules", FOLDER, b"");
    }
    for (name, contents) in files {
        add(archive, &format!("tinyvmm/{name}"), PROGRAM, contents);
    }
    if has_name && HAS_AGENT {
        add(archive, "tinyvmm/named", PROGRAM, b"");
    }
    if by_agent {
        add(archive, "tinyvmm/by-agent", PROGRAM, b"");
    }
    if !command.is_empty() {
        add_command(archive, command);
    } else if by_agent {
        add_init(archive, &stty(false, false, None));
    }
    if (has_name || by_agent || !files.is_empty()) && HAS_AGENT {
        add(archive, "tinyvmm/agent", PROGRAM, AGENT);
    }
    add(archive, "TRAILER!!!", 0, b"");
    archive.resize(archive.len().next_multiple_of(PAGE), 0);
}

/// Adds what makes an initramfs run a command, with the modes of its console.
fn add_init(archive: &mut Vec<u8>, stty: &str) {
    add(archive, "tinyvmm/init", PROGRAM, INIT.as_bytes());
    add(archive, "tinyvmm/tell", PROGRAM, report_program());
    add(archive, "tinyvmm/stty", PROGRAM, stty.as_bytes());
}

/// Adds what makes an initramfs run `command`.
fn add_command(archive: &mut Vec<u8>, command: &[String]) {
    let (input, output) = terminals();
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok();
    add_init(archive, &stty(input, output, size));
    add(archive, "tinyvmm/command", PROGRAM, format!("{}\n", quoted(command)).as_bytes());
    if let Some(term) = kind_of_terminal() {
        add(archive, "tinyvmm/term", PROGRAM, term.as_bytes());
    }
    if input {
        add(archive, "tinyvmm/terminal", PROGRAM, b"");
    }
}

/// Whether standard input and output are terminals.
fn terminals() -> (bool, bool) {
    (stdin().is_terminal(), stdout().is_terminal())
}

/// The user's kind of terminal (terminfo(5)), if the user is at one.
pub fn kind_of_terminal() -> Option<String> {
    let has_one = terminals() != (false, false);
    let term = std::env::var("TERM").ok().filter(|_| has_one);
    term.filter(|term| is_kind_of_terminal(term))
}

/// The arguments of stty that give the guest's end of the serial port the modes and size of the user's terminal.
fn stty(input: bool, output: bool, size: Option<Winsize>) -> String {
    // A terminal is raw, so that the guest's side has to echo and to return the carriage.
    let mut words =
        [if input { "echo" } else { "-echo" }, if output { "opost" } else { "-opost" }].join(" ");
    let Winsize { ws_row, ws_col, .. } =
        size.unwrap_or(Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 });
    // A terminal of unknown size reports 0.
    for (name, number) in
        [("rows", ws_row), ("cols", ws_col)].into_iter().filter(|(_, number)| *number > 0)
    {
        // Writing to a string cannot fail.
        let _ = write!(words, " {name} {number}");
    }
    words
}

/// Whether `term` may name an entry of terminfo(5), and is safe in a shell command and in a path.
fn is_kind_of_terminal(term: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_+.".contains(c);
    let starts = term.starts_with(|c: char| c.is_ascii_alphanumeric());
    starts && term.len() <= 64 && term.chars().all(fits)
}

/// `words`, quoted for sh.
fn quoted(words: &[String]) -> String {
    let quoted = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    quoted.collect::<Vec<_>>().join(" ")
}

/// Adds a file in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
fn add(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    pad(archive);
    let (links, size, name_size) = (1, contents.len(), name.len() + 1);
    // ino, mode, uid, gid, nlink, mtime, filesize, four device numbers, namesize, check
    let fields = [0, mode as usize, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut header = String::from("070701");
    for field in fields {
        // Writing to a string cannot fail.
        let _ = write!(header, "{field:08x}");
    }
    archive.extend(header.bytes().chain(name.bytes()).chain([0]));
    pad(archive);
    archive.extend(contents);
    pad(archive);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let words = ["printf", "%s|", "it's", "", "a b", "$HOME", "\"`\\", "new\nline"];
        let words: Vec<String> = words.map(String::from).to_vec();
        let shell =
            std::process::Command::new("sh").args(["-c", &quoted(&words)]).output().unwrap();
        assert_eq!(shell.stdout, b"it's||a b|$HOME|\"`\\|new\nline|");
    }

    #[test]
    fn the_guest_has_the_size_of_the_terminal_as_far_as_it_is_known() {
        let size = |ws_row, ws_col| Some(Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 });
        assert_eq!(stty(true, true, size(50, 132)), "echo opost rows 50 cols 132");
        assert_eq!(stty(false, true, size(0, 132)), "-echo opost cols 132");
        assert_eq!(stty(true, false, size(0, 0)), "echo -opost");
        assert_eq!(stty(false, false, None), "-echo -opost");
    }

    #[test]
    fn only_a_name_is_a_kind_of_terminal() {
        for term in ["xterm-256color", "linux", "screen.xterm-256color", "rxvt-16color+x"] {
            assert!(is_kind_of_terminal(term), "{term}");
        }
        let long = "x".repeat(65);
        for term in ["", ".", "../x", "-e", "a b", "a\nb", "$(reboot)", "x;y", "ä", &long] {
            assert!(!is_kind_of_terminal(term), "{term}");
        }
    }

    #[test]
    fn the_archive_has_its_files_and_leaves_others_aligned_behind_it() {
        let archive = archive(&MachineConfig::default(), &["a".into(), "b c".into()], false, false);
        assert_eq!(archive.len() % PAGE, 0);
        let number = |at: usize| {
            usize::from_str_radix(std::str::from_utf8(&archive[at..at + 8]).unwrap(), 16).unwrap()
        };
        let (mut at, mut files) = (0, Vec::new());
        while archive[at..].iter().any(|byte| *byte != 0) {
            assert_eq!(archive[at..at + 6], *b"070701", "a header at {at}");
            let (size, name_size) = (number(at + 54), number(at + 94));
            let contents = (at + 110 + name_size).next_multiple_of(4);
            let name = String::from_utf8_lossy(&archive[at + 110..at + 110 + name_size - 1]);
            files.push((name, &archive[contents..contents + size]));
            at = (contents + size).next_multiple_of(4);
        }
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_ref()).collect();
        assert_eq!(names[..3], ["tinyvmm", "tinyvmm/init", "tinyvmm/tell"]);
        assert_eq!(files[1].1, INIT.as_bytes());
        assert!(files[2].1.starts_with(b"\x7fELF"));
        assert_eq!((names[4], files[4].1), ("tinyvmm/command", &b"'a' 'b c'\n"[..]));
        assert_eq!(names.last(), Some(&"TRAILER!!!"));
    }

    #[test]
    fn the_agent_is_added_for_a_name_unless_the_user_names_an_init() {
        let machine = |cmdline: Option<&str>| MachineConfig {
            initrd: Some("initrd".into()),
            cmdline: cmdline.map(Into::into),
            ..MachineConfig::default()
        };
        let own = |cmdline| super::cmdline(&machine(cmdline), false, true, false);
        for line in [None, Some("quiet"), Some("noinitrd=rdinit= x")] {
            assert_eq!(own(line), cfg!(feature = "agent").then_some(CMDLINE_AGENT), "{line:?}");
        }
        assert_eq!(own(Some("quiet rdinit=/bin/sh")), None);
        assert_eq!(super::cmdline(&machine(None), false, false, false), None);
        let only = MachineConfig { cmdline_only: true, ..machine(None) };
        assert_eq!(super::cmdline(&only, false, true, false), None);
        let without = MachineConfig { initrd: None, ..machine(None) };
        assert_eq!(super::cmdline(&without, false, true, false), None);
        assert_eq!(super::cmdline(&machine(None), true, true, false), Some(CMDLINE));

        assert!(archive(&machine(None), &[], false, true).is_empty());
        let with = archive(&machine(Some("rdinit=/tinyvmm/agent quiet")), &[], false, true);
        // A name follows the last field of its header; the agent has such names, too.
        let has = |archive: &[u8], name: &str| {
            let named = format!("00000000{name}");
            archive.windows(named.len()).any(|part| part == named.as_bytes())
        };
        assert!(has(&with, "tinyvmm/agent\0") && !has(&with, "tinyvmm/init\0"));
        let command = |by_agent, has_name| {
            let archive = archive(&machine(Some(CMDLINE)), &["true".into()], by_agent, has_name);
            assert!(has(&archive, "tinyvmm/init\0"));
            ["agent", "named", "by-agent"].map(|name| has(&archive, &format!("tinyvmm/{name}\0")))
        };
        assert_eq!(command(false, true), [HAS_AGENT, HAS_AGENT, false]);
        assert_eq!(command(false, false), [false; 3]);
        let template = archive(&machine(Some(CMDLINE)), &[], true, false);
        assert!(has(&template, "tinyvmm/init\0") && has(&template, "tinyvmm/by-agent\0"));
        assert!(!has(&template, "tinyvmm/command\0"));
        if HAS_AGENT {
            assert_eq!(command(true, false), [true, false, true]);
            assert_eq!(command(true, true), [true; 3]);
        }
    }
}
