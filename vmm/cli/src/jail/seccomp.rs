//! seccomp filters: which system calls a thread may make once the machine runs, for each kind of thread.
//!
//! A thread inherits the filter of the thread that started it; both have to allow a call. `rules` has the lists.
//!
//! The kernel runs a new filter once for each system call number (seccomp_cache_prepare_bitmap, kernel/seccomp.c) and
//! compiles it, on each thread anew: a short filter that finds a number in few steps starts a machine sooner.

use std::collections::BTreeMap;
use std::slice::from_ref;

use anyhow::{Context, Result, ensure};
use libc::{
    ENOSYS, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_TRAP, SYS_clone3, SYS_ioctl,
    sock_filter,
};
use rustix::process::getpid;

use tinyvmm::arch::AUDIT_ARCH;

use super::program::{ARCHITECTURE, Label, NUMBER, Program};
use super::rules::{self, Condition, SyscallRule};
use super::{FilterRole, raw};

/// Numbers in a group: one step skips a whole group, within it numbers are compared one after another.
const GROUP: usize = 12;

/// Adds the filter of `role` to this thread, for good.
pub(super) fn apply(role: FilterRole) -> Result<()> {
    Ok(raw::add_filter(&compile(&rules::of(role)?)?)?)
}

/// Gives this thread, the main one, its filter with [`rules::OPEN`] added.
pub(super) fn apply_to_main_that_opens() -> Result<()> {
    let mut calls = rules::of(FilterRole::Main)?;
    calls.push(rules::OPEN);
    Ok(raw::add_filter(&compile(&calls)?)?)
}

/// The ends of a program.
struct Ends {
    allow: Label,
    trap: Label,
}

fn compile(calls: &[&[SyscallRule]]) -> Result<Vec<sock_filter>> {
    let mut rules = by_number(calls)?;
    let ioctl = rules.remove(&number(SYS_ioctl)?);
    let mut program = Program::default();
    let ends = Ends { allow: program.end(SECCOMP_RET_ALLOW), trap: program.end(SECCOMP_RET_TRAP) };
    let mut start = search(&mut program, &rules.into_iter().collect::<Vec<_>>(), &ends)?;
    // clone3's flags are in memory that a filter cannot read. With ENOSYS the C library uses clone.
    let not_there = program.end(SECCOMP_RET_ERRNO | ENOSYS.cast_unsigned());
    start = program.if_equal(number(SYS_clone3)?, not_there, start)?;
    // KVM_RUN, the most frequent call, is compared first.
    if let Some(ioctl) = ioctl {
        call(&mut program, (number(SYS_ioctl)?, &ioctl), &ends, start)?;
    }
    let start = program.load(NUMBER);
    program.if_equal(AUDIT_ARCH, start, ends.trap)?;
    program.load(ARCHITECTURE);
    Ok(program.finish())
}

/// Conditions by number: a call is allowed if one of them holds, or if its list is empty.
fn by_number(calls: &[&[SyscallRule]]) -> Result<BTreeMap<u32, Vec<Condition>>> {
    let mut rules = BTreeMap::<_, Vec<_>>::new();
    for SyscallRule(call, when) in calls.iter().copied().flatten() {
        let number = number(*call)?;
        match (rules.get_mut(&number), when) {
            (_, Condition::Always) => drop(rules.insert(number, Vec::new())),
            (None, when) => drop(rules.insert(number, vec![*when])),
            (Some(cases), when) if !cases.is_empty() => cases.push(*when),
            (Some(_), _) => {}
        }
    }
    Ok(rules)
}

fn number(call: i64) -> Result<u32> {
    u32::try_from(call).context("no number of a system call")
}

/// Searches for the loaded number among `rules`, which are sorted.
fn search(program: &mut Program, rules: &[(u32, Vec<Condition>)], ends: &Ends) -> Result<Label> {
    let (mut start, mut least_above) = (ends.trap, None);
    for group in rules.chunks(GROUP).rev() {
        let above = start;
        start = ends.trap;
        for (number, cases) in group.iter().rev() {
            start = call(program, (*number, cases), ends, start)?;
        }
        if let Some(least) = least_above {
            start = program.if_not_less(least, above, start)?;
        }
        least_above = group.first().map(|(number, _)| *number);
    }
    Ok(start)
}

/// Compares the number, then the arguments; other numbers jump to `otherwise`.
fn call(
    program: &mut Program,
    (number, cases): (u32, &[Condition]),
    ends: &Ends,
    otherwise: Label,
) -> Result<Label> {
    let (pid, folders) = (getpid().as_raw_nonzero().get().cast_unsigned(), rules::folders());
    let mut start = if cases.is_empty() { ends.allow } else { ends.trap };
    for when in cases.iter().rev() {
        let (index, mask, values) = match when {
            Condition::Always => return program.if_equal(number, ends.allow, otherwise),
            Condition::Is(index, values) => (*index, u32::MAX, *values),
            Condition::Bits(index, mask, value) => (*index, *mask, from_ref(value)),
            Condition::Ourselves(index) => (*index, u32::MAX, from_ref(&pid)),
            Condition::Folder(index) => (*index, u32::MAX, &folders[..]),
        };
        ensure!(!values.is_empty(), "a call that is never allowed");
        for value in values.iter().rev() {
            start = program.if_equal(*value, ends.allow, start)?;
        }
        if mask != u32::MAX {
            program.and(mask);
        }
        start = program.load_argument(index);
    }
    program.if_equal(number, start, otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::program::{AND, IF_EQUAL, IF_NOT_LESS, LOAD, RETURN};
    use tinyvmm::worker::ThreadKind;

    #[test]
    fn no_thread_may_open_connect_run_or_trace_anything() {
        let never = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_creat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            libc::SYS_rename,
            libc::SYS_setuid,
            libc::SYS_keyctl,
            libc::SYS_perf_event_open,
            libc::SYS_memfd_secret,
            libc::SYS_pidfd_getfd,
            libc::SYS_sendmsg,
        ];
        for role in FilterRole::ALL {
            let allowed = rules::of(role).unwrap();
            for SyscallRule(number, when) in allowed.iter().copied().flatten() {
                let own = match role {
                    // The main thread removes the API's socket at the end.
                    FilterRole::Main => matches!(when, Condition::Folder(0)),
                    // The dialer is no thread of this process.
                    FilterRole::Dialer => {
                        [libc::SYS_socket, libc::SYS_connect, libc::SYS_sendmsg, libc::SYS_unlinkat]
                            .contains(number)
                    }
                    // Descriptors go to a process that serves a device; the starter's limits apply to that thread.
                    FilterRole::Worker(ThreadKind::VhostUser | ThreadKind::Starter) => {
                        *number == libc::SYS_sendmsg
                    }
                    FilterRole::Worker(_) => false,
                };
                assert!(own || !never.contains(number), "{role:?} may make system call {number}");
            }
        }
    }

    /// The kernel's verdict on a call all of whose arguments are `argument` (net/core/filter.c has more steps).
    fn verdict(program: &[sock_filter], arch: u32, number: u32, argument: u64) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let jump_if = |yes| usize::from(if yes { step.jt } else { step.jf });
            match u32::from(step.code) {
                LOAD if step.k == NUMBER as u32 => loaded = number,
                LOAD if step.k == ARCHITECTURE as u32 => loaded = arch,
                LOAD if (16..64).contains(&step.k) && step.k.is_multiple_of(8) => {
                    loaded = argument as u32
                }
                AND => loaded &= step.k,
                IF_EQUAL => at += jump_if(loaded == step.k),
                IF_NOT_LESS => at += jump_if(loaded >= step.k),
                RETURN => return step.k,
                code => panic!("{code:#x}"),
            }
        }
    }

    fn allows(when: Condition, argument: u64) -> bool {
        let argument = argument as u32;
        match when {
            Condition::Always => true,
            Condition::Is(_, values) => values.contains(&argument),
            Condition::Bits(_, mask, value) => argument & mask == value,
            Condition::Ourselves(_) => argument == std::process::id(),
            Condition::Folder(_) => rules::folders().contains(&argument),
        }
    }

    #[test]
    fn a_program_allows_what_its_list_has_and_nothing_else() {
        let mut arguments = vec![0, 1, 7, u64::MAX, 1 << 32, std::process::id().into()];
        arguments.extend((0..32).map(|bit| 1 << bit));
        for SyscallRule(_, when) in
            FilterRole::ALL.into_iter().flat_map(|role| rules::of(role).unwrap()).flatten()
        {
            match *when {
                Condition::Is(_, values) => arguments.extend(values.iter().map(|v| u64::from(*v))),
                Condition::Bits(_, mask, value) => {
                    arguments.extend([u64::from(value), u64::from(value | !mask), mask.into()]);
                }
                _ => {}
            }
        }
        for role in FilterRole::ALL {
            let mut calls = rules::of(role).unwrap();
            if role == FilterRole::Main {
                calls.push(rules::OPEN); // no list is longer
            }
            let program = compile(&calls).unwrap();
            assert!(program.len() < 200, "{role:?}: {}", program.len());
            for number in (0..500).chain([1 << 30, u32::MAX >> 1, u32::MAX]) {
                let listed = calls.iter().copied().flatten();
                let cases: Vec<_> = listed.filter(|call| call.0 == i64::from(number)).collect();
                for argument in &arguments {
                    let expected = match number {
                        _ if i64::from(number) == SYS_clone3 => SECCOMP_RET_ERRNO | ENOSYS as u32,
                        _ if cases.iter().any(|call| allows(call.1, *argument)) => {
                            SECCOMP_RET_ALLOW
                        }
                        _ => SECCOMP_RET_TRAP,
                    };
                    let found = verdict(&program, AUDIT_ARCH, number, *argument);
                    assert_eq!(found, expected, "{role:?}, call {number} with {argument:#x}");
                    // AUDIT_ARCH_I386: other calls have these numbers.
                    let found = verdict(&program, 0x4000_0003, number, *argument);
                    assert_eq!(found, SECCOMP_RET_TRAP);
                }
            }
        }
    }

    #[test]
    fn a_main_thread_that_opens_empties_no_file_and_makes_only_new_ones() {
        let SyscallRule(number, Condition::Bits(2, mask, 0)) = rules::OPEN[0] else {
            panic!("open")
        };
        assert_eq!(number, libc::SYS_openat);
        let allowed = |flags: i32| flags as u32 & mask == 0;
        assert!(
            allowed(libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK) && allowed(libc::O_RDONLY)
        );
        for flag in [libc::O_CREAT, libc::O_TRUNC, libc::O_APPEND, libc::O_TMPFILE, libc::O_PATH] {
            assert!(!allowed(libc::O_RDWR | flag), "{flag:#x}");
        }
        let others = rules::OPEN[1..].iter().map(|call| call.0);
        assert_eq!(
            others.collect::<Vec<_>>(),
            [libc::SYS_openat, libc::SYS_flock, libc::SYS_ioctl]
        );
        let SyscallRule(_, Condition::Bits(2, mask, value)) = rules::OPEN[1] else {
            panic!("make")
        };
        let new = libc::O_CREAT | libc::O_EXCL;
        for (flags, allowed) in [
            (new | libc::O_WRONLY | libc::O_CLOEXEC, true),
            (new | libc::O_RDWR, true),
            (libc::O_CREAT | libc::O_RDWR, false),
            (new | libc::O_TRUNC, false),
            (new | libc::O_PATH, false),
        ] {
            assert_eq!(flags as u32 & mask == value, allowed, "{flags:#x}");
        }
    }

    #[test]
    fn only_cpus_and_what_starts_them_run_guests() {
        for role in FilterRole::ALL {
            let runs = rules::of(role).unwrap().iter().copied().flatten().any(|SyscallRule(number, when)| {
                *number == SYS_ioctl
                    && matches!(when, Condition::Is(1, requests) if requests.contains(&rules::KVM_RUN))
            });
            assert_eq!(
                runs,
                [ThreadKind::Vcpu, ThreadKind::Starter].map(FilterRole::Worker).contains(&role),
                "{role:?}"
            );
        }
    }
}
