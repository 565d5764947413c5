//! `tinyvmm ... -- COMMAND`: a command runs in the guest, and its exit status is tinyvmm's.
//!
//! A small cpio archive is put behind the initrd; Linux unpacks one after the other. It has an init that
//! runs the command and tells its status through [`tinyvmm::devices::guest_report`].

use std::fmt::Write;
use std::io::IsTerminal;

/// Exit code when the machine ended without a status of the command.
pub const EXIT_NO_STATUS: u8 = 125;
/// Added to the kernel command line: all that is printed is the command's, save for emergencies.
pub const CMDLINE: &str = "quiet loglevel=1 rdinit=/tinyvmm/init";

const INIT: &str = include_str!("../../../guest-images/command-init");

core::arch::global_asm!(include_str!("../../../guest-images/tell.s"), options(raw));

/// The program with which init tells, an ELF file.
fn tell() -> &'static [u8] {
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

/// The archive that makes an initramfs run `command`, with zeroes in front that align it behind
/// `before` bytes of others.
pub fn archive(command: &[String], before: u64) -> Vec<u8> {
    let mut archive = Vec::new();
    add(&mut archive, "tinyvmm", FOLDER, b"");
    add(&mut archive, "tinyvmm/init", PROGRAM, INIT.as_bytes());
    add(&mut archive, "tinyvmm/tell", PROGRAM, tell());
    add(&mut archive, "tinyvmm/command", PROGRAM, format!("{}\n", quoted(command)).as_bytes());
    // A terminal is raw, so that the guest's side has to echo and to return the carriage.
    let (input, output) = (std::io::stdin().is_terminal(), std::io::stdout().is_terminal());
    let modes = [if input { "echo" } else { "-echo" }, if output { "opost" } else { "-opost" }];
    add(&mut archive, "tinyvmm/stty", PROGRAM, modes.join(" ").as_bytes());
    if input {
        add(&mut archive, "tinyvmm/terminal", PROGRAM, b"");
    }
    add(&mut archive, "TRAILER!!!", 0, b"");
    let zeroes = before.next_multiple_of(4) - before;
    std::iter::repeat_n(0, zeroes as usize).chain(archive).collect()
}

/// `words` as sh takes them for just these words.
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
    fn the_archive_has_its_files_aligned_behind_others() {
        let archive = archive(&["a".into(), "b c".into()], 5);
        let archive = archive.strip_prefix(&[0; 3]).expect("5 and 3 are a multiple of 4");
        let number = |at: usize| {
            usize::from_str_radix(std::str::from_utf8(&archive[at..at + 8]).unwrap(), 16).unwrap()
        };
        let (mut at, mut files) = (0, Vec::new());
        while at < archive.len() {
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
        assert_eq!(files[3].1, b"'a' 'b c'\n");
        assert_eq!(names.last(), Some(&"TRAILER!!!"));
    }
}
