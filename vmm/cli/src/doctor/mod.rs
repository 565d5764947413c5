//! `tinyvmm doctor`: whether this host can run machines, and what to do if not.
//!
//! `Facts::gather` reads the host; `Diagnosis::judge` reads nothing but the facts.

mod facts;
mod kvm;
mod processor;
mod surroundings;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use facts::Facts;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const IO_URING: &str = "/proc/sys/kernel/io_uring_disabled";

/// In order of severity: the worst is the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Info,
    Ok,
    Limited,
    Unusable,
}

impl Severity {
    fn on(self, name: &'static str, detail: impl Into<String>) -> Finding {
        Finding { name, status: self, detail: detail.into(), remedy: None }
    }
}

#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    status: Severity,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    verdict: &'static str,
    exit_code: u8,
    kvm_kind: &'static str,
    findings: Vec<Finding>,
}

impl Diagnosis {
    fn judge(facts: &Facts) -> Self {
        let mut findings = kvm::node(facts);
        if let Ok(open) = &facts.kvm {
            findings.extend(kvm::abilities(open, facts.cpus));
        }
        let (kvm_kind, kind) = kvm::kind(facts.kind);
        findings.push(kind);
        findings.extend(processor::options(facts));
        findings.extend(surroundings::several(facts));
        findings.push(surroundings::io_uring(facts));
        findings.push(surroundings::passt(facts));
        findings.push(surroundings::virtiofsd(facts));
        findings.extend(surroundings::jail(facts));
        let (verdict, exit_code) = match findings.iter().map(|finding| finding.status).max() {
            Some(Severity::Unusable) => ("unusable", 2),
            Some(Severity::Limited) => ("limited", 1),
            _ => ("ready", 0),
        };
        Self { verdict, exit_code, kvm_kind, findings }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for Finding { name, status, detail, remedy } in &self.findings {
            let status = format!("{status:?}").to_lowercase();
            writeln!(f, "{status:<8}  {name:<12}  {detail}")?;
            if let Some(remedy) = remedy {
                writeln!(f, "{:24}{remedy}", "")?;
            }
        }
        let sentence = match self.exit_code {
            0 => "machines can run here",
            1 => "machines can run here, within the limits named above",
            _ => "no machine can run here until the above is fixed",
        };
        writeln!(f, "{}: {sentence}", self.verdict)
    }
}

/// Prints the findings, for people or as JSON. Exit code 0: ready; 1: limited; 2: unusable.
pub fn main(json: bool) -> ExitCode {
    let report = Diagnosis::judge(&Facts::gather());
    let text = match json.then(|| serde_json::to_string_pretty(&report)) {
        Some(Ok(text)) => text + "\n",
        // Strings and a number always serialize, so this is the text for people.
        _ => report.to_string(),
    };
    // A reader that has gone away is not an error; the exit code has the verdict.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(report.exit_code)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::errno;

    use super::facts::{KvmFacts, ModuleOptions};
    use super::*;
    use crate::host::{KvmKind, why_boots_fail};

    pub(super) fn good() -> Facts {
        let kvm = KvmFacts { version: 12, missing: vec![], max_cpus: 255, vm: Ok(()) };
        Facts {
            kind: KvmKind::Vmx,
            node: Some(("kvm".into(), 0o660)),
            kvm: Ok(kvm),
            flags: Some("\t: fpu vmx".into()),
            vendor: Some("\t: GenuineIntel".into()),
            options: ModuleOptions::default(),
            cpus: 8,
            thp: None,
            pool: None,
            available_mib: Some(4096),
            tun: Err(io::ErrorKind::NotFound.into()),
            virtiofsd: Ok("virtiofsd 1.13.0".into()),
            passt: Err(io::ErrorKind::NotFound.into()),
            has_route: true,
            seccomp: true,
            io_uring: Ok(()),
            io_uring_disabled: None,
            landlock: None,
        }
    }

    pub(super) fn failing(errno: i32) -> Facts {
        Facts { kvm: Err(errno::Error::new(errno)), ..good() }
    }

    /// The verdict, and the remedies of all that stands in the way.
    pub(super) fn outcome(facts: Facts) -> (&'static str, String) {
        let Diagnosis { verdict, findings, .. } = Diagnosis::judge(&facts);
        let grave = findings.into_iter().filter(|finding| finding.status > Severity::Ok);
        (verdict, grave.filter_map(|finding| finding.remedy).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn a_good_host_is_ready_whatever_it_lacks_that_is_optional() {
        let report = Diagnosis::judge(&good());
        assert_eq!(report.exit_code, 0);
        let text = report.to_string();
        assert!(text.contains("\nok        kind          Intel VT-x (kvm_intel)\n"), "{text}");
        assert!(text.ends_with("\nready: machines can run here\n"), "{text}");
    }

    #[test]
    fn the_worst_finding_is_the_verdict() {
        let kind = KvmKind::Interpreting;
        assert_eq!(outcome(Facts { available_mib: Some(255), ..good() }).0, "limited");
        assert_eq!(outcome(Facts { kind, ..good() }).0, "limited");
        assert_eq!(outcome(Facts { kind, ..failing(libc::EACCES) }).0, "unusable");
        for spoil in [
            |kvm: &mut KvmFacts| kvm.missing.push("KVM_CAP_IRQFD"),
            |kvm: &mut KvmFacts| kvm.version = 11,
            |kvm: &mut KvmFacts| kvm.vm = Err(errno::Error::new(libc::EBUSY)),
        ] {
            let mut facts = good();
            spoil(facts.kvm.as_mut().unwrap());
            assert_eq!(outcome(facts).0, "unusable");
        }
    }

    #[test]
    fn only_an_interpreting_kvm_explains_a_failed_boot() {
        assert!(why_boots_fail(KvmKind::Interpreting).unwrap().contains("scripts/kvm-box"));
        assert_eq!(why_boots_fail(KvmKind::Unknown), None);
    }

    #[test]
    fn json_has_the_documented_shape() {
        let report = Diagnosis::judge(&Facts { kind: KvmKind::Interpreting, ..good() });
        let json = serde_json::to_value(report).unwrap();
        assert_eq!(json["verdict"], "limited");
        assert_eq!(json["exit_code"], 1);
        assert_eq!(json["kvm_kind"], "interpreting");
        assert_eq!(json["findings"][0]["name"], "/dev/kvm");
        assert_eq!(json["findings"][0]["status"], "ok");
        assert!(json["findings"][0]["detail"].is_string());
        assert!(json["findings"][0].get("remedy").is_none());
    }
}
