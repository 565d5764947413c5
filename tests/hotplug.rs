//! Memory that is plugged and unplugged: the guest's CPUs and devices read and write there.

use crate::api::{listening, vmm};
use crate::fixture::Vmm;
use crate::guests::guest;
use tinyvmm::layout::{self, MIB};

guest!(
    /// A guest of 64 MiB: once memory is requested, it plugs and unplugs the first 2 MiB, and reads what is there; then
    /// it has the random number generator write where nothing is plugged. It powers off when nothing is requested.
    plugs_memory,
    "mov esp, 0x280000",
    "mov edi, 0x200000",
    "mov rbx, cr3",
    "mov rbx, [rbx]", // to the page directory pointers
    "and rbx, -4096",
    "mov qword ptr [rbx + 4 * 8], 0x80003",
    "mov rax, 0x100000083",
    "mov [0x80000], rax",
    "mov rax, 0x100200083",
    "mov [0x80008], rax",
    "mov r8, 0x100000000", // the first block
    "mov r9, 0x100200000", // the second
    "mov ebx, 0xd0001000", // virtio-mem, with VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    "mov ebp, 0x300000",
    "mov r10d, 2",
    "call 10f",
    // A request of 24 bytes, and room for an answer of 10.
    "mov qword ptr [0x300000], 0x303000",
    "mov dword ptr [0x300008], 24",
    "mov dword ptr [0x30000c], 0x10001",
    "mov qword ptr [0x300010], 0x303100",
    "mov dword ptr [0x300018], 10",
    "mov dword ptr [0x30001c], 2",
    r#"say "ready\n""#,
    "2: mov eax, [rbx + 0x100 + 48]", // requested_size
    "test eax, eax",
    "jz 2b",
    "mov rax, [r8]", // 0: nothing there
    "stosq",
    "mov qword ptr [r8], 0x55",
    "mov rax, [r8]", // 1: still nothing
    "stosq",
    "xor ecx, ecx", // 2: plug
    "call 20f",
    "mov rax, [r8]", // 3: zero
    "stosq",
    "mov rax, 0x1122334455667788",
    "mov [r8], rax",
    "mov rax, [r8]", // 4: what was written
    "stosq",
    "mov rax, [r9]", // 5: nothing
    "stosq",
    "mov ecx, 1", // 6: unplug
    "call 20f",
    "mov rax, [r8]", // 7: nothing
    "stosq",
    "xor ecx, ecx", // 8: plug
    "call 20f",
    "mov rax, [r8]", // 9: zero
    "stosq",
    "xor ecx, ecx", // 10: plug what is plugged
    "call 20f",
    "xchg r8, r9",
    "xor ecx, ecx", // 11: plug more than is requested
    "call 20f",
    "xchg r8, r9",
    "mov esi, 0x200000",
    "dump 96",
    "mov ebx, 0xd0000000", // the random number generator
    "mov ebp, 0x310000",
    "xor r10d, r10d",
    "call 10f",
    "mov [0x310000], r8", // to the block that is there
    "mov dword ptr [0x310008], 8",
    "mov dword ptr [0x31000c], 2",
    "mov [0x310010], r9", // and to the one that is not
    "mov dword ptr [0x310018], 8",
    "mov dword ptr [0x31001c], 2",
    "mov word ptr [0x311006], 1",
    "mov word ptr [0x311002], 1",
    "mov dword ptr [rbx + 0x50], 0",
    "3: cmp word ptr [0x312002], 1",
    "jne 3b",
    r#"say "\nDMA\n""#,
    "mov ebx, 0xd0000000",
    "mov word ptr [0x311002], 2",
    "mov dword ptr [rbx + 0x50], 0",
    "4: test dword ptr [rbx + 0x70], 0x40", // DEVICE_NEEDS_RESET
    "jz 4b",
    r#"say "refused\n""#,
    "mov ebx, 0xd0001000",
    "5: mov eax, [rbx + 0x100 + 48]",
    "test eax, eax",
    "jnz 5b",
    "power_off",
    // Sets up the device at RBX, with features R10 and a queue of 8 at RBP.
    "10: mov dword ptr [rbx + 0x70], 3",
    "mov dword ptr [rbx + 0x24], 1",
    "mov dword ptr [rbx + 0x20], 1",
    "mov dword ptr [rbx + 0x24], 0",
    "mov dword ptr [rbx + 0x20], r10d",
    "mov dword ptr [rbx + 0x70], 11",
    "mov dword ptr [rbx + 0x30], 0",
    "mov dword ptr [rbx + 0x38], 8",
    "mov [rbx + 0x80], ebp",
    "lea eax, [rbp + 0x1000]",
    "mov [rbx + 0x90], eax",
    "add eax, 0x1000",
    "mov [rbx + 0xa0], eax",
    "mov dword ptr [rbx + 0x44], 1",
    "mov dword ptr [rbx + 0x70], 15",
    "ret",
    // Sends request ECX with the block at R8 to virtio-mem; stores the response.
    "20: mov [0x303000], rcx",
    "mov [0x303008], r8",
    "mov qword ptr [0x303010], 1",
    "mov eax, [0x301000]",
    "add eax, 0x10000",
    "mov [0x301000], eax",
    "mov dword ptr [rbx + 0x50], 0",
    "shr eax, 16",
    "21: cmp [0x302002], ax",
    "jne 21b",
    "movzx eax, word ptr [0x303100]",
    "stosq",
    "ret",
);

#[test]
fn what_is_not_plugged_is_nowhere() {
    let args = ["--mem", "64M,max=128M", "--balloon", "off"];
    let (running, client) = listening(vmm().guest(plugs_memory).args(args).start().prints("ready"));
    assert_eq!(layout::room(64 * MIB, 64 * MIB), 4 * layout::GIB..4 * layout::GIB + 64 * MIB);
    let whole = r#"{"requested_size_mib":65}"#;
    client.refuses("PATCH", "/hotplug/memory", whole, &["requested_size_mib: 65", "64 can be"]);
    client.refuses("PATCH", "/hotplug/memory", r#"{"requested_size_mib":3}"#, &["blocks of 2 MiB"]);
    let ctl = |size: &str| client.ctl(&["memory", size]);
    ctl("5G").refuses(1, &["memory 5G", "128M in all"]);
    ctl("32M").refuses(1, &["memory 32M", "balloon"]);
    ctl("66M").exits(0).silently();
    let running = running.prints("refused");
    let config = client.get("/hotplug/memory");
    for (field, mib) in [("total", 64), ("requested", 2), ("plugged", 2), ("block", 2), ("slot", 2)]
    {
        assert_eq!(config[format!("{field}_size_mib")], mib, "{config}");
    }
    assert_eq!(client.get("/tinyvmm/stats")["memory_kib"]["plugged"], 2048);
    client.ctl(&["memory"]).exits(0).prints("plugged_size_mib             2").silently();
    client.ctl(&["status"]).exits(0).prints("memory plugged_size_mib      2").silently();
    ctl("64M").exits(0).silently();
    let outcome = running.wait().exits(0).says(&["rng, queue 0: a descriptor that leaves RAM"]);
    let printed = &outcome.stdout[b"ready\n".len()..][..96];
    let words: Vec<_> = printed.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
    let (nothing, written) = (u64::MAX, 0x1122_3344_5566_7788);
    let (ack, nack, error) = (0, 1, 3);
    let there = [ack, 0, written, nothing];
    let gone_and_back = [ack, nothing, ack, 0];
    let expected = [&[nothing, nothing], &there[..], &gone_and_back, &[error, nack]].concat();
    assert_eq!(words, expected, "{words:x?}");
}

#[cfg(debug_assertions)]
#[test]
fn the_thread_that_plugs_has_a_filter_of_its_own() {
    let vmm = Vmm::new().guest(plugs_memory).args([
        "--mem",
        "64M,max=128M",
        "--balloon",
        "off",
        "--api-sock",
        "api.sock",
    ]);
    let outcome = vmm.env("TINYVMM_BREAK_OUT", "Memory").run().exits(10);
    outcome.says(&["the jail", "thread mem made the system call openat (257)"]);
}

#[test]
fn memory_that_cannot_be_plugged_is_refused() {
    let refused = |mem: &str, words: &[&str]| {
        let vmm = Vmm::new().guest(plugs_memory).args(["--mem", mem]);
        vmm.run().refuses(2, &[&["--mem"], words].concat());
    };
    refused("64M,max=32M", &["max=32M is less"]);
    refused("64M,min=32M", &["max=SIZE"]);
    refused("63M,max=128M", &["blocks of 2 MiB"]);
    refused("64M,max=2P", &["the most to be added"]);
    let huge = Vmm::new().guest(plugs_memory).args(["--mem", "64M,max=128M", "--hugepages"]);
    huge.run().refuses(2, &["--hugepages", "leave one out"]);
}
