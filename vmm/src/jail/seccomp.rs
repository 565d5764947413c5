//! seccomp filters: which system calls a thread may make once the machine runs, for each kind of thread.
//!
//! A filter is added to that of the thread which started this one; both have to allow a call. `rules` has the lists.

use std::collections::BTreeMap;

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

/// The programs, one for each kind.
pub(super) struct Filters(Vec<(ThreadKind, BpfProgram)>);

impl Filters {
    /// Compiles them.
    pub(super) fn new() -> Result<Self> {
        let of = |kind| Ok((kind, compile(&rules::of(kind))?));
        Ok(Self(ThreadKind::ALL.into_iter().map(of).collect::<Result<_>>()?))
    }

    /// Adds that of `kind` to this thread, for good.
    pub(super) fn apply(&self, kind: ThreadKind) -> Result<()> {
        let filter = self.0.iter().find(|(other, _)| *other == kind);
        let (_, program) = filter.context("no filter for this thread")?;
        Ok(apply_filter(program)?)
    }
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
    let filter =
        SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    let mut program: BpfProgram = filter.try_into()?;
    deny_clone3(&mut program)?;
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
        When::Ourselves(index) => {
            let pid = u64::try_from(getpid().as_raw_nonzero().get())?;
            Ok(vec![rule(index, Eq, pid)?])
        }
    }
}

/// clone3's flags are out of a filter's sight, so that it is not there (ENOSYS), and the C library uses clone.
fn deny_clone3(program: &mut BpfProgram) -> Result<()> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let number_is_loaded = program.iter().position(|step| step.code == LOAD && step.k == 0);
    let at = number_is_loaded.context("a filter that does not look at the call's number")? + 1;
    let clone3 = u32::try_from(libc::SYS_clone3)?;
    let not_there = u32::from(SeccompAction::Errno(libc::ENOSYS.cast_unsigned()));
    let steps = [
        sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: clone3 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: not_there },
    ];
    program.splice(at..at, steps);
    Ok(())
}
