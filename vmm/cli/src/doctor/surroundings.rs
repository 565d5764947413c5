//! What doctor says of the host besides KVM: memory, and what some flags need.

use super::facts::Facts;
use super::{Finding, POOL, Severity, THP};

pub(super) fn several(facts: &Facts) -> [Finding; 5] {
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
pub(super) fn io_uring(facts: &Facts) -> Finding {
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

pub(super) fn passt(facts: &Facts) -> Finding {
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

pub(super) fn virtiofsd(facts: &Facts) -> Finding {
    match &facts.virtiofsd {
        Err(_) => Severity::Info
            .on("virtiofsd", "none, --share needs it")
            .remedy("install the package virtiofsd (before Debian 13 qemu-system-common has it)"),
        Ok(version) => Severity::Ok.on("virtiofsd", format!("{version}, for --share")),
    }
}

/// What stands in the way of a guest that has taken over the process.
pub(super) fn jail(facts: &Facts) -> [Finding; 2] {
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::tests::good;
    use super::super::{Diagnosis, Facts};

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
}
