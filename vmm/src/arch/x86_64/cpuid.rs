//! What the CPUID instruction says in the guest.

use std::arch::x86_64::__cpuid;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::apic;
use crate::config::{CpuTemplate, CpuidRegister, Cpus};

/// Nested virtualization is not offered: it is a large part of KVM to attack.
const LEAF1_ECX_VMX: u32 = 1 << 5;
const EXT1_ECX_SVM: u32 = 1 << 2;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Linux would save, change and restore every MTRR on every CPU, with caches off, to no effect: KVM
/// takes no notice of them. Memory is write-back unless a page says otherwise.
const LEAF1_EDX_MTRR: u32 = 1 << 12;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXT1_ECX_TOPOEXT: u32 = 1 << 22;

/// CPUID of all CPUs of a machine.
pub struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: Cpus,
}

impl CpuidTemplate {
    /// What KVM supports here with the changes of `template`, arranged as `cpus`.
    pub fn new(kvm: &Kvm, cpus: Cpus, template: &CpuTemplate) -> Result<Self> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let supported = supported.context("cannot read what CPUs KVM supports")?;
        let mut entries = supported.as_slice().to_vec();
        // Topology leaves are made anew for each CPU.
        entries.retain(|e| ![0xb, 0x1f].contains(&e.function));
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        for entry in &mut entries {
            match entry.function {
                1 => {
                    entry.ecx = entry.ecx & !LEAF1_ECX_VMX | LEAF1_ECX_HYPERVISOR;
                    entry.edx &= !LEAF1_EDX_MTRR;
                    if deadline {
                        entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                    }
                }
                // KVM leaves the processor's name to us: the host's.
                0x8000_0002..=0x8000_0004 => {
                    let name = __cpuid(entry.function);
                    (entry.eax, entry.ebx, entry.ecx, entry.edx) =
                        (name.eax, name.ebx, name.ecx, name.edx);
                }
                0x8000_0001 => entry.ecx &= !EXT1_ECX_SVM,
                // Power management that is not there.
                6 => (entry.eax, entry.ebx, entry.ecx) = (entry.eax & 1 << 2, 0, 0),
                _ => {}
            }
        }
        change(&mut entries, template)?;
        Ok(Self { entries, cpus })
    }

    /// XSAVE components that KVM supports: CPUID leaf 0xd, EAX. 0 without XSAVE.
    pub fn xcr0(&self) -> u32 {
        let leaf = self.entries.iter().find(|e| e.function == 0xd && e.index == 0);
        leaf.map_or(0, |leaf| leaf.eax)
    }

    /// CPUID of the `index`-th CPU.
    pub fn for_cpu(&self, index: u32) -> Result<CpuId> {
        let id = apic::id(self.cpus, index);
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            self.set_topology(entry, id);
        }
        let highest = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
        for leaf in [0xb, 0x1f].into_iter().filter(|leaf| *leaf <= highest) {
            entries.extend(self.extended_topology(leaf, id));
        }
        Ok(CpuId::from_entries(&entries)?)
    }

    /// Fills in the parts of `entry` that say where the CPU with APIC id `id` is (Intel SDM
    /// volume 2, CPUID; AMD APM volume 3, appendix E).
    fn set_topology(&self, entry: &mut kvm_cpuid_entry2, id: u32) {
        let Cpus { cores, threads, .. } = self.cpus;
        let per_socket = cores * threads;
        let ids_per_socket = 1 << apic::socket_shift(self.cpus);
        let ids_per_core = 1 << apic::thread_bits(self.cpus);
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | ids_per_socket.min(255) << 16 | id << 24;
                set(&mut entry.edx, LEAF1_EDX_HTT, per_socket > 1);
            }
            4 if entry.eax & 0x1f != 0 => {
                // L1 and L2 belong to a core, L3 to a socket.
                let shared = if entry.eax >> 5 & 7 < 3 { ids_per_core } else { ids_per_socket };
                let cores_field =
                    (1u32 << (apic::socket_shift(self.cpus) - apic::thread_bits(self.cpus))) - 1;
                entry.eax = entry.eax & 0x3fff | (shared - 1) << 14 | cores_field.min(63) << 26;
            }
            0x8000_0001 => {
                set(&mut entry.ecx, EXT1_ECX_CMP_LEGACY, per_socket > 1 && self.is_amd());
                // KVM may offer the leaf and not the bit by which guests know of it.
                let has_topology = self.entries.iter().any(|e| e.function == 0x8000_001e);
                set(&mut entry.ecx, EXT1_ECX_TOPOEXT, has_topology);
            }
            0x8000_0008 if self.is_amd() => {
                entry.ecx = apic::socket_shift(self.cpus) << 12 | (per_socket - 1).min(255);
            }
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 < 3 { threads } else { per_socket };
                entry.eax = entry.eax & 0x3fff | (shared - 1) << 14;
            }
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = (threads - 1) << 8 | id >> apic::thread_bits(self.cpus) & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    fn is_amd(&self) -> bool {
        self.entries.iter().any(|e| e.function == 0 && e.ecx == u32::from_le_bytes(*b"cAMD"))
    }

    /// Leaf 0xb or 0x1f: one sub-leaf for threads, one for cores, an empty one.
    fn extended_topology(&self, leaf: u32, id: u32) -> [kvm_cpuid_entry2; 3] {
        let Cpus { cores, threads, .. } = self.cpus;
        let levels = [
            (apic::thread_bits(self.cpus), threads, 1),
            (apic::socket_shift(self.cpus), cores * threads, 2),
            (0, 0, 0),
        ];
        let mut index = 0;
        levels.map(|(shift, count, kind)| {
            let entry = kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: count,
                ecx: kind << 8 | index,
                edx: id,
                ..Default::default()
            };
            index += 1;
            entry
        })
    }
}

/// Makes the changes that `template` has.
fn change(entries: &mut [kvm_cpuid_entry2], template: &CpuTemplate) -> Result<()> {
    for of in &template.cpuid {
        let found = entries.iter_mut().find(|e| (e.function, e.index) == (of.leaf.0, of.subleaf.0));
        let entry = found.with_context(|| {
            let place = format!("leaf {}, subleaf {}", of.leaf, of.subleaf);
            format!("cpuid_modifiers: {place}: there is nothing that can be changed on this host")
        })?;
        entry.flags = of.flags;
        let register = match of.register {
            CpuidRegister::Eax => &mut entry.eax,
            CpuidRegister::Ebx => &mut entry.ebx,
            CpuidRegister::Ecx => &mut entry.ecx,
            CpuidRegister::Edx => &mut entry.edx,
        };
        *register = of.bitmap.applied_to((*register).into()) as u32;
        let nested = match entry.function {
            1 => LEAF1_ECX_VMX,
            0x8000_0001 => EXT1_ECX_SVM,
            _ => 0,
        };
        ensure!(
            entry.ecx & nested == 0,
            "cpuid_modifiers: leaf {}, ecx: virtualization within the guest (VMX, SVM) is not offered",
            of.leaf
        );
    }
    Ok(())
}

/// Leaves of features with their sub-leaves, and the registers that have a bit for each: a guest may have found any of
/// them. (EAX, EBX, ECX, EDX.)
const FEATURES: [(u32, u32, [bool; 4]); 7] = [
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, true, true, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, true, true]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0008, 0, [false, true, false, false]),
];

/// Refuses a host whose processor, which guests see as `here`, is another model, or lacks what this `guest` has found.
pub(super) fn check(guest: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<()> {
    let registers = |entries: &[kvm_cpuid_entry2], function, index| {
        let found = entries.iter().find(|e| (e.function, e.index) == (function, index));
        found.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    let of = |function, index| [guest, here].map(|entries| registers(entries, function, index));
    let [[_, vendor @ ..], [_, our_vendor @ ..]] = of(0, 0);
    let [[model, ..], [our_model, ..]] = of(1, 0);
    ensure!(
        (vendor, model) == (our_vendor, our_model),
        "the snapshot is of another processor: model {model:#x}, and this host has {our_model:#x}"
    );
    for (function, index, which) in FEATURES {
        let [theirs, ours] = of(function, index);
        for (register, has_features) in which.into_iter().enumerate() {
            // What depends on a CPU's own state (OSXSAVE, OSPKE), and on how CPUs are arranged.
            let other = match (function, register) {
                (1, 2) => 1 << 27,
                (1, 3) => LEAF1_EDX_HTT,
                (7, 2) => 1 << 4,
                (0x8000_0001, 2) => EXT1_ECX_CMP_LEGACY | EXT1_ECX_TOPOEXT,
                _ => 0,
            };
            let missing = theirs[register] & !ours[register] & !other;
            ensure!(
                !has_features || missing == 0,
                "the snapshot's processor has features that this host's lacks: leaf {function:#x}.{index}, \
                 register {}, bits {missing:#x}",
                ["EAX", "EBX", "ECX", "EDX"][register]
            );
        }
    }
    Ok(())
}

fn set(register: &mut u32, bits: u32, on: bool) {
    *register = if on { *register | bits } else { *register & !bits };
}
