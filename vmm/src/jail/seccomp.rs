//! seccomp filters: which system calls a thread may make once the machine runs, for each kind of thread.
//!
//! A filter is added to that of the thread which started this one; both have to allow a call. `rules` has the lists.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::process::getpid;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter, sock_filter,
};

use super::ThreadKind;
use super::rules::{self, Call, When};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// System calls that a program compares one after another.
const GROUP: usize = 8;

/// Codes of instructions (include/uapi/linux/bpf_common.h), and where arguments are (struct seccomp_data).
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_LESS_NOT: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const NUMBER: u32 = 0;
const SECOND_ARGUMENT: u32 = 24;

/// The programs, one for each kind.
pub(super) struct Filters(Vec<(ThreadKind, BpfProgram)>);

impl Filters {
    /// Compiles them, but that of a kind that few machines have.
    pub(super) fn new() -> Result<Self> {
        let of = |kind| Ok((kind, compile(&rules::of(kind))?));
        let start = Instant::now();
        let usual = ThreadKind::ALL.into_iter().filter(|kind| *kind != ThreadKind::Memory);
        let filters: Vec<_> = usual.map(of).collect::<Result<_>>()?;
        log::debug!("{} filters are made in {:?}", filters.len(), start.elapsed());
        Ok(Self(filters))
    }

    /// Adds that of `kind` to this thread, for good.
    pub(super) fn apply(&self, kind: ThreadKind) -> Result<()> {
        match self.0.iter().find(|(other, _)| *other == kind) {
            Some((_, program)) => Ok(apply_filter(program)?),
            None => Ok(apply_filter(&compile(&rules::of(kind))?)?),
        }
    }
}

/// Gives the main thread, which this is, its filter with [`rules::OPEN`] added.
pub(super) fn apply_to_main_that_opens() -> Result<()> {
    let mut calls = rules::of(ThreadKind::Main);
    calls.push(rules::OPEN);
    Ok(apply_filter(&compile(&calls)?)?)
}

fn compile(calls: &[&[Call]]) -> Result<BpfProgram> {
    let mut rules = Rules::new();
    for Call(number, when) in calls.iter().copied().flatten() {
        let more = conditions(*when)?;
        match rules.get_mut(number) {
            // No rules at all stand for any arguments.
            Some(known) if known.is_empty() || more.is_empty() => known.clear(),
            Some(known) => known.extend(more),
            None => drop(rules.insert(*number, more)),
        }
    }
    let runs_guests = calls.iter().copied().flatten().any(Call::may_run_guests);
    assemble(rules, runs_guests)
}

/// A program that finds the call's number among `rules` in few steps. The kernel runs a new filter once for each
/// system call that there is (seccomp_cache_prepare_bitmap, kernel/seccomp.c), which is most of what a filter costs.
fn assemble(mut rules: Rules, runs_guests: bool) -> Result<BpfProgram> {
    // By descending numbers, each with the least of its numbers.
    let mut groups = Vec::new();
    while let Some(first) = rules.keys().nth(rules.len().saturating_sub(GROUP)).copied() {
        let group = rules.split_off(&first);
        let allow = SeccompFilter::new(
            group,
            SeccompAction::Trap,
            SeccompAction::Allow,
            TargetArch::x86_64,
        )?;
        let least = if rules.is_empty() { 0 } else { first };
        groups.push((least, BpfProgram::try_from(allow)?));
    }
    let (_, any) = groups.first().context("a thread without system calls")?;
    let number_is_loaded = any.iter().position(|step| step.code == LOAD && step.k == NUMBER);
    let start = number_is_loaded.context("a filter that does not look at the call's number")? + 1;
    let mut program = any[..start].to_vec();
    program.extend(exceptions(runs_guests)?);
    let mut ahead = 2 * groups.len();
    for (least, group) in &groups {
        ahead -= 2;
        program.push(sock_filter {
            code: JUMP_IF_LESS_NOT,
            jt: 0,
            jf: 1,
            k: u32::try_from(*least)?,
        });
        program.push(step(JUMP, u32::try_from(ahead)?));
        ahead += group.len() - start;
    }
    program.extend(groups.into_iter().flat_map(|(_, group)| group.into_iter().skip(start)));
    Ok(program)
}

/// Alternatives, one of which has to be true.
fn conditions(when: When) -> Result<Vec<SeccompRule>> {
    let rule = |index, how, value| {
        Ok(SeccompRule::new(vec![SeccompCondition::new(index, Dword, how, value)?])?)
    };
    match when {
        When::Always => Ok(Vec::new()),
        When::Is(index, values) => values.iter().map(|value| rule(index, Eq, *value)).collect(),
        When::Bits(index, mask, value) => Ok(vec![rule(index, MaskedEq(mask), value)?]),
        When::Folder(index) => Ok(vec![rule(index, Eq, rules::folder())?]),
        When::Ourselves(index) => {
            let pid = u64::try_from(getpid().as_raw_nonzero().get())?;
            Ok(vec![rule(index, Eq, pid)?])
        }
    }
}

/// What the library that makes programs cannot say: KVM_RUN, most of all calls, is found at once; and clone3, whose
/// flags are out of a filter's sight, is not there (ENOSYS): the C library uses clone then.
fn exceptions(runs_guests: bool) -> Result<Vec<sock_filter>> {
    let unless_equal_skip = |jf, k| sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf, k };
    let not_there = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let mut steps = Vec::new();
    if runs_guests {
        steps.extend([
            unless_equal_skip(4, u32::try_from(libc::SYS_ioctl)?),
            step(LOAD, SECOND_ARGUMENT),
            unless_equal_skip(1, u32::try_from(rules::KVM_RUN)?),
            step(RETURN, SeccompAction::Allow.into()),
            step(LOAD, NUMBER),
        ]);
    }
    steps.extend([
        unless_equal_skip(1, u32::try_from(libc::SYS_clone3)?),
        step(RETURN, not_there.into()),
    ]);
    Ok(steps)
}

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for kind in ThreadKind::ALL {
            let allowed = rules::of(kind);
            for Call(number, when) in allowed.iter().copied().flatten() {
                // The API's socket is removed at the end.
                let own = kind == ThreadKind::Main && matches!(when, When::Folder(0));
                assert!(own || !never.contains(number), "{kind:?} may make system call {number}");
            }
        }
    }

    /// What the kernel does with a call whose arguments are zero (net/core/filter.c has more instructions).
    fn verdict(program: &BpfProgram, number: u32) -> u32 {
        const ARCH: u32 = 4;
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let jump_if = |yes| usize::from(if yes { step.jt } else { step.jf });
            match step.code {
                LOAD if step.k == NUMBER => loaded = number,
                LOAD if step.k == ARCH => loaded = 0xc000_003e, // AUDIT_ARCH_X86_64
                LOAD => loaded = 0,
                JUMP => at += step.k as usize,
                JUMP_IF_EQUAL => at += jump_if(loaded == step.k),
                JUMP_IF_LESS_NOT => at += jump_if(loaded >= step.k),
                0x54 => loaded &= step.k, // BPF_ALU | BPF_AND | BPF_K
                RETURN => return step.k,
                code => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn a_program_allows_what_its_list_has_and_nothing_else() {
        let trap = u32::from(SeccompAction::Trap);
        for kind in ThreadKind::ALL {
            let calls = rules::of(kind);
            let program = compile(&calls).unwrap();
            for number in (0..500).chain([u32::MAX >> 1, u32::MAX]) {
                let mut listed = calls.iter().copied().flatten();
                let with_zeroes = |when| match when {
                    When::Always | When::Bits(_, _, 0) => true,
                    When::Is(_, values) => values.contains(&0),
                    _ => false,
                };
                let allowed =
                    listed.any(|Call(of, when)| *of == i64::from(number) && with_zeroes(*when));
                let expected = match number {
                    _ if i64::from(number) == libc::SYS_clone3 => {
                        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()).into()
                    }
                    _ if allowed => SeccompAction::Allow.into(),
                    _ => trap,
                };
                assert_eq!(verdict(&program, number), expected, "{kind:?}, system call {number}");
            }
        }
    }

    #[test]
    fn a_main_thread_that_opens_makes_no_file_and_empties_none() {
        let Call(number, When::Bits(2, mask, 0)) = rules::OPEN[0] else { panic!("open") };
        assert_eq!(number, libc::SYS_openat);
        let allowed = |flags: i32| flags as u32 as u64 & mask == 0;
        assert!(
            allowed(libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK) && allowed(libc::O_RDONLY)
        );
        for flag in [libc::O_CREAT, libc::O_TRUNC, libc::O_APPEND, libc::O_TMPFILE, libc::O_PATH] {
            assert!(!allowed(libc::O_RDWR | flag), "{flag:#x}");
        }
        let others = rules::OPEN[1..].iter().map(|call| call.0);
        assert_eq!(others.collect::<Vec<_>>(), [libc::SYS_flock]);
    }

    #[test]
    fn only_cpus_and_what_starts_them_run_guests() {
        for kind in ThreadKind::ALL {
            let runs = rules::of(kind).iter().copied().flatten().any(|call| call.may_run_guests());
            assert_eq!(runs, [ThreadKind::Vcpu, ThreadKind::Starter].contains(&kind), "{kind:?}");
        }
    }
}
