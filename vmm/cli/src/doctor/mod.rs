//! `tinyvmm doctor`: whether this host can run machines, and what to do if not.
//!
//! `Facts::gather` reads the host; `Diagnosis::judge` reads nothing but the facts.

mod facts;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::host::KvmKind;
use facts::{Facts, KvmFacts};

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const IO_URING: &str = "/proc/sys/kernel/io_uring_disabled";
/// A CI runner's user cannot log in again, so this rule lets everybody open /dev/kvm.
const OPEN_TO_ALL: &str = r#"echo 'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"' | sudo tee /etc/udev/rules.d/99-kvm4all.rules && sudo udevadm control --reload-rules && sudo udevadm trigger --name-match=kvm"#;

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
        let mut findings = judge_node(facts);
        if let Ok(kvm) = &facts.kvm {
            findings.extend(judge_kvm(kvm, facts.cpus));
        }
        let (kvm_kind, kind) = judge_kind(facts.kind);
        findings.push(kind);
        findings.extend(judge_surroundings(facts));
        findings.push(judge_io_uring(facts));
        findings.push(judge_passt(facts));
        findings.push(judge_virtiofsd(facts));
        findings.extend(judge_jail(facts));
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

fn judge_node(facts: &Facts) -> Vec<Finding> {
    let Some((group, mode)) = &facts.node else {
        return vec![Severity::Unusable.on("/dev/kvm", "absent").remedy(load_remedy(facts))];
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
        _ => load_remedy(facts).into(),
    };
    let detail = format!("cannot open /dev/kvm: {error}");
    vec![node, Severity::Unusable.on("permission", detail).remedy(remedy)]
}

fn load_remedy(facts: &Facts) -> &'static str {
    if facts.kind != KvmKind::Unknown {
        "its driver is loaded: if this is a container, start it with --device /dev/kvm"
    } else if facts.has_flag("vmx") {
        "sudo modprobe kvm_intel"
    } else if facts.has_flag("svm") {
        "sudo modprobe kvm_amd"
    } else if facts.has_flag("hypervisor") {
        "this host is a guest: turn on nested virtualization in the hypervisor under it"
    } else {
        "turn on VT-x or AMD-V (SVM) in the firmware's setup"
    }
}

fn judge_kvm(kvm: &KvmFacts, cpus: usize) -> Vec<Finding> {
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
fn judge_kind(kind: KvmKind) -> (&'static str, Finding) {
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

fn judge_surroundings(facts: &Facts) -> [Finding; 5] {
    let nested = match &facts.flags {
        None => "unknown: /proc/cpuinfo shows no flags",
        Some(_) if facts.has_flag("hypervisor") => "yes, this host is a guest: exits cost more",
        Some(_) => "no, this host is not a guest",
    };
    let setting = facts.thp.as_ref().and_then(|text| text.split(['[', ']']).nth(1));
    let thp = format!("transparent ones: {}", setting.unwrap_or("none"));
    let mut thp = Severity::Info.on("huge pages", thp);
    if setting == Some("never") {
        thp = thp.remedy(format!("for faster guests: echo madvise | sudo tee {THP}"));
    }
    let (free, all) = facts.pool.unwrap_or_default();
    let pool = format!("{free} of {all} 2 MiB pages are free for --hugepages");
    let mut pool = Severity::Info.on("hugetlb", pool);
    if free == 0 && facts.pool.is_some() {
        let more = all + 128;
        pool = pool.remedy(format!("for 256 MiB: echo {more} | sudo tee {POOL}/nr_hugepages"));
    }
    let memory = match facts.available_mib {
        // The default of --mem is 256M.
        Some(mib @ ..256) => Severity::Limited
            .on("memory", format!("{mib} MiB available"))
            .remedy("give machines less, as in --mem 64M, or free some"),
        Some(mib) => Severity::Ok.on("memory", format!("{mib} MiB available")),
        None => Severity::Info.on("memory", "unknown: no MemAvailable in /proc/meminfo"),
    };
    let tun = match &facts.tun {
        Ok(()) => "opens, for --net tap=NAME".into(),
        Err(error) => format!("for --net tap=NAME: {error}"),
    };
    let nested = Severity::Info.on("nested", nested);
    [nested, thp, pool, memory, Severity::Info.on("/dev/net/tun", tun)]
}

/// Without io_uring threads do the same, with more switches between them.
fn judge_io_uring(facts: &Facts) -> Finding {
    let Err(error) = &facts.io_uring else {
        return Severity::Ok.on("io_uring", "keeps many requests of a disk going");
    };
    let setting = facts.io_uring_disabled.as_ref().map_or("0", |text| text.trim());
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) if setting != "0" => "sudo sysctl kernel.io_uring_disabled=0",
        Some(libc::EPERM | libc::EACCES) => {
            "a sandbox's filter forbids it: let it allow io_uring_setup, _enter and _register"
        }
        Some(libc::ENOMEM) => "raise the limit of locked memory: ulimit -l",
        _ => "use Linux 5.10 or later with CONFIG_IO_URING, or a sandbox that has it",
    };
    let detail = format!("none, threads keep a disk's requests going: {error}");
    Severity::Info.on("io_uring", detail).remedy(remedy)
}

fn judge_passt(facts: &Facts) -> Finding {
    match &facts.passt {
        Err(error) => Severity::Info
            .on("passt", format!("none, --net user needs it: {error}"))
            .remedy("install the package passt"),
        Ok(version) if facts.has_route => {
            Severity::Ok.on("passt", format!("{version}, for --net user"))
        }
        Ok(version) => Severity::Info
            .on("passt", format!("{version}, but this host has no default route, which it needs"))
            .remedy("connect the host; offline: ip link add out type dummy, with an address and a default route by it"),
    }
}

fn judge_virtiofsd(facts: &Facts) -> Finding {
    match &facts.virtiofsd {
        Err(_) => Severity::Info
            .on("virtiofsd", "none, --share needs it")
            .remedy("install the package virtiofsd (before Debian 13 qemu-system-common has it)"),
        Ok(version) => Severity::Ok.on("virtiofsd", format!("{version}, for --share")),
    }
}

/// What stands in the way of a guest that has taken over the process.
fn judge_jail(facts: &Facts) -> [Finding; 2] {
    let seccomp = match facts.seccomp {
        true => Severity::Ok.on("seccomp", "each thread makes only the system calls that it needs"),
        false => Severity::Limited
            .on("seccomp", "no filters: a guest that breaks out can make any system call")
            .remedy("use a kernel with CONFIG_SECCOMP_FILTER"),
    };
    let landlock = match facts.landlock {
        Some(version) => {
            Severity::Ok.on("Landlock", format!("version {version}: no file is opened any more"))
        }
        None => Severity::Info
            .on("Landlock", "no Landlock: seccomp alone keeps files from being opened")
            .remedy("Linux 5.13 or later, with landlock in the list of lsm= on its command line"),
    };
    [seccomp, landlock]
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

    use super::*;
    use crate::host::why_boots_fail;

    fn good() -> Facts {
        let kvm = KvmFacts { version: 12, missing: vec![], max_cpus: 255, vm: Ok(()) };
        Facts {
            kind: KvmKind::Vmx,
            node: Some(("kvm".into(), 0o660)),
            kvm: Ok(kvm),
            flags: Some("\t: fpu vmx".into()),
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

    fn failing(errno: i32) -> Facts {
        Facts { kvm: Err(errno::Error::new(errno)), ..good() }
    }

    /// The verdict, and the remedies of all that stands in the way.
    fn outcome(facts: Facts) -> (&'static str, String) {
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

    #[test]
    fn an_absent_node_is_blamed_on_what_keeps_it_away() {
        for (kind, flag, expected) in [
            (KvmKind::Svm, "svm", "--device"),
            (KvmKind::Unknown, "vmx", "modprobe kvm_intel"),
            (KvmKind::Unknown, "svm", "modprobe kvm_amd"),
            (KvmKind::Unknown, "hypervisor", "nested"),
            (KvmKind::Unknown, "fpu", "firmware"),
        ] {
            let facts =
                Facts { kind, node: None, flags: Some(flag.into()), ..failing(libc::ENOENT) };
            let (verdict, remedy) = outcome(facts);
            assert!(verdict == "unusable" && remedy.contains(expected), "{flag}: {remedy}");
        }
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
    fn a_host_without_io_uring_is_ready_and_shows_why_it_has_none() {
        for (errno, setting, remedy) in [
            (libc::EPERM, Some("2\n"), "sysctl kernel.io_uring_disabled=0"),
            (libc::EPERM, Some("0\n"), "sandbox's filter"),
            (libc::EPERM, None, "sandbox's filter"),
            (libc::ENOSYS, None, "Linux 5.10"),
            (libc::EINVAL, None, "Linux 5.10"),
            (libc::ENOMEM, Some("0\n"), "ulimit -l"),
        ] {
            let io_uring = Err(io::Error::from_raw_os_error(errno));
            let setting = setting.map(String::from);
            let report =
                Diagnosis::judge(&Facts { io_uring, io_uring_disabled: setting, ..good() });
            assert_eq!(report.verdict, "ready");
            let finding = report.findings.iter().find(|finding| finding.name == "io_uring");
            let said = finding.unwrap().remedy.as_ref().unwrap();
            assert!(said.contains(remedy) && !said.contains('\n'), "{errno}: {said}");
        }
        let text = Diagnosis::judge(&good()).to_string();
        assert!(text.contains("\nok        io_uring      keeps many requests"), "{text}");
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
