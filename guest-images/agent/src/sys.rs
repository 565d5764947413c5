//! What a program without a C library needs: a start, memory, an end; and system calls that rustix has not.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use alloc::vec::Vec;
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;
use syscalls::{Sysno, syscall};

use agent_wire::PORT;

// The stack has the number of arguments, the arguments, a null, the environment, a null (System V ABI, AMD64, 3.4.1).
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

// What the compiler calls for memory, and a C library would have. In assembly, for in Rust they could call themselves.
core::arch::global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp, strlen",
    "memmove:",
    "mov rax, rdi",
    "sub rax, rsi",
    "cmp rax, rdx", // the target begins within the source
    "jb 1f",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "1:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor eax, eax",
    "mov rcx, rdx",
    "cmp rcx, rcx", // equal, if there is nothing
    "repe cmpsb",
    "je 2f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub eax, ecx",
    "2: ret",
    "strlen:",
    "mov r8, rdi",
    "xor eax, eax",
    "mov rcx, -1",
    "repne scasb",
    "lea rax, [rdi - 1]",
    "sub rax, r8",
    "ret",
);

/// Arguments or environment, as the kernel passed them on: pointers to texts, and a null.
#[derive(Clone, Copy)]
pub struct Words(*const *const c_char);

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel has put the number of arguments there.
    let count = unsafe { *stack };
    // SAFETY: the arguments are behind it.
    let args = unsafe { stack.add(1) };
    // SAFETY: the environment is behind the arguments and their null.
    let env = unsafe { args.add(count + 1) };
    exit(crate::main(Words(args.cast()), Words(env.cast())))
}

impl Words {
    /// The word at `index`, which is not beyond the first null.
    pub fn get(self, index: usize) -> Option<&'static CStr> {
        // SAFETY: as callers go on only until there is none, it is in the list.
        let place = unsafe { self.0.add(index) };
        // SAFETY: the kernel has put a pointer or the null there.
        let word = unsafe { *place };
        // SAFETY: words end in a zero byte, and stay for as long as the process.
        (!word.is_null()).then(|| unsafe { CStr::from_ptr(word) })
    }
}

/// Memory is never given back: a connection has a process of its own, whose needs are bounded.
struct Arena(UnsafeCell<[u8; ARENA]>, AtomicUsize);
const ARENA: usize = 4 << 20;

// SAFETY: pieces of it are handed out once, by an atomic counter.
unsafe impl Sync for Arena {}

#[global_allocator]
static MEMORY: Arena = Arena(UnsafeCell::new([0; ARENA]), AtomicUsize::new(0));

// SAFETY: each piece is within the arena, aligned, and handed out once.
unsafe impl GlobalAlloc for Arena {
    // SAFETY: it is as the trait says.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        let base = self.0.get().addr();
        let end = |at: usize| ((base + at).next_multiple_of(align) - base).checked_add(size);
        let next = |at| end(at).filter(|end| *end <= ARENA);
        match self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            // SAFETY: the piece ends within the arena.
            Ok(at) => unsafe { self.0.get().cast::<u8>().add(end(at).unwrap_or(size) - size) },
            Err(_) => null_mut(),
        }
    }

    // SAFETY: the arena is zero until it is handed out.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        unsafe { self.alloc(layout) }
    }

    // SAFETY: it does nothing.
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    exit(101)
}

/// Ends the process.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: nothing follows.
        let _ = unsafe { syscall!(Sysno::exit_group, code) };
    }
}

fn check(done: Result<usize, syscalls::Errno>) -> Result<usize, Errno> {
    done.map_err(|error| Errno::from_raw_os_error(error.into_raw()))
}

/// Makes a process; `None` in the new one.
pub fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: the process has one thread, and no lock that the child could find taken.
    let pid = check(unsafe { syscall!(Sysno::fork) })?;
    Ok(Pid::from_raw(pid as i32))
}

/// A list of texts with zero bytes at their ends.
pub struct Texts(Vec<Vec<u8>>);

impl Texts {
    /// `words`, which have no zero bytes.
    pub fn new<'a>(words: impl Iterator<Item = &'a [u8]>) -> Self {
        Self(words.map(|word| [word, &[0]].concat()).collect())
    }

    fn pointers(&self) -> Vec<*const u8> {
        self.0.iter().map(|text| text.as_ptr()).chain([null()]).collect()
    }
}

/// Becomes another program; returns only why not.
pub fn execute(path: &CStr, args: &Texts, env: &Texts) -> Errno {
    let (args, env) = (args.pointers(), env.pointers());
    execute_raw(path, args.as_ptr().cast(), env.as_ptr().cast())
}

/// Becomes another program with the arguments, but for the first, and the environment of this one.
pub fn execute_in_place(path: &'static CStr, args: Words, env: Words) -> Errno {
    // SAFETY: the list is on our stack, and is not empty.
    unsafe { *args.0.cast_mut() = path.as_ptr() };
    execute_raw(path, args.0, env.0)
}

fn execute_raw(path: &CStr, args: *const *const c_char, env: *const *const c_char) -> Errno {
    // SAFETY: all three are lists and texts that end as execve(2) wants it.
    match check(unsafe { syscall!(Sysno::execve, path.as_ptr(), args, env) }) {
        Ok(_) => Errno::NOSYS,
        Err(error) => error,
    }
}

/// Writes over the slash with which the program's name begins, as others see it.
pub fn mark_name(args: Words, byte: u8) {
    if let Some(name) = args.get(0).filter(|name| name.to_bytes().starts_with(b"/")) {
        // SAFETY: the name is on our stack, has this byte, and nobody reads it meanwhile.
        unsafe { *name.as_ptr().cast_mut().cast() = byte };
    }
}

/// struct sigaction of the kernel, include/linux/signal_types.h.
#[repr(C)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// Ignores signal `number`, or has it do what it does by default.
pub fn set_signal(number: i32, ignored: bool) {
    let action = Action { handler: usize::from(ignored), flags: 0, restorer: 0, mask: 0 };
    let nothing = null::<Action>();
    // SAFETY: the kernel reads `action`, which names no code of ours.
    let _ = unsafe {
        syscall!(Sysno::rt_sigaction, number, &raw const action, nothing, size_of::<u64>())
    };
}

/// The agent's port in the context `cid`: struct sockaddr_vm, include/uapi/linux/vm_sockets.h.
fn address(cid: u32) -> [u8; 16] {
    let mut address = [0u8; 16];
    address[..2].copy_from_slice(&40u16.to_ne_bytes()); // AF_VSOCK
    address[4..8].copy_from_slice(&PORT.to_ne_bytes());
    address[8..12].copy_from_slice(&cid.to_ne_bytes());
    address
}

/// Connects `socket` to the agent's port of the host.
pub fn connect_host(socket: &OwnedFd) -> Result<(), Errno> {
    let address = address(2); // VMADDR_CID_HOST
    // SAFETY: the kernel reads the address.
    check(unsafe { syscall!(Sysno::connect, socket.as_raw_fd(), address.as_ptr(), address.len()) })
        .map(drop)
}

/// Gives `socket` the agent's port, whatever the guest's context is.
pub fn bind_port(socket: &OwnedFd) -> Result<(), Errno> {
    let address = address(u32::MAX); // VMADDR_CID_ANY
    // SAFETY: the kernel reads the address.
    check(unsafe { syscall!(Sysno::bind, socket.as_raw_fd(), address.as_ptr(), address.len()) })
        .map(drop)
}

/// Whether the other end of `socket` is the host: struct sockaddr_vm, VMADDR_CID_HOST.
pub fn is_from_host(socket: &OwnedFd) -> bool {
    let mut address = [0u8; 16];
    let mut len = address.len() as u32;
    let (address_at, len_at) = (address.as_mut_ptr(), &raw mut len);
    // SAFETY: the kernel writes the address, and no more than there is room for.
    let found =
        check(unsafe { syscall!(Sysno::getpeername, socket.as_raw_fd(), address_at, len_at) });
    found.is_ok() && address[8..12] == 2u32.to_ne_bytes()
}

/// ioctl(2) with a request that reads `bytes`.
pub fn control(fd: BorrowedFd<'_>, request: u32, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the callers' requests only read, and no more than is there.
    check(unsafe { syscall!(Sysno::ioctl, fd.as_raw_fd(), request, bytes.as_ptr()) }).map(drop)
}

/// ioctl(2) with a request that reads `bytes` and writes its answer there.
pub fn exchange(fd: BorrowedFd<'_>, request: u32, bytes: &mut [u8]) -> Result<(), Errno> {
    // SAFETY: the callers' requests read and write no more than is there.
    check(unsafe { syscall!(Sysno::ioctl, fd.as_raw_fd(), request, bytes.as_mut_ptr()) }).map(drop)
}

/// Standard input, output or error: 0, 1, 2.
pub fn standard(number: i32) -> BorrowedFd<'static> {
    // SAFETY: we never close them; if they were not open at the start, what uses them fails.
    unsafe { BorrowedFd::borrow_raw(number) }
}
