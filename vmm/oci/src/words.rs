//! Words of config.json, and the numbers that Linux has for them.

use anyhow::{Result, bail};
use rustix::mount::MountFlags;

/// Capabilities in the order of their numbers (include/uapi/linux/capability.h), without `CAP_`.
const CAPABILITIES: &str = "\
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER \
    SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE \
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP \
    MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
    CHECKPOINT_RESTORE";

/// Resources in the order of their numbers (include/uapi/asm-generic/resource.h), without `RLIMIT_`.
const LIMITS: &str = "\
    CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE \
    RTPRIO RTTIME";

/// Signals in the order of their numbers on x86, from 1, without `SIG` (signal(7)).
const SIGNALS: &str = "\
    HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT \
    STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";

fn position(list: &str, name: &str, prefix: &str) -> Option<usize> {
    let name = name.strip_prefix(prefix).unwrap_or(name);
    list.split(' ').position(|known| known == name)
}

/// All names, in the order of their numbers.
pub fn all_capabilities() -> Vec<String> {
    CAPABILITIES.split(' ').map(|name| format!("CAP_{name}")).collect()
}

/// The set that has these capabilities.
pub fn capabilities<'a>(names: impl IntoIterator<Item = impl AsRef<str> + 'a>) -> u64 {
    let bits = names.into_iter().filter_map(|name| position(CAPABILITIES, name.as_ref(), "CAP_"));
    bits.fold(0, |set, bit| set | 1 << bit)
}

/// A resource's number.
pub fn limit(name: &str) -> Option<usize> {
    position(LIMITS, name, "RLIMIT_")
}

/// A signal's number: `15`, `TERM` or `SIGTERM`.
pub fn signal(text: &str) -> Result<i32> {
    let number = text.parse().ok().filter(|number| (0..=64).contains(number));
    let upper = text.to_ascii_uppercase();
    match number.or(position(SIGNALS, &upper, "SIG").map(|at| at as i32 + 1)) {
        Some(number) => Ok(number),
        None => bail!("{text}: unknown signal, say a name or a number up to 64"),
    }
}

/// The flags and the rest of a mount's options (config.md, "Mounts", and mount(8)).
pub fn mount_options(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut rest = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" | "rro" => flags |= MountFlags::RDONLY,
            "rw" => flags -= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "suid" | "dev" | "exec" | "atime" | "async" | "defaults" | "bind" | "rbind" => {}
            // When times are written is up to each file system.
            "diratime" | "nodiratime" | "norelatime" | "nostrictatime" | "lazytime"
            | "nolazytime" => {}
            // How mounts spread, and what podman's tmpfs do besides: a guest has one tree.
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable"
            | "runbindable" | "tmpcopyup" | "notmpcopyup" | "copy" | "nocopy" | "z" | "Z" | "U" => {
            }
            other => rest.push(other),
        }
    }
    (flags, rest.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_linux_numbers() {
        assert_eq!(
            capabilities(["CAP_CHOWN", "SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]),
            1 | 1 << 21 | 1 << 40
        );
        assert_eq!((limit("RLIMIT_NOFILE"), limit("RLIMIT_X")), (Some(7), None));
        for (text, number) in
            [("SIGTERM", 15), ("kill", 9), ("28", 28), ("SYS", 31), ("0", 0), ("64", 64)]
        {
            assert_eq!(signal(text).unwrap(), number);
        }
        for text in ["", "65", "-1", "SIGNONE"] {
            assert!(signal(text).unwrap_err().to_string().contains("unknown signal"), "{text}");
        }
        let options = ["nosuid", "ro", "size=64m", "rprivate", "mode=1777"].map(String::from);
        let (flags, rest) = mount_options(&options);
        assert_eq!(
            (flags, rest.as_str()),
            (MountFlags::NOSUID | MountFlags::RDONLY, "size=64m,mode=1777")
        );
    }
}
