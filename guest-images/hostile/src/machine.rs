//! The bare machine: memory at any address, and its CPUs. All is mapped one to one and belongs to nobody.

use core::sync::atomic::{AtomicU32, Ordering};

core::arch::global_asm!(include_str!("start.s"));

/// Where a CPU starts: code that depends on the CPU (start.s).
const TRAMPOLINE: u64 = 0x8000;
const PORTS_LEFT: u64 = TRAMPOLINE + 20;
const FIRST_PORT: u64 = TRAMPOLINE + 22;
const FIRST_VALUE: u64 = TRAMPOLINE + 24;
const SEED: u64 = TRAMPOLINE + 28;
const LAPIC_ICR: u64 = 0xfee0_0300;
/// The RAM of this guest.
const RAM: u64 = 64 << 20;
const ACPI_SLEEP: u16 = 0x600;
const RTC_INDEX: u16 = 0x70;
/// First port of the serial port, in memory: tinyvmm's `--uart memory`.
const SERIAL: u64 = 0xd010_0fff;

/// What memory and registers hold, of 1, 2, 4 or 8 bytes.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// Reads what is at `address`, whatever that is.
pub fn read<T: Word>(address: u64) -> T {
    // SAFETY: all below 4 GiB is mapped, and no object of Rust is read but words that any bits are.
    unsafe { core::ptr::read_volatile(address as *const T) }
}

/// Writes to `address`: a register, or memory that Rust knows nothing of.
pub fn write<T: Word>(address: u64, value: T) {
    // SAFETY: all below 4 GiB is mapped, and the callers keep away from the program at 2 MiB.
    unsafe { core::ptr::write_volatile(address as *mut T, value) }
}

/// The NUL-terminated command line that the zero page names.
pub fn command_line(zero_page: u32) -> &'static str {
    let start = read::<u32>(u64::from(zero_page) + 0x228);
    let len = (0..2048).take_while(|at| read::<u8>(u64::from(start) + at) != 0).count();
    // SAFETY: these bytes are there, and nobody writes to them.
    let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, len) };
    core::str::from_utf8(bytes).unwrap_or_default()
}

/// Prints `text`, whatever state the serial port was left in.
pub fn say(text: &str) {
    for (register, value) in [(3, 3), (1, 0), (4, 3)] {
        write::<u8>(SERIAL + register, value); // DLAB off, no interrupts, no loopback
    }
    text.bytes().for_each(|byte| write(SERIAL, byte));
}

/// A byte from the console, if there is one.
pub fn typed() -> Option<u8> {
    (read::<u8>(SERIAL + 5) & 1 != 0).then(|| {
        write::<u8>(SERIAL + 3, 3);
        read(SERIAL)
    })
}

/// Writes `value` to register `index` of the serial port.
pub fn poke_serial(index: u64, value: u8) {
    write(SERIAL + index % 8, value);
}

/// Touches all RAM, so that the host's memory for it does not grow any more.
pub fn touch_ram() {
    (0..RAM).step_by(4096).for_each(|page| write(page, read::<u8>(page)));
}

fn start(cpu: u32) {
    for command in [0x4500, 0x4608] {
        write(LAPIC_ICR + 0x10, cpu << 24);
        write::<u32>(LAPIC_ICR, command); // INIT, then SIPI to page 8
        while read::<u32>(LAPIC_ICR) & 1 << 12 != 0 {}
    }
}

fn prepare() {
    unsafe extern "C" {
        static trampoline: u8;
        static trampoline_end: u8;
    }
    let (from, to) = (&raw const trampoline as u64, &raw const trampoline_end as u64);
    (from..to).for_each(|at| write(TRAMPOLINE + at - from, read::<u8>(at)));
}

/// Starts the second CPU, at `rust_main`.
pub fn start_second() {
    prepare();
    start(1);
    STARTED.fetch_add(1, Ordering::SeqCst);
    while STARTED.load(Ordering::SeqCst) < 2 {}
}

static STARTED: AtomicU32 = AtomicU32::new(0);

/// Notes that the second CPU has arrived at `rust_main`.
pub fn second_is_up() {
    STARTED.fetch_add(1, Ordering::SeqCst);
}

/// Has the third CPU do `count` random port accesses, of those that do not end the machine.
pub fn storm_ports(count: u16, seed: u32) {
    on_ports(RTC_INDEX, 0, count, seed);
}

/// Powers the machine off.
pub fn power_off() -> ! {
    on_ports(ACPI_SLEEP, 0x34, 1, 1);
    stay()
}

fn stay() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

fn on_ports(first: u16, value: u8, count: u16, seed: u32) {
    prepare();
    write(PORTS_LEFT, count.max(1));
    write(FIRST_PORT, first);
    write(FIRST_VALUE, value);
    write(SEED, seed | 1);
    start(2);
    while read::<u16>(FIRST_PORT) != 0 {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    say("hostile: panic\n");
    stay()
}
