"""Which system calls the seccomp filters of a thread let through, asked of the kernel and worked out here."""

import ctypes
import os
import struct
from typing import Iterable, List, Optional, Set, Tuple

from comparing.system import LIBC

SEIZE, INTERRUPT, DETACH, GET_FILTER = 0x4206, 0x4207, 17, 0x420C
WALL = 0x40000000
ARCH = 0xC000003E  # AUDIT_ARCH_X86_64
DENIALS = (0x80000000, 0x00000000, 0x00030000, 0x00050000)  # kill the process, kill the thread, trap, errno

Instruction = Tuple[int, int, int, int]
LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, tid: int, number: int = 0, data: Optional[ctypes.Array] = None) -> int:
    result = LIBC.ptrace(request, tid, number, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace: {os.strerror(ctypes.get_errno())}")
    return result


def of_thread(tid: int) -> List[List[Instruction]]:
    """The programs of thread `tid`. Needs root, and no filter of our own (PTRACE_SECCOMP_GET_FILTER)."""
    with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as status:
        if "Seccomp:\t2" not in status.read():
            return []
    _ptrace(SEIZE, tid)
    programs = []
    try:
        _ptrace(INTERRUPT, tid)
        os.waitpid(tid, WALL)
        while True:
            length = _ptrace(GET_FILTER, tid, len(programs))
            data = ctypes.create_string_buffer(length * 8)
            _ptrace(GET_FILTER, tid, len(programs), data)
            programs.append(list(struct.iter_unpack("HBBI", data.raw)))
    except FileNotFoundError:  # there are no more
        return programs
    finally:
        _ptrace(DETACH, tid)


def outcomes(program: List[Instruction], number: int) -> Set[int]:
    """What the classic BPF program may return for call `number`, its arguments being anything."""
    known = {0: number, 4: ARCH}
    todo, seen, found = [(0, None)], set(), set()
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        at, value = state
        code, true, false, constant = program[at]
        if code == 0x20:  # load a word of the call
            todo.append((at + 1, known.get(constant)))
        elif code == 0x06:  # return
            found.add(constant & 0xFFFF0000)
        elif code == 0x05:  # jump
            todo.append((at + 1 + constant, value))
        elif code in (0x15, 0x25, 0x35, 0x45):  # jump if equal, greater, greater or equal, has bits
            for way in _ways(code, value, constant):
                todo.append((at + 1 + (true if way else false), value))
        elif code == 0x54:  # and
            todo.append((at + 1, None if value is None else value & constant))
        else:
            raise ValueError(f"unknown instruction {code:#x} in a seccomp filter")
    return found


def _ways(code: int, value: Optional[int], constant: int) -> Tuple[bool, ...]:
    if value is None:
        return (True, False)
    return ({0x15: value == constant, 0x25: value > constant, 0x35: value >= constant, 0x45: bool(value & constant)}[code],)


def of_kernel(functions: Iterable[str]) -> Set[int]:
    """The numbers of x86-64's system calls, of those that libseccomp knows, whose __x64_sys_NAME a kernel has."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise ValueError(f"{error}; runc comes with it") from None
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    names = {"umount2" if name == "umount" else name for name in functions}
    found = {number: library.seccomp_syscall_resolve_num_arch(ARCH, number) for number in range(1024)}
    return {number for number, name in found.items() if name and name.decode() in names}


def allowed(programs: List[List[Instruction]], calls: Set[int]) -> Tuple[Set[int], Set[int]]:
    """Those of `calls` that pass with some arguments, and those of them that pass with all."""
    some, always = set(calls), set(calls)
    for program in programs:
        for number in calls:
            found = outcomes(program, number)
            if not found - set(DENIALS):
                some.discard(number)
            if found & set(DENIALS):
                always.discard(number)
    return some, always
