//! What doctor says of KVM: that it is there, may be opened and can do what machines need.

use super::facts::{Facts, KvmFacts};
use super::{Finding, Severity, processor};
use crate::host::KvmKind;

/// A CI runner's user cannot log in again, so this rule lets everybody open /dev/kvm.
const OPEN_TO_ALL: &str = r#"echo 'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"' | sudo tee /etc/udev/rules.d/99-kvm4all.rules && sudo udevadm control --reload-rules && sudo udevadm trigger --name-match=kvm"#;

pub(super) fn node(facts: &Facts) -> Vec<Finding> {
    let Some((group, mode)) = &facts.node else {
        return vec![Severity::Unusable.on("/dev/kvm", "absent").remedy(processor::remedy(facts))];
    };
    let node = Severity::Ok.on("/dev/kvm", format!("present, group {group}, mode {mode:04o}"));
    let Err(error) = &facts.kvm else {
        return vec![node, Severity::Ok.on("permission", "this user may open /dev/kvm")];
    };
    let remedy = match error.errno() {
        libc::EACCES if group == "kvm" && mode & 0o060 == 0o060 => {
            format!("sudo usermod -aG kvm $USER # then log in again; on a CI runner: {OPEN_TO_ALL}")
        }
        libc::EACCES => OPEN_TO_ALL.into(),
        libc::EPERM => "this is a container's rule: start it with --device /dev/kvm".into(),
        _ => processor::remedy(facts),
    };
    let detail = format!("cannot open /dev/kvm: {error}");
    vec![node, Severity::Unusable.on("permission", detail).remedy(remedy)]
}

pub(super) fn abilities(kvm: &KvmFacts, cpus: usize) -> Vec<Finding> {
    let api = format!("version {}", kvm.version);
    let api = match kvm.version {
        12 => Severity::Ok.on("api", api),
        _ => Severity::Unusable.on("api", api + ", not 12").remedy("update the host's kernel"),
    };
    let required = if kvm.missing.is_empty() {
        Severity::Ok.on("capabilities", "all that are required")
    } else {
        let detail = format!("lacks {}", kvm.missing.join(", "));
        Severity::Unusable.on("capabilities", detail).remedy("update the host's kernel")
    };
    let vm = match kvm.vm {
        Ok(()) => Severity::Ok.on("machine", "KVM creates one"),
        Err(error) => Severity::Unusable
            .on("machine", format!("KVM does not create one: {error}"))
            .remedy("stop other hypervisors (VirtualBox, VMware); sudo dmesg | grep -i kvm"),
    };
    let cpus = format!("a machine can have {}, the host has {cpus}", kvm.max_cpus);
    vec![api, required, vm, Severity::Info.on("cpus", cpus)]
}

/// The kind's name in the JSON, and the finding.
pub(super) fn kind(kind: KvmKind) -> (&'static str, Finding) {
    let (name, status, detail) = match kind {
        KvmKind::Vmx => ("vmx", Severity::Ok, "Intel VT-x (kvm_intel)"),
        KvmKind::Svm => ("svm", Severity::Ok, "AMD-V (kvm_amd)"),
        KvmKind::Unknown => ("unknown", Severity::Info, "no KVM module in /sys/module is known"),
        KvmKind::Interpreting => {
            let detail =
                "kvm_pvm interprets guest kernels: small hand-made ones run, not stock ones";
            ("interpreting", Severity::Limited, detail)
        }
    };
    let finding = status.on("kind", detail);
    if kind.runs_stock_kernels() {
        return (name, finding);
    }
    (name, finding.remedy("for stock kernels: scripts/kvm-box tinyvmm ..."))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{failing, outcome};
    use super::*;

    #[test]
    fn denied_access_names_the_lines_that_mend_it() {
        let (verdict, remedy) = outcome(failing(libc::EACCES));
        assert_eq!(verdict, "unusable");
        assert!(remedy.starts_with("sudo usermod -aG kvm $USER #"), "{remedy}");
        assert!(remedy.ends_with(OPEN_TO_ALL) && !remedy.contains('\n'), "{remedy}");
        for node in [("root".into(), 0o660), ("kvm".into(), 0o600)] {
            let facts = Facts { node: Some(node), ..failing(libc::EACCES) };
            assert_eq!(outcome(facts).1, OPEN_TO_ALL, "joining the group does not help");
        }
        assert!(outcome(failing(libc::EPERM)).1.contains("--device /dev/kvm"));
    }
}
