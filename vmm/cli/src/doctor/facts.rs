//! What doctor reads from the host.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::{io, thread};

use kvm_ioctls::Kvm;
use vmm_sys_util::errno;

use super::{IO_URING, POOL, THP};
use tinyvmm::arch::capabilities;
use tinyvmm::engine::ring::Ring;

use crate::host::{self, KvmKind};
use crate::jail::{self, landlock};
use crate::share;

/// The facts about the host; `None` where the host does not report one.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) kind: KvmKind,
    /// Group and mode of `/dev/kvm`.
    pub(super) node: Option<(String, u32)>,
    pub(super) kvm: Result<KvmFacts, errno::Error>,
    /// The flags of the first CPU, as `/proc/cpuinfo` has them.
    pub(super) flags: Option<String>,
    /// Who made it, in the same words.
    pub(super) vendor: Option<String>,
    /// What was chosen for the KVM module that is loaded: `Y` or `N`.
    pub(super) options: ModuleOptions,
    pub(super) cpus: usize,
    /// The contents of [`THP`], the setting in brackets.
    pub(super) thp: Option<String>,
    /// Number of 2 MiB pages that are free, and of all.
    pub(super) pool: Option<(u64, u64)>,
    pub(super) available_mib: Option<u64>,
    pub(super) tun: io::Result<()>,
    /// The version of passt.
    pub(super) passt: io::Result<String>,
    /// The version of virtiofsd.
    pub(super) virtiofsd: io::Result<String>,
    /// Whether there is a default route, which passt needs.
    pub(super) has_route: bool,
    /// Whether the kernel has seccomp filters.
    pub(super) seccomp: bool,
    /// Whether a disk's requests can be kept going by io_uring.
    pub(super) io_uring: io::Result<()>,
    /// The contents of [`IO_URING`].
    pub(super) io_uring_disabled: Option<String>,
    /// The version of Landlock's ABI.
    pub(super) landlock: Option<i32>,
}

/// The contents of files in /sys/module/kvm_intel/parameters and /sys/module/kvm_amd/parameters.
#[derive(Debug, Default)]
pub(super) struct ModuleOptions {
    pub(super) ept: Option<String>,
    pub(super) unrestricted_guest: Option<String>,
    pub(super) npt: Option<String>,
}

impl ModuleOptions {
    fn read() -> Self {
        let read = |module: &str, name: &str| {
            fs::read_to_string(format!("/sys/module/{module}/parameters/{name}")).ok()
        };
        Self {
            ept: read("kvm_intel", "ept"),
            unrestricted_guest: read("kvm_intel", "unrestricted_guest"),
            npt: read("kvm_amd", "npt"),
        }
    }
}

/// The facts that an open `/dev/kvm` reports.
#[derive(Debug)]
pub(super) struct KvmFacts {
    pub(super) version: i32,
    pub(super) missing: Vec<&'static str>,
    pub(super) max_cpus: u32,
    pub(super) vm: Result<(), errno::Error>,
}

impl Facts {
    pub(super) fn gather() -> Self {
        Self {
            kind: KvmKind::detect(),
            node: fs::metadata("/dev/kvm")
                .ok()
                .map(|node| (group(node.gid()), node.mode() & 0o777)),
            kvm: Kvm::new().map(|kvm| KvmFacts::ask(&kvm)),
            flags: field("/proc/cpuinfo", "flags"),
            vendor: field("/proc/cpuinfo", "vendor_id"),
            options: ModuleOptions::read(),
            cpus: thread::available_parallelism().map_or(1, Into::into),
            thp: fs::read_to_string(THP).ok(),
            pool: pool(),
            available_mib: host::available_kib().map(|kib| kib >> 10),
            tun: File::options().read(true).write(true).open("/dev/net/tun").map(drop),
            passt: passt(),
            virtiofsd: share::version(),
            has_route: has_route(),
            seccomp: jail::has_seccomp(),
            io_uring: Ring::new().map(drop),
            io_uring_disabled: fs::read_to_string(IO_URING).ok(),
            landlock: landlock(),
        }
    }

    pub(super) fn has_flag(&self, name: &str) -> bool {
        self.flags.as_ref().is_some_and(|flags| flags.split_whitespace().any(|flag| flag == name))
    }
}

impl KvmFacts {
    fn ask(kvm: &Kvm) -> Self {
        let required = capabilities::REQUIRED.iter();
        Self {
            version: kvm.get_api_version(),
            missing: required.filter(|(c, _)| !kvm.check_extension(*c)).map(|(_, n)| *n).collect(),
            max_cpus: capabilities::max_cpus(kvm),
            vm: kvm.create_vm().map(drop),
        }
    }
}

/// Restricts a thread that ends then: only trying shows whether Landlock is in force.
fn landlock() -> Option<i32> {
    thread::spawn(|| landlock::forbid_opening(landlock::Kept::default(), &[]).ok().flatten())
        .join()
        .ok()
        .flatten()
}

/// The first line of its version.
fn passt() -> io::Result<String> {
    let output = Command::new("passt").arg("--version").stderr(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("passt").trim().to_owned())
}

/// Whether a route leads to all addresses: of length 0, by the 8th or 2nd field (net/ipv4/fib_trie.c, net/ipv6/route.c).
fn has_route() -> bool {
    let any = |file: &str, field: usize, zero: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let is_default = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.get(field) == Some(&zero) && fields.last() != Some(&"lo")
        };
        text.lines().any(is_default)
    };
    any("/proc/net/route", 7, "00000000") || any("/proc/net/ipv6_route", 1, "00")
}

/// What follows `key` in the first line of `file` that begins with it.
fn field(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(Into::into)
}

/// The name of group `gid`, or its number where it has none.
fn group(gid: u32) -> String {
    let gid = gid.to_string();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let name = lines.find_map(|parts| (parts.get(2) == Some(&&*gid)).then(|| parts[0].to_owned()));
    name.unwrap_or(gid)
}

fn pool() -> Option<(u64, u64)> {
    let read = |name| fs::read_to_string(format!("{POOL}/{name}")).ok()?.trim().parse::<u64>().ok();
    // Reserved pages count as free but are promised to others.
    let free = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
    Some((free, read("nr_hugepages")?))
}
