//! What doctor says of the processor's virtualization, in the words of who made it.

use super::facts::Facts;
use super::{Finding, Severity};
use crate::host::KvmKind;

/// What makers of processors call theirs.
struct Virtualization {
    name: &'static str,
    /// What the switch is called in firmware's setup.
    switch: &'static str,
    module: &'static str,
    flag: &'static str,
    /// The flag, the module's option and the name of page tables for guests.
    paging: (&'static str, &'static str),
}

const INTEL: Virtualization = Virtualization {
    name: "Intel VT-x",
    switch: "Intel VT-x (Intel Virtualization Technology, VMX)",
    module: "kvm_intel",
    flag: "vmx",
    paging: ("ept", "EPT"),
};
const AMD: Virtualization = Virtualization {
    name: "AMD SVM",
    switch: "AMD SVM (SVM Mode, AMD-V)",
    module: "kvm_amd",
    flag: "svm",
    paging: ("npt", "NPT"),
};

impl Virtualization {
    /// This host's; `None` if it cannot be told.
    fn of(facts: &Facts) -> Option<&'static Self> {
        let made_by = |names: &[&str]| {
            let vendor = facts.vendor.as_deref().unwrap_or_default();
            names.iter().any(|name| vendor.contains(name))
        };
        // Hygon's are like AMD's, those of Centaur and Zhaoxin like Intel's (IA32_FEAT_CTL in arch/x86/Kconfig.cpu).
        if facts.has_flag(INTEL.flag) || made_by(&["GenuineIntel", "CentaurHauls", "Shanghai"]) {
            Some(&INTEL)
        } else if facts.has_flag(AMD.flag) || made_by(&["AuthenticAMD", "HygonGenuine"]) {
            Some(&AMD)
        } else {
            None
        }
    }
}

/// What brings a /dev/kvm that is not there, or that no driver serves.
pub(super) fn remedy(facts: &Facts) -> String {
    if facts.kind != KvmKind::Unknown {
        return "its driver is loaded: if this is a container, start it with --device /dev/kvm"
            .into();
    }
    let is_guest = facts.has_flag("hypervisor");
    match Virtualization::of(facts) {
        Some(kind) if facts.has_flag(kind.flag) && is_guest => {
            format!("sudo modprobe {}", kind.module)
        }
        // An older kernel shows the flag also where the firmware has turned it off (Linux before 5.6 on Intel, which has no
        // init_ia32_feat_ctl in arch/x86/kernel/cpu/feat_ctl.c).
        Some(kind) if facts.has_flag(kind.flag) => format!(
            "sudo modprobe {}; if that is not supported, turn on {} in the firmware's setup",
            kind.module, kind.switch
        ),
        Some(kind) if is_guest => nested(kind),
        None if is_guest => {
            "this host is a guest: turn on nested virtualization in the hypervisor \
                             under it"
                .into()
        }
        Some(kind) => format!("turn on {} in the firmware's setup", kind.switch),
        None => "turn on Intel VT-x or AMD SVM in the firmware's setup".into(),
    }
}

/// How a hypervisor gives a guest a processor's virtualization.
fn nested(kind: &Virtualization) -> String {
    let Virtualization { name, module, .. } = kind;
    format!(
        "this host is a guest without {name}: turn on nested virtualization under it; on KVM: \
         sudo modprobe -r {module} && sudo modprobe {module} nested=1, and QEMU with -cpu host; on \
         Hyper-V: Set-VMProcessor NAME -ExposeVirtualizationExtensions $true; on VMware: \
         vhv.enable = \"TRUE\"; in a cloud: a type of machine that has it"
    )
}

/// What the module's options do to guests.
pub(super) fn options(facts: &Facts) -> Option<Finding> {
    let (kind, paging) = match facts.kind {
        KvmKind::Vmx => (&INTEL, facts.options.ept.as_deref()?),
        KvmKind::Svm => (&AMD, facts.options.npt.as_deref()?),
        KvmKind::Interpreting | KvmKind::Unknown => return None,
    };
    let (option, name) = kind.paging;
    let is_off = |value: &str| matches!(value.trim(), "N" | "0");
    let on = |option: &str, cause: &str| {
        // Not for a processor that has none: the module would turn it off again.
        facts.has_flag(kind.paging.0).then(|| {
            let module = kind.module;
            format!(
                "sudo modprobe -r {module} && sudo modprobe {module} {option}=1; {cause} is in \
                 /etc/modprobe.d or /proc/cmdline"
            )
        })
    };
    let (detail, remedy) = if is_off(paging) {
        let detail = format!("no {name}, KVM shadows each page table: guests are slow");
        (detail, on(option, &format!("{}.{option}=0", kind.module)))
    } else if facts.options.unrestricted_guest.as_deref().is_some_and(is_off) {
        let detail = format!("{name}, but KVM emulates real mode, in which CPUs start");
        (detail, on("unrestricted_guest", "kvm_intel.unrestricted_guest=0"))
    } else {
        return Some(Severity::Ok.on("paging", format!("{name}, the processor's own for guests")));
    };
    Some(Finding { remedy, ..Severity::Info.on("paging", detail) })
}

#[cfg(test)]
mod tests {
    use super::super::facts::ModuleOptions;
    use super::super::tests::{failing, good, outcome};
    use super::*;

    /// The remedy where the processor has these words in /proc/cpuinfo.
    fn advice(vendor: &str, flags: &str) -> String {
        let (vendor, flags) = (Some(format!("\t: {vendor}")), Some(format!("\t\t: {flags}")));
        let kind = KvmKind::Unknown;
        let facts = Facts { kind, node: None, flags, vendor, ..failing(libc::ENOENT) };
        let (verdict, remedy) = outcome(facts);
        assert_eq!(verdict, "unusable");
        assert!(!remedy.contains('\n'), "{remedy}");
        remedy
    }

    #[test]
    fn an_absent_node_is_blamed_on_what_keeps_it_away() {
        let facts = Facts { kind: KvmKind::Svm, node: None, ..failing(libc::ENOENT) };
        assert!(outcome(facts).1.contains("--device"));
        for (vendor, flags, expected) in [
            (
                "GenuineIntel",
                "fpu vmx",
                "sudo modprobe kvm_intel; if that is not supported, turn on Intel VT-x",
            ),
            (
                "AuthenticAMD",
                "fpu svm",
                "sudo modprobe kvm_amd; if that is not supported, turn on AMD SVM",
            ),
            (
                "GenuineIntel",
                "fpu",
                "turn on Intel VT-x (Intel Virtualization Technology, VMX) in the firmware",
            ),
            ("AuthenticAMD", "fpu", "turn on AMD SVM (SVM Mode, AMD-V) in the firmware"),
            ("HygonGenuine", "fpu", "turn on AMD SVM"),
            ("  Shanghai  ", "fpu", "turn on Intel VT-x"),
            ("VIA VIA VIA ", "fpu", "turn on Intel VT-x or AMD SVM in the firmware"),
        ] {
            let said = advice(vendor, flags);
            assert!(said.starts_with(expected), "{vendor}, {flags}: {said}");
        }
    }

    #[test]
    fn a_guest_is_told_what_its_hypervisor_is_to_do() {
        for (vendor, module) in [("GenuineIntel", "kvm_intel"), ("AuthenticAMD", "kvm_amd")] {
            let said = advice(vendor, "fpu hypervisor");
            assert!(said.contains(&format!("sudo modprobe {module} nested=1")), "{said}");
            assert!(!said.contains("firmware"), "it has none: {said}");
        }
        assert!(advice("odd", "hypervisor").contains("nested virtualization"));
        assert_eq!(advice("GenuineIntel", "hypervisor vmx"), "sudo modprobe kvm_intel");
        assert_eq!(advice("AuthenticAMD", "hypervisor svm"), "sudo modprobe kvm_amd");
    }

    /// What is said of the options: the detail and the remedy.
    fn said(kind: KvmKind, flags: &str, options: ModuleOptions) -> (String, String) {
        let flags = Some(format!("\t\t: {flags}"));
        let found = super::options(&Facts { kind, flags, options, ..good() }).unwrap();
        assert!(found.status <= Severity::Ok, "machines run: {found:?}");
        (found.detail, found.remedy.unwrap_or_default())
    }

    fn intel(ept: &str, unrestricted_guest: &str) -> ModuleOptions {
        let [ept, unrestricted_guest] = [ept, unrestricted_guest].map(|text| Some(text.into()));
        ModuleOptions { ept, unrestricted_guest, npt: None }
    }

    fn amd(npt: &str) -> ModuleOptions {
        ModuleOptions { npt: Some(npt.into()), ..ModuleOptions::default() }
    }

    #[test]
    fn options_that_slow_guests_are_named_with_what_turns_them_on() {
        let (detail, remedy) = said(KvmKind::Vmx, "vmx ept", intel("N\n", "N\n"));
        assert!(detail.starts_with("no EPT"), "{detail}");
        assert!(remedy.contains("modprobe kvm_intel ept=1; kvm_intel.ept=0 is"), "{remedy}");
        let (detail, remedy) = said(KvmKind::Vmx, "vmx ept", intel("Y\n", "N\n"));
        assert!(detail.contains("emulates real mode"), "{detail}");
        assert!(remedy.contains("kvm_intel.unrestricted_guest=0 is"), "{remedy}");
        let (detail, remedy) = said(KvmKind::Svm, "svm npt", amd("0\n"));
        assert!(detail.starts_with("no NPT"), "{detail}");
        assert!(remedy.contains("modprobe kvm_amd npt=1; kvm_amd.npt=0 is"), "{remedy}");
    }

    #[test]
    fn options_that_are_on_or_cannot_be_are_left_alone() {
        for (kind, flags, options) in [
            (KvmKind::Vmx, "vmx ept", intel("Y\n", "Y\n")),
            (KvmKind::Svm, "svm npt", amd("Y\n")),
            (KvmKind::Vmx, "vmx", intel("N\n", "N\n")),
            (KvmKind::Svm, "svm", amd("N\n")),
        ] {
            assert_eq!(said(kind, flags, options).1, "");
        }
        assert!(super::options(&good()).is_none(), "the files are not there");
        let facts = Facts { kind: KvmKind::Interpreting, options: intel("N", "N"), ..good() };
        assert!(super::options(&facts).is_none());
    }
}
