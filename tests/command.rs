//! `tinyvmm ... -- COMMAND` with guests that do what its init and the agent do. `linux::command` has the real ones.

use std::process::Stdio;

use crate::fixture::Vmm;
use crate::guests::guest;

guest!(
    /// Prints to its console, and connects to the agent's port of the host, as init's agent does. Its command writes "out"
    /// and "err", and ends with status 7 when there is input or the end of it, or by a signal. When the host has closed the
    /// connection the status is reported. Its vsock device is the second one.
    agent,
    r#"say "emergency\n""#,
    "mov ebx, 0xd0001000",
    "virtqueues 2, 0x200000",
    "mov dword ptr [0x200000], 0x210000", // a buffer for what comes
    "mov dword ptr [0x200008], 4096",
    "mov dword ptr [0x20000c], 2",
    "mov dword ptr [0x203000], 0x220000", // a header, and data
    "mov dword ptr [0x203008], 44",
    "mov dword ptr [0x220000], 3",
    "mov dword ptr [0x220008], 2",
    "mov dword ptr [0x220010], 99",
    "mov dword ptr [0x220014], 1024",
    "mov dword ptr [0x22001c], 0x10001", // REQUEST of a stream
    "mov dword ptr [0x220024], 0x10000",
    "3: inc word ptr [0x204002]", // sends
    "mov dword ptr [rbx + 0x50], 1",
    "4: inc word ptr [0x201002]", // receives
    "mov dword ptr [rbx + 0x50], 0",
    "5: mov ax, [0x201002]",
    "cmp ax, [0x202002]",
    "jne 5b",
    "cmp byte ptr [0x21001e], 2", // RESPONSE
    "je 6f",
    "cmp byte ptr [0x21001e], 5", // RW
    "je 7f",
    "cmp byte ptr [0x21001e], 4", // SHUTDOWN, of both directions
    "jne 4b",
    "cmp byte ptr [0x210020], 3",
    "jne 4b",
    "mov al, r12b",
    "mov edx, {report} + 1",
    "out dx, al",
    "sleep",
    "6: lea rsi, [rip + 9f]", // the first frames
    "mov ecx, 16 + 5 + 4 + 5 + 4",
    "jmp 8f",
    "7: mov r12d, 7",
    "mov esi, 0x21002c",
    "cmp byte ptr [rsi], 't'", // the hello and the request, and what is behind them
    "jne 1f",
    "add esi, 50",
    "cmp dword ptr [0x210018], 50",
    "je 4b",
    "1: cmp byte ptr [rsi], 2", // Input
    "je 2f",
    "cmp byte ptr [rsi], 4", // Signal
    "jne 4b",
    "movzx r12d, byte ptr [rsi + 5]",
    "add r12d, 128",
    "2: mov byte ptr [0x230000], 67", // Status
    "mov dword ptr [0x230001], 2",
    "mov byte ptr [0x230006], r12b",
    "mov esi, 0x230000",
    "mov ecx, 7",
    "8: mov [0x220018], ecx",
    "mov dword ptr [0x22001c], 0x50001",
    "lea eax, [rcx + 44]",
    "mov [0x203008], eax",
    "mov edi, 0x22002c",
    "rep movsb",
    "jmp 3b",
    r#"9: .ascii "tinyvmm-agent 1\n""#,
    r#".ascii "\x40\x04\0\0\0out\n""#,
    r#".ascii "\x41\x04\0\0\0err\n""#,
);

guest!(
    /// Has its console as the command's streams: prints what it reads, and ends with status 9 after Ctrl-D.
    console,
    r#"say "early\n""#,
    "out8 {report}, 2",
    "2: mov edx, {com1} + 5",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov edx, {com1}",
    "in al, dx",
    "cmp al, 4",
    "je 3f",
    "out dx, al",
    "jmp 2b",
    "3: out8 {report} + 1, 9",
    "sleep",
);

/// A machine with a command.
fn with_command(vmm: Vmm) -> Vmm {
    let vmm = vmm.file("initrd", "x").args(["--balloon", "off", "--initrd", "initrd"]);
    vmm.args(["--", "true"])
}

#[test]
fn what_the_agent_sends_is_printed_and_the_console_is_not() {
    let outcome = with_command(Vmm::new().guest(agent)).run().exits(7);
    assert_eq!((&outcome.stdout[..], &outcome.stderr[..]), (&b"out\n"[..], "err\n"));
    // Where others find the machine by its vsock as well.
    let vmm = Vmm::new().guest(agent).args(["--vsock", "path=v"]);
    let outcome = with_command(vmm).run().exits(7).leaves_nothing();
    assert_eq!((&outcome.stdout[..], &outcome.stderr[..]), (&b"out\n"[..], "err\n"));
    // Without the jail, too.
    with_command(Vmm::new().guest(agent).args(["--no-jail"])).run().exits(7);
}

#[test]
fn signals_are_passed_on() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        let vmm = with_command(Vmm::new().guest(agent)).stdin(Stdio::piped());
        let running = vmm.start().prints("out\n");
        running.signal(signal);
        running.wait().exits(128 + signal);
    }
}

#[test]
fn output_that_nobody_reads_ends_the_command() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let vmm = with_command(Vmm::new().guest(agent)).stdin(Stdio::piped());
    vmm.stdout(writer).start().wait().exits(141).silently();
}

#[test]
fn a_guest_without_vsock_has_the_console() {
    let vmm = with_command(Vmm::new().guest(console)).stdin(Stdio::piped());
    let running = vmm.start().types("line\n").prints("early\nline\n");
    running.types("rest").prints("rest").ends_input().wait().exits(9).silently();
}

#[test]
fn the_console_is_shown_at_an_end_without_a_status() {
    let outcome = with_command(Vmm::new().guest(crate::guests::hello)).run().exits(125);
    let shown = String::from_utf8_lossy(&outcome.stdout);
    assert_eq!(shown, "hello byte by byte\nhello at a time\n");
    outcome.says(&["the guest powered off"]);
    let vmm = Vmm::new().guest(crate::guests::idle).args(["--timeout", "1s"]);
    let outcome = with_command(vmm).run().exits(125).says(&["--timeout"]);
    assert_eq!(outcome.stdout, b"idle\n");
}

#[cfg(debug_assertions)]
#[test]
fn its_thread_does_not_open_files() {
    let vmm = with_command(Vmm::new().guest(agent)).env("TINYVMM_BREAK_OUT", "Command");
    vmm.run().exits(125).says(&["the jail", "thread command", "openat"]);
}
