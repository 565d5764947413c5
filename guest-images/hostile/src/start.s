# From the 64-bit Linux entry, or from a SIPI, to Rust code in ring 3 that may touch all memory below 4 GiB: a KVM without
# hardware virtualization runs ring 3, and only that, at full speed. There are no interrupts and no handlers: a fault
# is a triple fault, which ends the machine.

.set USER_DATA, 0x18 | 3
.set USER_CODE, 0x20 | 3
.set STACK, 0x10000

.global _start
_start:
    mov r12d, esi               # the zero page
    mov rax, cr3
    mov rbx, rax
    or qword ptr [rbx], 4       # user access: the PML4's entry,
    mov ecx, 4
1:  or qword ptr [rbx + 0x1000 + rcx * 8 - 8], 4 # the PDPT's
    loop 1b
    mov ecx, 4 * 512
1:  or qword ptr [rbx + 0x2000 + rcx * 8 - 8], 4 # and the page directories', which lie behind it
    loop 1b
    mov cr3, rax
    mov [trampoline_cr3 + rip], eax
    xor ebp, ebp

to_user:                        # EBP: the CPU's number
    mov rax, cr4
    or eax, 0x600               # OSFXSR, OSXMMEXCPT: Rust code uses SSE
    mov cr4, rax
    mov rax, cr0
    and eax, ~4                 # EM off
    or eax, 2                   # MP on
    mov cr0, rax
    lgdt [gdt_pointer + rip]
    mov eax, 0x10
    mov ss, eax
    lea rsp, [stacks + STACK + rip]
    mov eax, ebp
    imul eax, eax, STACK
    add rsp, rax
    mov rbx, rsp
    mov eax, USER_DATA
    mov ds, eax
    mov es, eax
    push USER_DATA
    push rbx
    push 2                      # flags: interrupts off
    push USER_CODE
    lea rax, [in_user + rip]
    push rax
    iretq
in_user:
    mov edi, ebp
    mov esi, r12d
    call rust_main
    ud2

# Copied to 0x8000, where a SIPI starts a CPU, in real mode. What is from `trampoline + 8` on the starter fills in.
.balign 16
.global trampoline
.global trampoline_end
.code16
trampoline:
    jmp 1f
    .balign 8
    .word 5 * 8 - 1             # 8: what LGDT loads
    .long gdt
    .balign 16
trampoline_cr3:
    .long 0                     # 16
    .word 0                     # 20: 0 for ring 3, else how many random port accesses to do
    .word 0                     # 22: the port to write first, with the role of ports
    .byte 0                     # 24: and what to write there
    .balign 4
    .long 0                     # 28: state of the random numbers, not 0
1:  cli
    mov ax, cs
    mov ds, ax
    mov es, ax
    cmp word ptr [20], 0
    jne ports
    .byte 0x66                  # all 32 bits of the base
    lgdt [8]
    mov eax, 0x20               # PAE
    mov cr4, eax
    mov eax, [16]
    mov cr3, eax
    mov ecx, 0xc0000080         # EFER: long mode
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000001          # paging and protection, at once
    mov cr0, eax
    .byte 0x66, 0xea            # jmp 0x08:second_cpu, with a 32-bit offset
    .long second_cpu
    .word 0x08

# Ring 3 has no ports on that KVM. So a CPU is started for them: one write, then random accesses.
ports:
    mov dx, [22]
    mov al, [24]
    out dx, al
1:  mov eax, [28]               # xorshift32
    mov ebx, eax
    shl ebx, 13
    xor eax, ebx
    mov ebx, eax
    shr ebx, 17
    xor eax, ebx
    mov ebx, eax
    shl ebx, 5
    xor eax, ebx
    mov [28], eax
    mov dx, ax                  # any port, or one of the serial port's, or of the clock's
    mov ebx, eax
    shr ebx, 16
    test bl, 1
    jz 2f
    and dx, 7
    add dx, 0x3f8
    test bl, 2
    jz 2f
    and dx, 1
    add dx, 0x70
2:  mov cx, dx                  # but not those that end the machine: 0x64, 0x505, 0x600 to 0x602, 0x700, 0x701
    and cx, 0xfff8
    cmp cx, 0x60
    je 9f
    cmp cx, 0x500
    je 9f
    cmp cx, 0x5f8
    je 9f
    cmp cx, 0x600
    je 9f
    cmp cx, 0x6f8
    je 9f
    cmp cx, 0x700
    je 9f
    mov cx, 64
    xor si, si
    mov di, 0x800
    shr bl, 3
    jz 3f
    dec bl
    jz 4f
    dec bl
    jz 5f
    dec bl
    jz 6f
    dec bl
    jz 7f
    dec bl
    jz 8f
    out dx, al
    jmp 9f
3:  in al, dx
    jmp 9f
4:  in ax, dx
    jmp 9f
5:  in eax, dx
    jmp 9f
6:  out dx, eax
    jmp 9f
7:  rep outsb
    jmp 9f
8:  rep insb
9:  dec word ptr [20]
    jnz 1b
    mov word ptr [22], 0        # done
1:  hlt
    jmp 1b
trampoline_end:
.code64

second_cpu:
    mov ebp, 1
    jmp to_user

# What the compiler calls.
.global memcpy
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
.global memset
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
.global bcmp
bcmp:
    xor eax, eax
    mov rcx, rdx
    cmp ecx, ecx                # equal, if there is nothing to compare
    repe cmpsb
    setne al
    ret

.data
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08: code, ring 0
    .quad 0x00cf93000000ffff    # 0x10: data, ring 0
    .quad 0x00cff3000000ffff    # 0x18: data, ring 3
    .quad 0x00affb000000ffff    # 0x20: code, ring 3
gdt_pointer:
    .word 5 * 8 - 1
    .quad gdt
.bss
.balign 16
stacks: .zero 2 * STACK
.text
