//! This process: its start, and its memory besides guest RAM, of which heap and code are kept small.

use std::ptr;
use std::time::{Duration, Instant};

use rustix::mm::Advice;
use rustix::time::{ClockId, clock_gettime};

/// The start of this process: now less the processor time that it has used. To be called early, before the process has
/// waited for anything.
pub fn start_time() -> Instant {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = Duration::try_from(used).unwrap_or_default();
    let now = Instant::now();
    now.checked_sub(used).unwrap_or(now)
}

/// Returns freed memory of the allocator's to the host: unpacking a kernel takes megabytes, running a machine does not.
pub fn trim_heap() {
    // SAFETY: it may be called at any time, by any thread (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// Unmaps tinyvmm's own code and constants: most of them are for the start, or for another sub-command. The kernel maps
/// what is used again from the page cache, where it stays.
pub fn trim_code() {
    // SAFETY: the callback has the type that the C library expects, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(unmap_constant_segments), ptr::null_mut()) };
}

extern "C" fn unmap_constant_segments(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    const PAGE: u64 = 4096;
    // SAFETY: the C library passes a valid pointer for the length of this call.
    let info = unsafe { &*info };
    // SAFETY: the program has this many headers, for as long as it runs.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let is_constant = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    for header in headers.iter().filter(is_constant) {
        let address = info.dlpi_addr + header.p_vaddr;
        let start = address - address % PAGE;
        let len = (address + header.p_memsz - start) as usize;
        let start = ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: nothing ever writes to this segment, so its pages are those of the file, from which they are mapped
        // again.
        let _ = unsafe { rustix::mm::madvise(start, len, Advice::LinuxDontNeed) };
    }
    0
}

/// Makes no error or panic look for a backtrace: a release has no tables to unwind its stack with (build.rs), and what
/// unwinds without them aborts the process. Before there are other threads.
pub fn forget_backtraces() {
    if cfg!(panic = "abort") {
        for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
            // SAFETY: there is no other thread that could read the environment meanwhile.
            unsafe { std::env::remove_var(name) };
        }
    }
}

/// Has all threads share one heap, from now on. A thread's own heap would grow and shrink apart from the others, and to
/// shrink it the C library opens a file (/proc/sys/vm/overcommit_memory), which the jail forbids.
pub fn share_heap() {
    // SAFETY: it changes a setting of the allocator's, before there are other threads (mallopt(3)).
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Stands in for the C library's function, with which Rust's start finds the end of a stack, to report its overflow.
/// The C library's one reads a text of the kernel's with scanf: a tenth of a megabyte of code that nothing else needs,
/// at each start. Without it a stack overflow is a plain SIGSEGV, as in C. AddressSanitizer needs the real one.
// SAFETY: it has the C library's name, parameters and meaning (pthread_getattr_np(3)), and may fail.
#[cfg(all(target_env = "gnu", not(fuzzing)))]
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_: libc::pthread_t, _: *mut libc::pthread_attr_t) -> libc::c_int {
    libc::ENOSYS
}
