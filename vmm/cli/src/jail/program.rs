//! A seccomp filter as the kernel takes it: a classic BPF program that inspects a system call (seccomp(2)).
//!
//! The program is written from its end: jumps only go forward, so their targets exist already.

use anyhow::{Context, Result};
use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{seccomp_data, sock_filter};

/// The inputs of a program: offsets of the words of `seccomp_data`.
pub(super) const NUMBER: usize = std::mem::offset_of!(seccomp_data, nr);
/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h) for system calls with x86-64's numbers.
pub(super) const ARCHITECTURE: usize = std::mem::offset_of!(seccomp_data, arch);
const ARGUMENTS: usize = std::mem::offset_of!(seccomp_data, args);

pub(super) const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
pub(super) const AND: u32 = BPF_ALU | BPF_AND | BPF_K;
pub(super) const IF_EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
pub(super) const IF_NOT_LESS: u32 = BPF_JMP | BPF_JGE | BPF_K;
pub(super) const RETURN: u32 = BPF_RET | BPF_K;

/// A jump target: the number of steps that come after it.
#[derive(Clone, Copy)]
pub(super) struct Label(usize);

/// The steps, the last one first.
#[derive(Default)]
pub(super) struct Program(Vec<sock_filter>);

impl Program {
    fn step(&mut self, code: u32, k: u32, jt: u8, jf: u8) -> Label {
        self.0.push(sock_filter { code: code as u16, jt, jf, k });
        Label(self.0.len() - 1)
    }

    /// Ends with `action`, one of SECCOMP_RET_*.
    pub(super) fn end(&mut self, action: u32) -> Label {
        self.step(RETURN, action, 0, 0)
    }

    /// Loads the word at `offset`, then continues with the step written before this.
    pub(super) fn load(&mut self, offset: usize) -> Label {
        self.step(LOAD, offset as u32, 0, 0)
    }

    /// Loads the low half of an argument, then continues with the step written before this.
    pub(super) fn load_argument(&mut self, index: u8) -> Label {
        self.load(ARGUMENTS + size_of::<u64>() * usize::from(index))
    }

    /// Ands the loaded word with `mask`, then continues with the step written before this.
    pub(super) fn and(&mut self, mask: u32) -> Label {
        self.step(AND, mask, 0, 0)
    }

    /// Jumps to `yes` if the loaded word is `value`, else to `no`.
    pub(super) fn if_equal(&mut self, value: u32, yes: Label, no: Label) -> Result<Label> {
        self.branch(IF_EQUAL, value, yes, no)
    }

    /// Jumps to `yes` if the loaded word is `value` or more, else to `no`.
    pub(super) fn if_not_less(&mut self, value: u32, yes: Label, no: Label) -> Result<Label> {
        self.branch(IF_NOT_LESS, value, yes, no)
    }

    fn branch(&mut self, code: u32, value: u32, yes: Label, no: Label) -> Result<Label> {
        let way = |to: Label| u8::try_from(self.0.len() - to.0 - 1).context("too long a filter");
        let (yes, no) = (way(yes)?, way(no)?);
        Ok(self.step(code, value, yes, no))
    }

    /// The program, which begins with the step written last.
    pub(super) fn finish(mut self) -> Vec<sock_filter> {
        self.0.reverse();
        self.0
    }
}
