//! The seam: nothing that a guest does at the moment of its snapshot is done twice, or not at all.

use std::fs::File;
use std::io::{Read, Seek};
use std::thread::sleep;
use std::time::Duration;

use kvm_ioctls::Kvm;
use tinyvmm::arch::kernel::KernelFile;
use tinyvmm::config::MachineConfig;
use tinyvmm::devices::console::Console;
use tinyvmm::event::Events;
use tinyvmm::machine::{self, Files, Machine, Owner, Renewal, Start};
use tinyvmm::memory::loadable::Loadable;

use crate::fixture::Dir;
use crate::guests::{elf, guest};

guest!(
    /// Reads the serial port's received byte all the time, whether there is one or not, and prints those that are not
    /// zero: first the byte and then, by a string instruction, how many there were.
    repeats,
    "xor r12d, r12d",
    "mov edx, {com1}",
    "2: in al, dx",
    "test al, al",
    "jz 2b",
    "out dx, al",
    "inc r12b",
    "and r12b, 31",
    "lea ebx, [r12 + 32]",
    "mov [rip + 3f], bl",
    "mov byte ptr [rip + 3f + 1], 10",
    "lea rsi, [rip + 3f]",
    "mov ecx, 2",
    "rep outsb",
    "jmp 2b",
    "3: .ascii \"..\"",
);

/// What `repeats` prints when `typed` arrives.
fn repeated(typed: &[u8]) -> String {
    let lines = typed.iter().zip(1usize..);
    lines
        .map(|(byte, count)| format!("{}{}\n", *byte as char, (32 + count % 32) as u8 as char))
        .collect()
}

#[test]
fn each_byte_is_read_and_printed_once_by_three_hundred_machines() {
    let dir = Dir::new();
    std::fs::write(dir.path("kernel"), elf(&repeats())).unwrap();
    let kernel = Loadable::new(File::open(dir.path("kernel")).unwrap(), "kernel".into()).unwrap();
    let mut output = File::create_new(dir.path("output")).unwrap();
    let config = MachineConfig { mem: "16M".parse().unwrap(), ..Default::default() };
    let ram = machine::allocate_ram(&config).unwrap();
    let (kvm, events) = (Kvm::new().unwrap(), Events::new().unwrap());
    let owner = Owner::new(events.sender());
    let mut console = Console::new(false).unwrap();
    console.connect(output.try_clone().unwrap(), None);
    let mut start = Start::Boot { kernel: KernelFile::new(kernel, None), initrd: None };
    let mut typed = Vec::new();
    for round in 0..300u32 {
        let files = Files::new(start);
        let machine = Machine::build(&kvm, &config, &files, &ram, console, &owner).unwrap();
        let serial = machine.handles().serial.clone();
        let running = machine.start().unwrap();
        let more: Vec<u8> = (0..20).map(|at| b'a' + (round * 7 + at) as u8 % 26).collect();
        let taken = serial.lock().unwrap().receive(&more);
        typed.extend(&more[..taken]);
        // Not at the same place each time.
        sleep(Duration::from_micros(u64::from(round * 379 % 1500)));
        let machine = running.stop().unwrap();
        start = Start::Saved(Box::new(machine.save(&kvm).unwrap()), Renewal::default());
        console = machine.into_console();
    }
    assert!(typed.len() > 1000, "only {} bytes", typed.len());
    let mut text = String::new();
    output.rewind().unwrap();
    File::open(dir.path("output")).unwrap().read_to_string(&mut text).unwrap();
    let expected = repeated(&typed);
    let same = text.bytes().zip(expected.bytes()).take_while(|(one, other)| one == other).count();
    // The last ones may be still to come.
    assert!(
        same == text.len() && same > expected.len() - 300,
        "{:?} instead of {:?}",
        &text[same..],
        &expected[same..]
    );
}
