//! Guests of a few instructions: they run on any KVM, interpreting ones included.

pub use crate::elf::{elf, elf_up_to, elf_with_parameter, only_pvh};

/// The macros of [`guest`], in the assembler's words.
macro_rules! asm_macros {
    () => {
        concat!(
            ".macro out8 port:req, value:req\n",
            "    mov edx, \\port\n",
            "    mov al, \\value\n",
            "    out dx, al\n",
            ".endm\n",
            ".macro say text:req\n",
            "    lea rsi, [rip + .Ltext\\@]\n",
            "    mov edx, {com1}\n",
            "    jmp .Lnext\\@\n",
            ".Ltext\\@: .asciz \"\\text\"\n",
            ".Lput\\@: out dx, al\n",
            ".Lnext\\@: lodsb\n",
            "    test al, al\n",
            "    jnz .Lput\\@\n",
            ".endm\n",
            ".macro dump length:req\n",
            "    mov edx, {com1}\n",
            "    mov ecx, \\length\n",
            ".Ldump\\@: add dl, 5\n",
            "    in al, dx\n", // as a UART wants it: the line status, then a byte
            "    sub dl, 5\n",
            "    outsb\n",
            "    loop .Ldump\\@\n",
            ".endm\n",
            ".macro sleep\n",
            ".Lsleep\\@: hlt\n",
            "    jmp .Lsleep\\@\n",
            ".endm\n",
            ".macro power_off\n",
            "    out8 {sleep_control}, 0x34\n",
            "    sleep\n",
            ".endm\n",
            // virtio 1.2, 4.2.2: the status, VIRTIO_F_VERSION_1, which is bit 32, the queues.
            ".macro virtqueues count:req, address:req\n",
            "    mov dword ptr [rbx + 0x70], 3\n",
            "    mov dword ptr [rbx + 0x24], 1\n",
            "    mov dword ptr [rbx + 0x20], 1\n",
            "    mov dword ptr [rbx + 0x70], 11\n",
            "    xor ecx, ecx\n",
            "    mov esi, \\address\n",
            ".Lqueue\\@: mov [rbx + 0x30], ecx\n",
            "    mov dword ptr [rbx + 0x38], 8\n",
            "    mov [rbx + 0x80], esi\n",
            "    lea eax, [rsi + 0x1000]\n",
            "    mov [rbx + 0x90], eax\n",
            "    lea eax, [rsi + 0x2000]\n",
            "    mov [rbx + 0xa0], eax\n",
            "    mov dword ptr [rbx + 0x44], 1\n",
            "    add esi, 0x3000\n",
            "    inc ecx\n",
            "    cmp ecx, \\count\n",
            "    jne .Lqueue\\@\n",
            "    mov dword ptr [rbx + 0x70], 15\n",
            ".endm\n",
        )
    };
}
pub(crate) use asm_macros;

/// Defines a function that returns the machine code of these lines, in Intel syntax.
///
/// The code has these macros, and ports in braces:
/// `out8 PORT, VALUE`; `say "TEXT"`, byte by byte; `dump LENGTH` of bytes at RSI; `power_off`; `sleep` for ever;
/// `virtqueues COUNT, ADDRESS` of 8 descriptors each for the virtio device with its registers at RBX: each has a page for
/// descriptors, one for what is available, and one for what was used. It changes RAX, RCX and RSI.
macro_rules! guest {
    ($(#[doc = $doc:literal])* $name:ident, $($line:expr),+ $(,)?) => {
        $(#[doc = $doc])*
        pub fn $name() -> Vec<u8> {
            mod asm {
                use tinyvmm::layout;

                core::arch::global_asm!(
                    ".pushsection .rodata",
                    $crate::guests::asm_macros!(),
                    concat!("guest_", stringify!($name), ":"),
                    $($line,)+
                    concat!("guest_", stringify!($name), "_end:"),
                    ".purgem out8",
                    ".purgem say",
                    ".purgem dump",
                    ".purgem sleep",
                    ".purgem power_off",
                    ".purgem virtqueues",
                    ".popsection",
                    "/* {com1} {sleep_control} {reset} {i8042} {pvpanic} {report} {zero_page} */",
                    com1 = const layout::SERIAL_PORTS.start,
                    sleep_control = const layout::POWER_PORTS.start,
                    reset = const layout::POWER_PORTS.start + 2,
                    i8042 = const layout::I8042_PORTS.start,
                    pvpanic = const layout::PVPANIC_PORTS.start,
                    report = const layout::REPORT_PORTS.start,
                    zero_page = const layout::ZERO_PAGE,
                );
                unsafe extern "C" {
                    #[link_name = concat!("guest_", stringify!($name))]
                    pub static START: u8;
                    #[link_name = concat!("guest_", stringify!($name), "_end")]
                    pub static END: u8;
                }
            }
            $crate::guests::code(&raw const asm::START, &raw const asm::END)
        }
    };
}

pub(crate) use guest;

/// The bytes from `start` to `end`.
pub fn code(start: *const u8, end: *const u8) -> Vec<u8> {
    let len = end.addr() - start.addr();
    // SAFETY: the two are the ends of one guest's code in the read-only data of this program.
    unsafe { std::slice::from_raw_parts(start, len) }.to_vec()
}

guest!(
    /// Prints two lines, one byte by byte and one with a string instruction, and powers off.
    hello,
    r#"say "hello byte by byte\n""#,
    "lea rsi, [rip + 2f]",
    "mov ecx, 16",
    "mov edx, {com1}",
    "rep outsb",
    "power_off",
    r#"2: .ascii "hello at a time\n""#,
);

guest!(
    /// Says what a kernel says before init, marks as init does, and ends with status 42.
    marks_and_exits_with_42,
    r#"say "as init process\n""#,
    "out8 {report}, 1",
    r#"say "marked\n""#,
    "out8 {report} + 1, 42",
    "sleep",
);

guest!(
    /// Prints what a bzImage's own decompressor might, and powers off.
    unpacks_itself,
    r#"say "I unpack myself\n""#,
    "power_off",
);

guest!(
    /// Prints "idle" and sleeps for ever, deaf to all interrupts.
    idle,
    r#"say "idle\n""#,
    "sleep",
);

guest!(
    /// Sets up the first virtio device.
    drives_a_device,
    "mov ebx, 0xd0000000",
    "mov dword ptr [rbx + 0x70], 3",
    "mov dword ptr [rbx + 0x24], 1", // VIRTIO_F_VERSION_1 is bit 32
    "mov dword ptr [rbx + 0x20], 1",
    "mov dword ptr [rbx + 0x70], 15",
    r#"say "driven\n""#,
    "sleep",
);

guest!(
    /// Prints "busy" and never rests.
    busy,
    r#"say "busy\n""#,
    "2: jmp 2b",
);

guest!(
    /// Prints "boot " and how often this RAM has seen it, and resets by the ACPI register.
    acpi_reset,
    r#"say "boot ""#,
    "inc byte ptr [0x200000]",
    "mov al, [0x200000]",
    "add al, '0'",
    "out dx, al",
    r#"say "\n""#,
    "out8 {reset}, 1",
    "sleep",
);

guest!(
    /// Resets as old PCs do, by the keyboard controller.
    i8042_reset,
    "out8 {i8042}, 0xfe",
    "sleep",
);

guest!(
    /// Raises an exception without an interrupt table.
    triple_fault,
    "lidt [rip + 2f]",
    "ud2",
    "2: .zero 10",
);

guest!(
    /// Runs at an address without memory: no KVM can emulate that.
    lost,
    "mov eax, 0xd8000000",
    "jmp rax",
);

guest!(
    /// Reports a panic by the pvpanic device.
    pvpanic,
    "out8 {pvpanic}, 1",
    "sleep",
);

guest!(
    /// Prints what a kernel that panics prints, and resets as it does with panic=-1.
    panic_and_acpi_reset,
    r#"say "Kernel panic - not syncing: test\n""#,
    "out8 {reset}, 1",
    "sleep",
);

guest!(
    /// Prints what a kernel that panics prints, with the reset that a kernel falls back to.
    panic_and_triple_fault,
    r#"say "Kernel panic - not syncing: test\n""#,
    "lidt [rip + 2f]",
    "ud2",
    "2: .zero 10",
);

guest!(
    /// Powers off when the power button is pressed: waits for its interrupt at the local APIC.
    obedient,
    "mov ebx, 0xfec00000", // IOAPIC: route pin 9, an edge, to vector 0x40 of CPU 0
    "mov ecx, 0xfee00000",
    "mov dword ptr [rcx + 0xf0], 0x1ff", // spurious vector; APIC on
    "mov dword ptr [rbx], 0x10 + 9 * 2 + 1",
    "mov dword ptr [rbx + 0x10], 0",
    "mov dword ptr [rbx], 0x10 + 9 * 2",
    "mov dword ptr [rbx + 0x10], 0x40",
    r#"say "ready\n""#,
    "2: mov eax, [rcx + 0x220]", // IRR of vectors 0x40 to 0x5f
    "test eax, 1",
    "jz 2b",
    r#"say "button\n""#,
    "power_off",
);

guest!(
    /// Prints "ready" and then what is typed; powers off on 'q'.
    echo,
    r#"say "ready\n""#,
    "2: mov edx, {com1} + 5",
    "in al, dx",
    "test al, 1", // data ready
    "jz 2b",
    "mov edx, {com1}",
    "in al, dx",
    "out dx, al",
    "cmp al, 'q'",
    "jne 2b",
    "power_off",
);

guest!(
    /// Prints for ever.
    flood,
    "mov edi, 0x200000",
    "mov ecx, 4096",
    "mov al, 'x'",
    "rep stosb",
    "2: mov esi, 0x200000",
    "dump 4096",
    "jmp 2b",
);

guest!(
    /// Prints the 22 bytes that it reads where nothing is, and writes there.
    reads_nothing,
    "mov edi, 0x200000",
    "mov edx, 0x1234",
    "xor eax, eax",
    "in al, dx",
    "stosb",
    "xor eax, eax",
    "in ax, dx",
    "stosw",
    "xor eax, eax",
    "in eax, dx",
    "stosd",
    "out dx, eax",
    "mov ebx, 0xd8000000",
    "xor eax, eax",
    "mov al, [rbx]",
    "stosb",
    "xor eax, eax",
    "mov ax, [rbx]",
    "stosw",
    "mov eax, [rbx]",
    "stosd",
    "mov rax, [rbx]",
    "stosq",
    "mov [rbx], rax",
    "mov esi, 0x200000",
    "dump 22",
    "power_off",
);

guest!(
    /// Prints its zero page, and 4 KiB each of its command line and of its initrd.
    zero_page,
    "mov rbx, rsi",
    "dump 4096",
    "mov esi, [rbx + 0x228]",
    "dump 4096",
    "mov esi, [rbx + 0x218]",
    "dump 4096",
    "power_off",
);

guest!(
    /// With 4.5 GiB of RAM: maps its first and last page above 4 GiB and uses them.
    high_memory,
    "mov rbx, cr3",
    "mov rbx, [rbx]", // to the page directory pointers
    "and rbx, -4096",
    "mov qword ptr [rbx + 4 * 8], 0x80003",
    "mov qword ptr [rbx + 5 * 8], 0x81003",
    "mov rax, 0x100000083",
    "mov [0x80000], rax",
    "mov rax, 0x15fe00083",
    "mov [0x81000 + 255 * 8], rax",
    "mov rcx, 0x100000008",
    "mov rdi, 0x15ffffff8",
    "mov qword ptr [rcx], 0x11",
    "mov qword ptr [rdi], 0x22",
    "mov rax, [rcx]",
    "shl rax, 8",
    "add rax, [rdi]",
    "cmp rax, 0x1122",
    "jne 2f",
    r#"say "high memory works\n""#,
    "2: sleep",
);

guest!(
    /// Starts CPU 1 with INIT and SIPI; that prints "second" from real mode and powers off.
    second_cpu,
    "lea rsi, [rip + 2f]",
    "mov edi, 0x8000",
    "mov ecx, 64",
    "rep movsb",
    "mov ebx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov dword ptr [rbx + 0x310], 1 << 24",
    "mov dword ptr [rbx + 0x300], 0x4500",
    "mov dword ptr [rbx + 0x310], 1 << 24",
    "mov dword ptr [rbx + 0x300], 0x4608",
    "sleep",
    ".code16",
    "2: mov dx, {com1}",
    "mov al, '2'",
    "out dx, al",
    "mov dx, {sleep_control}",
    "mov al, 0x34",
    "out dx, al",
    "3: hlt",
    "jmp 3b",
    ".zero 64",
    ".code64",
);

guest!(
    /// Entered by PVH, in 32-bit mode: prints 1 KiB of the start info and of the command line.
    pvh,
    ".code32",
    "mov esi, ebx",
    "dump 1024",
    "mov esi, [ebx + 24]",
    "dump 1024",
    "power_off",
    ".code64",
);
