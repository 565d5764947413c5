//! A seccomp filter as the kernel takes it: classic BPF that looks at a system call (seccomp(2)).
//!
//! It is written from its end, for jumps only go forward: where one leads to is there already.

use anyhow::{Context, Result};
use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{seccomp_data, sock_filter};

/// What can be looked at: offsets of its words.
pub(super) const NUMBER: usize = std::mem::offset_of!(seccomp_data, nr);
/// As `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h) for calls that are numbered as ours.
pub(super) const ARCHITECTURE: usize = std::mem::offset_of!(seccomp_data, arch);
const ARGUMENTS: usize = std::mem::offset_of!(seccomp_data, args);

pub(super) const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
pub(super) const AND: u32 = BPF_ALU | BPF_AND | BPF_K;
pub(super) const IF_EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
pub(super) const IF_NOT_LESS: u32 = BPF_JMP | BPF_JGE | BPF_K;
pub(super) const RETURN: u32 = BPF_RET | BPF_K;

/// A step of a program that can be jumped to: how many come after it.
#[derive(Clone, Copy)]
pub(super) struct Place(usize);

/// Steps, the last one first.
#[derive(Default)]
pub(super) struct Program(Vec<sock_filter>);

impl Program {
    fn step(&mut self, code: u32, k: u32, jt: u8, jf: u8) -> Place {
        self.0.push(sock_filter { code: code as u16, jt, jf, k });
        Place(self.0.len() - 1)
    }

    /// Ends with `action`, one of SECCOMP_RET_*.
    pub(super) fn end(&mut self, action: u32) -> Place {
        self.step(RETURN, action, 0, 0)
    }

    /// Loads the word at `offset`, then does what was written before this.
    pub(super) fn load(&mut self, offset: usize) -> Place {
        self.step(LOAD, offset as u32, 0, 0)
    }

    /// Loads the low half of an argument, then does what was written before this.
    pub(super) fn load_argument(&mut self, index: u8) -> Place {
        self.load(ARGUMENTS + size_of::<u64>() * usize::from(index))
    }

    /// Clears what is not in `mask` of what was loaded, then does what was written before this.
    pub(super) fn and(&mut self, mask: u32) -> Place {
        self.step(AND, mask, 0, 0)
    }

    /// Goes on at `yes` if what was loaded is `value`, else at `no`.
    pub(super) fn if_equal(&mut self, value: u32, yes: Place, no: Place) -> Result<Place> {
        self.branch(IF_EQUAL, value, yes, no)
    }

    /// Goes on at `yes` if what was loaded is `value` or more, else at `no`.
    pub(super) fn if_not_less(&mut self, value: u32, yes: Place, no: Place) -> Result<Place> {
        self.branch(IF_NOT_LESS, value, yes, no)
    }

    fn branch(&mut self, code: u32, value: u32, yes: Place, no: Place) -> Result<Place> {
        let way = |to: Place| u8::try_from(self.0.len() - to.0 - 1).context("too long a filter");
        let (yes, no) = (way(yes)?, way(no)?);
        Ok(self.step(code, value, yes, no))
    }

    /// The program, which starts with the step that was written last.
    pub(super) fn finish(mut self) -> Vec<sock_filter> {
        self.0.reverse();
        self.0
    }
}
