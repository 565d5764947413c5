//! CPU templates: what they change is what the guest finds.

use std::process::Stdio;

use serde_json::{Value, json};

use super::{Client, listening, vmm};
use crate::fixture::{Dir, Running, Vmm};
use crate::guests::{self, guest};

const START: &str = r#"{"action_type":"InstanceStart"}"#;

guest!(
    /// For each byte that is typed prints EAX of CPUID leaf 1 and the low half of MSR 0x1a0; powers off on 'q'.
    looks_at_its_cpu,
    r#"say "ready\n""#,
    "2: mov edx, {com1} + 5",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov edx, {com1}",
    "in al, dx",
    "cmp al, 'q'",
    "je 3f",
    "mov eax, 1",
    "xor ecx, ecx",
    "cpuid",
    "mov [0x200000], eax",
    "mov ecx, 0x1a0",
    "rdmsr",
    "mov [0x200004], eax",
    "mov byte ptr [0x200008], 10",
    "mov esi, 0x200000",
    "mov edx, {com1}",
    "dump 9",
    "jmp 2b",
    "3: power_off",
);

/// A model of processor, and an MSR, that are letters.
fn letters() -> Value {
    let bitmap = |text: [u8; 4]| format!("0b{:032b}", u32::from_le_bytes(text));
    json!({
        "cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
            {"register": "eax", "bitmap": bitmap(*b"cpid")},
        ]}],
        "msr_modifiers": [{"addr": "0x1a0", "bitmap": bitmap(*b"msr!")}],
    })
}

fn waiting(args: &[&str]) -> (Running, Client) {
    let vmm = vmm().file("vmlinux", guests::elf(&looks_at_its_cpu())).args(args);
    let (running, client) = listening(vmm.stdin(Stdio::piped()).start());
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    (running, client)
}

#[test]
fn the_guest_finds_what_a_template_changes_and_so_do_its_copies() {
    let dir = Dir::new();
    let path = |name: &str| dir.path(name).display().to_string();
    let (running, client) = waiting(&["--snapshots", &path(".")]);
    client.does("PUT", "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":32}"#);
    client.does("PUT", "/cpu-config", &letters().to_string());
    assert_eq!(client.get("/vm/config")["cpu-config"], Value::Null);
    client.does("PUT", "/actions", START);
    let running = running.prints("ready").types("x").prints("cpidmsr!");
    client.does("PATCH", "/vm", r#"{"state":"Paused"}"#);
    let files =
        format!(r#""snapshot_path":"{}","mem_file_path":"{}""#, path("state"), path("memory"));
    client.does("PUT", "/snapshot/create", &format!("{{{files}}}"));
    client.does("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    running.types("q").wait().exits(0).silently();

    let (copy, client) = listening(vmm().stdin(Stdio::piped()).start());
    client.does("PUT", "/snapshot/load", &format!(r#"{{{files},"resume_vm":true}}"#));
    copy.types("x").prints("cpidmsr!").types("q").wait().exits(0).silently();
}

#[test]
fn the_last_template_counts_and_none_takes_it_back() {
    let (running, client) = waiting(&[]);
    client.does("PUT", "/cpu-config", &letters().to_string());
    client.does("PATCH", "/machine-config", r#"{"mem_size_mib":32}"#);
    client.does("PATCH", "/machine-config", r#"{"cpu_template":"None"}"#);
    client.does("PUT", "/actions", START);
    let outcome = running.prints("ready").types("xq").wait().exits(0).silently();
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(!text.contains("cpid") && !text.contains("msr!"), "{text}");
}

#[test]
fn a_file_has_a_template_or_names_one() {
    let with = |template: Value| {
        let file = json!({"boot-source": {"kernel_image_path": "vmlinux"}, "cpu-config": template});
        let vmm = Vmm::new().file("vmlinux", guests::elf(&looks_at_its_cpu()));
        let vmm = vmm.file("vm.json", file.to_string()).file("cpu.json", letters().to_string());
        vmm.file("bad.json", r#"{"msr_modifiers":{}}"#).args(["--config-file", "vm.json"])
    };
    for template in [letters(), json!("cpu.json")] {
        let running = with(template).stdin(Stdio::piped()).start();
        running.prints("ready").types("x").prints("cpidmsr!").types("q").wait().exits(0);
    }
    for (template, words) in [
        (json!("none.json"), ["cpu-config none.json", "No such file"]),
        (json!("bad.json"), ["cpu-config bad.json", "invalid type"]),
        (json!({"legs": 2}), ["cpu-config", "unknown field `legs`"]),
        (json!(2), ["cpu-config", "invalid type"]),
    ] {
        with(template).run().refuses(3, &words);
    }
}

#[test]
fn what_cannot_be_changed_is_refused_by_name() {
    let (_running, client) = waiting(&[]);
    let leaf = |leaf: &str, register: &str, bitmap: &str| {
        let change = json!({"register": register, "bitmap": bitmap});
        let leaf = json!({"leaf": leaf, "subleaf": "0x0", "flags": 0, "modifiers": [change]});
        json!({"cpuid_modifiers": [leaf]}).to_string()
    };
    let msr = |addr: &str, bitmap: &str| {
        json!({"msr_modifiers": [{"addr": addr, "bitmap": bitmap}]}).to_string()
    };
    for (body, words) in [
        (leaf("1", "eax", "0b1"), "'1': say a number"),
        (leaf("0x1", "rax", "0b1"), "unknown variant `rax`"),
        (leaf("0x1", "eax", &"x".repeat(33)), "up to 32"),
        (msr("0x1", "0b2"), "up to 64"),
        (r#"{"kvm_capabilities":["!56"]}"#.into(), "kvm_capabilities: not supported"),
        (r#"{"reg_modifiers":[{}]}"#.into(), "reg_modifiers: not supported"),
        (r#"{"cpuid_modifiers":[{}]}"#.into(), "missing field `leaf`"),
        (
            r#"{"cpuid_modifiers":[{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[]}]}"#
                .into(),
            "modifiers: a leaf has none",
        ),
    ] {
        client.refuses("PUT", "/cpu-config", &body, &[words]);
    }
    // These are the host's to decide, so the start is refused, and can be tried again.
    for (body, words) in [
        (leaf("0xb", "eax", "0b1"), ["cpuid_modifiers", "leaf 0xb"]),
        (leaf("0x12345", "eax", "0b1"), ["cpuid_modifiers", "leaf 0x12345"]),
        (leaf("0x1", "ecx", "0b1xxxxx"), ["cpuid_modifiers", "virtualization"]),
        (leaf("0x80000001", "ecx", "0b1xx"), ["cpuid_modifiers", "virtualization"]),
        (msr("0x12345", "0b1"), ["msr_modifiers", "no MSR 0x12345"]),
    ] {
        client.does("PUT", "/cpu-config", &body);
        client.refuses("PUT", "/actions", START, &words);
    }
    client.does("PUT", "/cpu-config", "{}");
    client.does("PUT", "/actions", START);
}
