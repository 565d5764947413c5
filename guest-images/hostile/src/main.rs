//! A guest that attacks tinyvmm's devices. For its checks it has the driver of the `virtio-drivers` crate.
//!
//! `attack=NAME seed=N` on the command line choose the attack (attacks.rs). The guest attacks until 'c' is typed; then
//! it resets the devices, uses them as a driver should, notes on the disk that they work, and continues. "quit!" powers
//! the machine off. It needs three CPUs, 64 MiB, a disk of 1 MiB or more, and `--uart memory`; a folder is attacked if
//! there is one.

#![no_std]
#![no_main]

mod attacks;
mod driver;
mod folder;
mod machine;
mod random;
mod virtio;

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use attacks::{ATTACKS, Attacker, Round};
use random::Random;
use virtio::Device;

const DISK: u32 = 2;
const RNG: u32 = 4;
const FOLDER: u32 = 26;

/// A word, because an attack on the serial port makes it return what it was sent.
const QUIT: &[u8] = b"quit!";

/// Whether the second CPU is to pause, and whether it does.
static HOLD: AtomicBool = AtomicBool::new(true);
static RESTS: AtomicBool = AtomicBool::new(false);
/// The attack, as an index, and the seed.
static ATTACK: AtomicU32 = AtomicU32::new(0);
static SEED_OF_ALL: AtomicU32 = AtomicU32::new(1);

fn fail(why: &str) -> ! {
    machine::say("hostile: ");
    machine::say(why);
    machine::say("\n");
    machine::power_off()
}

fn attacker(cpu: u32) -> (Attacker, Round) {
    let (Some(disk), Some(rng)) = (Device::find(DISK), Device::find(RNG)) else {
        fail("no disk and random number generator");
    };
    let seed = u64::from(SEED_OF_ALL.load(Ordering::SeqCst)) << 8 | u64::from(cpu);
    let attack = ATTACKS[ATTACK.load(Ordering::SeqCst) as usize].1;
    let (random, folder) = (Random::new(seed), Device::find(FOLDER));
    (Attacker { cpu, random, disk, rng, folder }, attack)
}

/// The entry of all CPUs, except the one for ports.
// SAFETY: start.s calls it by this name, and nothing else has it.
#[unsafe(no_mangle)]
extern "C" fn rust_main(cpu: u32, zero_page: u32) -> ! {
    if cpu == 0 { first(zero_page) } else { second() }
}

fn second() -> ! {
    machine::second_is_up();
    let (mut attacker, attack) = attacker(1);
    loop {
        while HOLD.load(Ordering::SeqCst) {
            RESTS.store(true, Ordering::SeqCst);
            core::hint::spin_loop();
        }
        RESTS.store(false, Ordering::SeqCst);
        if let Err(why) = attack(&mut attacker) {
            fail(why);
        }
    }
}

fn first(zero_page: u32) -> ! {
    read_command_line(machine::command_line(zero_page));
    machine::touch_ram();
    let (mut attacker, attack) = attacker(0);
    machine::start_second();
    let (mut count, mut matched) = (0, 0);
    loop {
        while !RESTS.load(Ordering::SeqCst) {
            core::hint::spin_loop();
        }
        count += 1;
        if let Err(why) = driver::check(attacker.disk, attacker.rng, count) {
            fail(why);
        }
        RESTS.store(false, Ordering::SeqCst);
        HOLD.store(false, Ordering::SeqCst);
        loop {
            let typed = machine::typed();
            if let Some(byte) = typed {
                matched = if byte == QUIT[matched] { matched + 1 } else { 0 };
            }
            if matched == QUIT.len() {
                machine::power_off();
            }
            if typed == Some(b'c') {
                break;
            }
            if let Err(why) = attack(&mut attacker) {
                fail(why);
            }
        }
        HOLD.store(true, Ordering::SeqCst);
    }
}

fn read_command_line(line: &str) {
    for word in line.split(' ') {
        if let Some(name) = word.strip_prefix("attack=") {
            match ATTACKS.iter().position(|attack| attack.0 == name) {
                Some(index) => ATTACK.store(index as u32, Ordering::SeqCst),
                None => fail("no such attack"),
            }
        }
        if let Some(seed) = word.strip_prefix("seed=") {
            SEED_OF_ALL.store(seed.parse().unwrap_or(1), Ordering::SeqCst);
        }
    }
}
