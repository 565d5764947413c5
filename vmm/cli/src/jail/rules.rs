//! The system calls that each kind of thread makes once the machine runs. Nothing is opened then.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};
use kvm_bindings::KVMIO;
use libc::*;

use super::landlock::Kept;
use super::{API, ATTACH, COMMAND, FilterRole, GUARD};
use tinyvmm::wire::TUNSETOFFLOAD;
use tinyvmm::worker::ThreadKind;

/// A system call, and when it is allowed.
#[derive(Clone, Copy)]
pub(super) struct SyscallRule(pub i64, pub Condition);

/// A condition on a call's arguments, of which only the low 32 bits are compared.
#[derive(Clone, Copy)]
pub(super) enum Condition {
    Always,
    /// The argument with this index is one of these.
    Is(u8, &'static [u32]),
    /// The argument with this index, and this mask, is this value.
    Bits(u8, u32, u32),
    /// The argument with this index is this process's id.
    Ourselves(u8),
    /// The argument with this index is the descriptor of a folder of [`Kept`].
    Folder(u8),
}

/// The descriptors of these folders; invalid ones for those that there are not.
static FOLDERS: [AtomicU32; 2] = [AtomicU32::new(u32::MAX), AtomicU32::new(u32::MAX)];

/// Sets the folders. To be called before the main thread's filter is made.
pub(super) fn keep_folders(kept: Kept) {
    for (folder, fd) in [kept.api, kept.names].into_iter().zip(&FOLDERS) {
        let number = folder.map_or(u32::MAX, |folder| folder.as_raw_fd().cast_unsigned());
        fd.store(number, Ordering::SeqCst);
    }
}

/// The descriptors of the folders.
pub(super) fn folders() -> [u32; 2] {
    FOLDERS.each_ref().map(|fd| fd.load(Ordering::SeqCst))
}

use Condition::{Always, Bits, Folder, Is, Ourselves};

/// The lists for a thread with this role; the most frequent calls come first. An error: the role has no list.
pub(super) fn of(role: FilterRole) -> Result<Vec<&'static [SyscallRule]>> {
    let kind = match role {
        // At a reset the main thread takes devices apart, and finishes requests that they have begun.
        FilterRole::Main => return Ok(vec![ANY, DEVICE, START, BUILD, LEAVE, SAVE]),
        FilterRole::Dialer => return Ok(vec![ANY, DIALER]),
        FilterRole::Worker(kind) => kind,
    };
    Ok(match kind {
        ThreadKind::Vcpu => vec![VCPU, ANY],
        ThreadKind::Device => vec![ANY, DEVICE],
        ThreadKind::Network => vec![ANY, NETWORK],
        ThreadKind::Vsock => vec![ANY, VSOCK],
        ThreadKind::VhostUser => vec![ANY, VHOST_USER],
        ThreadKind::Memory => vec![ANY, MEMORY],
        ThreadKind::Console => vec![ANY, CONSOLE],
        // The starter's limits apply to the threads that it starts.
        ThreadKind::Starter => {
            vec![ANY, VCPU, DEVICE, NETWORK, VSOCK, VHOST_USER, MEMORY, CONSOLE, START, STREAMS]
        }
        API => vec![ANY, CLIENTS],
        ATTACH => vec![ANY, CLIENTS, LOG],
        COMMAND => vec![ANY, STREAMS],
        GUARD => vec![ANY],
        ThreadKind::Program(name) => bail!("there are no rules for it: {name}"),
    })
}

const fn always(number: i64) -> SyscallRule {
    SyscallRule(number, Always)
}

/// A KVM ioctl without an argument or with a plain number: `_IO(KVMIO, nr)`.
const fn io(nr: u32) -> u32 {
    KVMIO << 8 | nr
}

/// A KVM ioctl with an argument, `direction` 1 to the kernel, 2 from the kernel, 3 both.
const fn with<T>(direction: u32, nr: u32) -> u32 {
    (direction << 30) | (size_of::<T>() as u32) << 16 | KVMIO << 8 | nr
}

/// Runs a guest until its next exit.
pub(super) const KVM_RUN: u32 = io(0x80);
const KVM_SET_USER_MEMORY_REGION: u32 = with::<kvm_bindings::kvm_userspace_memory_region>(1, 0x46);
const KVM_GET_REGS: u32 = with::<kvm_bindings::kvm_regs>(2, 0x81);
const KVM_REGISTER_COALESCED: u32 = with::<kvm_bindings::kvm_coalesced_mmio_zone>(1, 0x67);
const KVM_UNREGISTER_COALESCED: u32 = with::<kvm_bindings::kvm_coalesced_mmio_zone>(1, 0x68);
/// The terminal's requests: its modes are restored at the end, and by a panic. (Not TIOCSTI.)
const TERMINAL: [u32; 2] = [TCSETS as u32, TCSETS2];
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const PR_SET_VMA: u32 = 0x5356_4d41;

/// Memory must not be executable.
const fn without_exec(number: i64) -> SyscallRule {
    SyscallRule(number, Bits(2, PROT_EXEC as u32, 0))
}

const ANY: &[SyscallRule] = &[
    always(SYS_read),
    always(SYS_write),
    always(SYS_writev),
    always(SYS_pread64), // counters of exits, too
    always(SYS_poll),
    always(SYS_ppoll),
    always(SYS_close),
    SyscallRule(SYS_fcntl, Is(1, &[F_GETFD as u32])), // std's assertion in debug builds
    SyscallRule(SYS_ioctl, Is(1, &TERMINAL)),
    // The allocator, and stacks of threads.
    without_exec(SYS_mmap),
    without_exec(SYS_mprotect),
    always(SYS_munmap),
    always(SYS_mremap),
    always(SYS_brk),
    SyscallRule(SYS_madvise, Is(2, &[MADV_DONTNEED as u32, MADV_FREE as u32])),
    // Locks, time, signals, and the end of threads and of the process.
    always(SYS_futex),
    always(SYS_sched_yield),
    always(SYS_clock_gettime),
    always(SYS_clock_nanosleep),
    always(SYS_nanosleep),
    always(SYS_restart_syscall),
    always(SYS_rt_sigreturn),
    always(SYS_rt_sigprocmask),
    always(SYS_rt_sigaction),
    always(SYS_sigaltstack),
    SyscallRule(SYS_tgkill, Ourselves(0)),
    always(SYS_getpid),
    always(SYS_gettid),
    SyscallRule(SYS_prctl, Is(0, &[PR_GET_NAME as u32, PR_SET_VMA])),
    always(SYS_exit),
    always(SYS_exit_group),
];

const VCPU: &[SyscallRule] = &[SyscallRule(SYS_ioctl, Is(1, &[KVM_RUN, KVM_GET_REGS]))];

const DEVICE: &[SyscallRule] = &[
    always(SYS_io_uring_enter), // of a ring that was made before, and can only read, write and flush
    always(SYS_preadv),
    always(SYS_preadv2),
    always(SYS_pwritev),
    always(SYS_pwrite64),
    always(SYS_fdatasync),
    always(SYS_fallocate),
    always(SYS_getrandom),
    SyscallRule(SYS_madvise, Is(2, &[MADV_REMOVE as u32])),
];

/// To read a wire; what a driver takes of a tap is known once it is ready.
const NETWORK: &[SyscallRule] =
    &[always(SYS_readv), SyscallRule(SYS_ioctl, Is(1, &[TUNSETOFFLOAD]))];

/// To serve the streams of programs of the host, and to receive those that the dialer has connected.
const VSOCK: &[SyscallRule] = &[
    always(SYS_accept4),
    always(SYS_readv),
    always(SYS_recvmsg),
    always(SYS_sendto),
    always(SYS_shutdown),
];

/// To connect Unix sockets, pass them on, and remove the one that the host's programs connect to: in another process.
const DIALER: &[SyscallRule] = &[
    SyscallRule(SYS_socket, Is(0, &[AF_UNIX as u32])),
    always(SYS_connect),
    always(SYS_sendmsg),
    always(SYS_newfstatat),
    always(SYS_unlinkat),
];

/// To have another process begin and end to serve a device, on a socket that exists.
const VHOST_USER: &[SyscallRule] = &[
    always(SYS_sendmsg),
    always(SYS_sendto),
    always(SYS_recvfrom),
    always(SYS_setsockopt),
    always(SYS_shutdown),
];

const MEMORY: &[SyscallRule] = &[
    SyscallRule(SYS_ioctl, Is(1, &[KVM_SET_USER_MEMORY_REGION])),
    always(SYS_fallocate), // of RAM that is a file
];

const CONSOLE: &[SyscallRule] = &[
    SyscallRule(SYS_ioctl, Is(1, &[KVM_REGISTER_COALESCED, KVM_UNREGISTER_COALESCED])),
    // The modes of a terminal that becomes the foreground's only now, to be restored later.
    SyscallRule(SYS_ioctl, Is(1, &[TCGETS as u32, TCGETS2])),
];

/// To serve clients of the API, or of the console, on a socket that exists; none is made.
const CLIENTS: &[SyscallRule] = &[
    always(SYS_accept4),
    always(SYS_recvfrom),
    always(SYS_recvmsg), // with files for a snapshot
    always(SYS_sendto),
    always(SYS_shutdown),
    SyscallRule(SYS_ioctl, Is(1, &[FIONBIO as u32])),
];

/// To serve sockets that are there, and a terminal whose size, modes and foreground change.
const STREAMS: &[SyscallRule] = &[
    always(SYS_recvfrom),
    always(SYS_sendto),
    always(SYS_shutdown),
    SyscallRule(SYS_ioctl, Is(1, &[FIONBIO as u32, TIOCGWINSZ as u32, TCGETS as u32, TCGETS2])),
    always(SYS_eventfd2), // for signals
];

/// To write the console's log.
const LOG: &[SyscallRule] = &[always(SYS_pwrite64)];

/// To remove the API's socket, and the folder of a machine with a name, at the end, and to wait for the dialer's.
const LEAVE: &[SyscallRule] = &[
    SyscallRule(SYS_unlinkat, Folder(0)),
    SyscallRule(SYS_newfstatat, Folder(0)),
    always(SYS_shutdown),
    always(SYS_wait4),
];

/// To exchange a disk's file in a path where Landlock allows opening: an existing file, which stays as it is until the
/// guest writes.
pub(super) const OPEN: &[SyscallRule] = &[
    SyscallRule(SYS_openat, Bits(2, !((O_ACCMODE | O_CLOEXEC | O_NONBLOCK) as u32), 0)),
    // A new file, of a snapshot.
    SyscallRule(SYS_openat, Bits(2, !((O_ACCMODE | O_CLOEXEC) as u32), (O_CREAT | O_EXCL) as u32)),
    always(SYS_flock),
    SyscallRule(SYS_ioctl, Is(1, &[FIONBIO as u32])),
];

/// To write a snapshot into files that a client has sent.
const SAVE: &[SyscallRule] = &[SyscallRule(SYS_ioctl, Is(1, &KVM_SAVE)), always(SYS_pwrite64)];

const KVM_SAVE: [u32; 14] = [
    with::<kvm_bindings::kvm_msr_list>(3, 0x02), // KVM_GET_MSR_INDEX_LIST
    with::<kvm_bindings::kvm_irqchip>(3, 0x62),  // KVM_GET_IRQCHIP
    with::<kvm_bindings::kvm_clock_data>(2, 0x7c), // KVM_GET_CLOCK
    with::<kvm_bindings::kvm_msrs>(3, 0x88),     // KVM_GET_MSRS
    with::<kvm_bindings::kvm_lapic_state>(2, 0x8e), // KVM_GET_LAPIC
    with::<kvm_bindings::kvm_cpuid2>(3, 0x91),   // KVM_GET_CPUID2
    with::<kvm_bindings::kvm_mp_state>(2, 0x98), // KVM_GET_MP_STATE
    with::<kvm_bindings::kvm_pit_state2>(2, 0x9f), // KVM_GET_PIT2
    with::<kvm_bindings::kvm_vcpu_events>(2, 0x9f), // KVM_GET_VCPU_EVENTS
    with::<kvm_bindings::kvm_debugregs>(2, 0xa1), // KVM_GET_DEBUGREGS
    io(0xa3),                                    // KVM_GET_TSC_KHZ
    with::<kvm_bindings::kvm_xsave>(2, 0xa4),    // KVM_GET_XSAVE
    with::<kvm_bindings::kvm_xcrs>(2, 0xa6),     // KVM_GET_XCRS
    with::<kvm_bindings::kvm_device_attr>(1, 0xe2), // KVM_GET_DEVICE_ATTR
];

/// To start threads; also what a new thread needs until it has a filter of its own.
const START: &[SyscallRule] = &[
    // A thread of this process, in no new namespace.
    SyscallRule(SYS_clone, Bits(0, (CLONE_THREAD | NAMESPACES) as u32, CLONE_THREAD as u32)),
    always(SYS_set_robust_list),
    always(SYS_rseq),
    always(SYS_sched_getaffinity),
    SyscallRule(SYS_prctl, Is(0, &[PR_SET_NAME as u32, PR_SET_NO_NEW_PRIVS as u32])),
    always(SYS_seccomp),
    always(SYS_eventfd2), // for a thread's StopFlag
];
const NAMESPACES: i32 = CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET;

/// To build the machine again after a reset, of open files, and to write the boot report.
const BUILD: &[SyscallRule] = &[
    SyscallRule(SYS_ioctl, Is(1, &KVM_BUILD)),
    SyscallRule(SYS_fcntl, Is(1, &[F_DUPFD_CLOEXEC as u32])),
    always(SYS_lseek),
    always(SYS_readv),
    always(SYS_fstat),
    SyscallRule(SYS_newfstatat, Bits(3, AT_EMPTY_PATH as u32, AT_EMPTY_PATH as u32)),
    SyscallRule(SYS_statx, Bits(2, AT_EMPTY_PATH as u32, AT_EMPTY_PATH as u32)),
    always(SYS_memfd_create), // for an unpacked kernel
    always(SYS_ftruncate),
];

const KVM_BUILD: [u32; 25] = [
    io(0x01),                                  // KVM_CREATE_VM
    io(0x03),                                  // KVM_CHECK_EXTENSION
    io(0x04),                                  // KVM_GET_VCPU_MMAP_SIZE
    with::<kvm_bindings::kvm_cpuid2>(3, 0x05), // KVM_GET_SUPPORTED_CPUID
    io(0x41),                                  // KVM_CREATE_VCPU
    KVM_SET_USER_MEMORY_REGION,
    io(0x47),             // KVM_SET_TSS_ADDR
    with::<u64>(1, 0x48), // KVM_SET_IDENTITY_MAP_ADDR
    io(0x60),             // KVM_CREATE_IRQCHIP
    KVM_REGISTER_COALESCED,
    KVM_UNREGISTER_COALESCED,
    with::<kvm_bindings::kvm_irqfd>(1, 0x76), // KVM_IRQFD
    with::<kvm_bindings::kvm_pit_config>(1, 0x77), // KVM_CREATE_PIT2
    with::<kvm_bindings::kvm_ioeventfd>(1, 0x79), // KVM_IOEVENTFD
    KVM_GET_REGS,
    with::<kvm_bindings::kvm_regs>(1, 0x82),   // KVM_SET_REGS
    with::<kvm_bindings::kvm_sregs>(2, 0x83),  // KVM_GET_SREGS
    with::<kvm_bindings::kvm_sregs>(1, 0x84),  // KVM_SET_SREGS
    with::<kvm_bindings::kvm_msrs>(1, 0x89),   // KVM_SET_MSRS
    with::<kvm_bindings::kvm_cpuid2>(1, 0x90), // KVM_SET_CPUID2
    with::<kvm_bindings::kvm_xcrs>(1, 0xa7),   // KVM_SET_XCRS
    io(0xce),                                  // KVM_GET_STATS_FD
    io(0xad),                                  // KVM_KVMCLOCK_CTRL
    TCGETS as u32,                             // is this a terminal?
    TCGETS2,
];
