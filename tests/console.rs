//! The serial console: its destinations, the guest's input, and readers that do not read.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};

use crate::fixture::{Running, Vmm};
use crate::guests;

const HELLO: &str = "hello byte by byte\nhello at a time\n";

/// Milliseconds of CPU time that the process has used.
fn cpu_ms(running: &Running) -> u64 {
    let stat = fs::read_to_string(running.proc("stat")).unwrap();
    // After the name, which is in brackets: utime and stime are fields 14 and 15 (proc(5)).
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks * 10 // USER_HZ is 100 on x86
}

/// A pipe that is full until a reader comes, and the number of bytes in it.
fn full_pipe() -> (PipeReader, PipeWriter, usize) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    let mut len = 0;
    while let Ok(more) = writer.write(&[b'-'; 4096]) {
        len += more;
    }
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer, len)
}

#[test]
fn a_file_is_written_anew() {
    let vmm = Vmm::new().guest(guests::hello).file("log", "old ".repeat(100));
    let outcome = vmm.args(["--console", "log"]).run().exits(0).silently().leaves_nothing();
    assert_eq!(outcome.file("log"), HELLO);
    assert_eq!(outcome.stdout, b"");
}

#[test]
fn a_file_that_cannot_be_written_is_reported() {
    for (file, why) in [("missing/log", "No such file"), (".", "Is a directory")] {
        let vmm = Vmm::new().guest(guests::hello).args(["--console", file]);
        vmm.run().refuses(3, &["console", file, why]);
    }
}

#[test]
fn output_goes_to_none_of_the_machine_s_own_files() {
    let kernel = guests::elf(&guests::hello());
    // By another name, and by the names in /dev/fd of open files.
    let mut outputs = vec!["--console=kernel".into(), "--boot-report=./kernel".to_owned()];
    outputs.push("--console=disk".into());
    outputs.extend((3..20).map(|fd| format!("--console=/dev/fd/{fd}")));
    for output in outputs {
        let vmm = Vmm::new().kernel(&kernel).file("disk", [7; 512]).args(["--disk", "disk"]);
        let outcome = vmm.args([&output]).run();
        assert!(fs::read(outcome.dir().path("kernel")).unwrap() == kernel, "{output}");
        assert_eq!(outcome.file("disk").as_bytes(), [7; 512], "{output}");
        if !output.contains("/dev/fd") {
            outcome.exits(3).says(&["the same file as", "name another"]);
        }
    }
}

#[test]
fn a_console_that_is_off_goes_nowhere() {
    let vmm = Vmm::new().guest(guests::hello).args(["--console", "off"]);
    assert_eq!(vmm.run().exits(0).silently().leaves_nothing().stdout, b"");
}

#[test]
fn what_is_typed_reaches_the_guest_in_order() {
    let text: String = ('a'..='p').cycle().take(500).collect();
    let running = Vmm::new().guest(guests::echo).stdin(Stdio::piped()).start().prints("ready");
    let outcome = running.types(&text).types("q").wait().exits(0).silently();
    // Without a terminal Ctrl-A is a character like any other.
    assert_eq!(String::from_utf8(outcome.stdout).unwrap(), format!("ready\n{text}q"));
    let running = Vmm::new().guest(guests::echo).stdin(Stdio::piped()).start().prints("ready");
    assert_eq!(running.types("\x01xq").wait().exits(0).stdout, b"ready\n\x01xq");
}

#[test]
fn input_that_was_there_before_the_guest_is_not_lost_and_its_end_is_harmless() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"abcq").unwrap();
    drop(writer);
    let outcome = Vmm::new().guest(guests::echo).stdin(reader).run().exits(0).silently();
    assert!(outcome.stdout.ends_with(b"abcq"), "{:?}", String::from_utf8_lossy(&outcome.stdout));
}

#[test]
fn the_end_of_input_costs_no_cpu_time() {
    let (ended, _) = std::io::pipe().unwrap();
    for stdin in [Stdio::null(), ended.into()] {
        let running = Vmm::new().guest(guests::idle).stdin(stdin).start().prints("idle");
        let before = cpu_ms(&running);
        thread::sleep(Duration::from_millis(1000));
        let used = cpu_ms(&running) - before;
        assert!(used < 300, "a machine that only sleeps used {used} ms of CPU time in a second");
    }
}

#[test]
fn standard_input_may_be_closed() {
    let vmm = Vmm::started_by(&["sh", "-c", "exec \"$0\" \"$@\" <&-"]).guest(guests::hello);
    vmm.run().exits(0).prints(HELLO).silently();
}

#[test]
fn a_reader_that_is_gone_does_not_hold_up_the_guest() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let vmm = Vmm::new().guest(guests::hello).stdout(writer);
    vmm.run().exits(0).says(&["warn: console", "dropped"]).leaves_nothing();
}

#[test]
fn a_reader_that_pauses_gets_it_all() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let running = Vmm::new().guest(guests::hello).stdout(writer).start();
    thread::sleep(Duration::from_millis(300));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    running.wait().exits(0).silently();
    assert_eq!(text, HELLO);
}

#[test]
fn a_flood_that_nobody_reads_costs_no_memory_and_leaves_signals_alone() {
    let (reader, writer, _) = full_pipe();
    let vmm = Vmm::new().guest(guests::flood).stdout(writer);
    let running = vmm.args(["--log-level", "info"]).start().says("nobody reads the console");
    let before = running.rss_kib();
    thread::sleep(Duration::from_secs(2));
    let growth = running.rss_kib().saturating_sub(before);
    assert!(growth < 1024, "{growth} KiB more after 2 s of output that nobody reads");
    running.signal(libc::SIGTERM);
    let running = running.says("power button");
    running.signal(libc::SIGTERM);
    let outcome = running.wait().exits(8);
    drop(reader);
    assert_eq!(outcome.stderr.matches("nobody reads").count(), 1, "{}", outcome.stderr);
}

#[test]
fn a_flood_that_is_read_arrives() {
    let running = Vmm::new().guest(guests::flood).args(["--log-level", "info"]).start();
    let running = running.prints(&"x".repeat(5000));
    running.signal(libc::SIGTERM);
    let running = running.says("power button");
    running.signal(libc::SIGTERM);
    let outcome = running.wait().exits(8);
    assert!(outcome.stdout.iter().all(|byte| *byte == b'x'));
}

#[test]
fn what_nobody_reads_is_dropped_only_until_someone_does() {
    let (mut reader, writer, len) = full_pipe();
    let running = Vmm::new().guest(guests::flood).stdout(writer).start();
    let running = running.says("nobody reads the console");
    reader.read_exact(&mut vec![0; len]).unwrap();
    // More than the buffer that is full has room for.
    let mut bytes = vec![0; 66 << 10];
    reader.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == b'x'));
    drop(running);
}
