//! A container's description as steps that the agent takes in the guest (guest-images/agent/src/container.rs).

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Capabilities, Linux, Mount, Process, Spec};
use rustix::mount::MountFlags;

use crate::words::{self, mount_options};

/// The agent, as each of its processes in the guest finds it, and what it is to do.
const AGENT: [&str; 2] = ["/proc/self/exe", "--contained"];
/// Where the agent has what rootfs.rs has put beside the container's root.
const SHARED: &str = "/tinyvmm/shared";
/// Is there once the container's mounts and addresses are.
const MADE: &str = "/tinyvmm/made";
/// What every guest of ours has its own of.
const OWN_MOUNTS: [&str; 4] = ["proc", "sysfs", "devpts", "devtmpfs"];
/// Where engines mount what every guest has, too.
const OWN_PLACES: [&str; 5] = ["/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/proc"];

/// Is not limited (getrlimit(2), RLIM_INFINITY).
const UNLIMITED: u64 = u64::MAX;

/// A step. Values have a line each, so that none may have two; of an environment's the value is the last, and may.
pub fn step(name: &str, values: &[&str]) -> Result<String> {
    for value in values {
        let fits = !value.contains(['\n', '\0']);
        ensure!(fits, "{value:?}: a path or value with a line feed cannot be passed on");
    }
    Ok([&[name], values].concat().join("\n"))
}

/// How a mount reaches the guest.
pub enum Way<'a> {
    /// A file or folder of the host.
    Bind(&'a Path),
    /// The guest mounts it.
    Own,
    /// The guest has it in any case.
    Given,
}

/// How `mount` reaches the guest.
///
/// # Errors
///
/// It cannot.
pub fn way(mount: &Mount) -> Result<Way<'_>> {
    let place = mount.destination();
    let options = mount.options().as_deref().unwrap_or_default();
    let binds = options.iter().any(|option| ["bind", "rbind"].contains(&option.as_str()));
    let kind = mount.typ().as_deref().unwrap_or(if binds { "bind" } else { "none" });
    ensure!(place.is_absolute(), "mount {}: its place has to be an absolute path", place.display());
    if binds || kind == "bind" {
        if OWN_PLACES.iter().any(|usual| place == Path::new(usual)) {
            return Ok(Way::Given);
        }
        let (_, rest) = mount_options(options);
        ensure!(rest.is_empty(), "mount {}: option {rest} is not for a guest", place.display());
        let source = mount.source().as_deref();
        let source = source.with_context(|| format!("mount {}: no source", place.display()))?;
        let kind = fs::metadata(source).map(|found| found.file_type());
        ensure!(
            !kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device()),
            "mount {}: a guest has devices of its own, leave it out",
            place.display()
        );
        return Ok(Way::Bind(source));
    }
    match kind {
        _ if OWN_MOUNTS.contains(&kind) || place == Path::new("/dev") => Ok(Way::Given),
        "tmpfs" | "mqueue" | "cgroup" | "cgroup2" => Ok(Way::Own),
        _ => bail!("mount {}: type {kind} is not for a guest", place.display()),
    }
}

/// The steps of a container's own process. `network` are those of its card; the mounts that bind have numbers from 0 on.
pub fn of_container(spec: &Spec, network: &[String]) -> Result<Vec<String>> {
    let mut steps = Vec::new();
    if let Some(name) = spec.hostname() {
        steps.push(step("host", &[name])?);
    }
    steps.extend_from_slice(network);
    let mut binds = 0;
    for mount in spec.mounts().iter().flatten() {
        steps.extend(mount_step(mount, &mut binds)?);
    }
    if let Some(linux) = spec.linux() {
        add_kernel_steps(&mut steps, linux)?;
    }
    if spec.root().as_ref().is_some_and(|root| root.readonly().unwrap_or(false)) {
        steps.push(step("readonly", &["/"])?);
    }
    let process = spec.process().as_ref().context("config.json: no process")?;
    steps.push(step("mark", &[MADE])?);
    steps.extend(of_process(process)?);
    Ok(steps)
}

/// The steps of another process in the container, which begins once that is made.
pub fn of_further_process(process: &Process) -> Result<Vec<String>> {
    Ok([vec![step("await", &[MADE])?], of_process(process)?].concat())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: not in UTF-8", path.display()))
}

fn mount_step(mount: &Mount, binds: &mut usize) -> Result<Option<String>> {
    let place = text(mount.destination())?;
    let (flags, rest) = mount_options(mount.options().as_deref().unwrap_or_default());
    Ok(Some(match way(mount)? {
        Way::Bind(_) => {
            *binds += 1;
            let from = format!("{SHARED}/{}", *binds - 1);
            step("bind", &[&from, place, &flags.bits().to_string()])?
        }
        Way::Own => {
            let kind = mount.typ().as_deref().unwrap_or_default();
            let flags = flags.bits().to_string();
            match kind {
                "tmpfs" => step("mount", &[kind, place, &flags, &rest])?,
                // A kernel may be without them. The options of control groups are the host's.
                "mqueue" => step("try", &[kind, place, &flags, ""])?,
                _ => step("try", &["cgroup2", place, &flags, ""])?,
            }
        }
        Way::Given if place == "/sys" && flags.contains(MountFlags::RDONLY) => {
            step("readonly", &[place])?
        }
        Way::Given => return Ok(None),
    }))
}

/// What the kernel shows and takes.
fn add_kernel_steps(steps: &mut Vec<String>, linux: &Linux) -> Result<()> {
    for (name, value) in linux.sysctl().iter().flatten() {
        // As sysctl(8): dots and slashes change places.
        let path: String = name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect();
        ensure!(!path.contains("//") && !path.contains(".."), "sysctl {name}: not a name");
        steps.push(step("write", &[&format!("/proc/sys/{path}"), value])?);
    }
    for path in linux.readonly_paths().iter().flatten() {
        steps.push(step("readonly", &[path])?);
    }
    for path in linux.masked_paths().iter().flatten() {
        steps.push(step("hide", &[path])?);
    }
    Ok(())
}

/// The steps of a process: what it may do, who it is, its environment.
fn of_process(process: &Process) -> Result<Vec<String>> {
    let mut steps = Vec::new();
    if let Some(adjustment) = process.oom_score_adj() {
        steps.push(step("write", &["/proc/self/oom_score_adj", &adjustment.to_string()])?);
    }
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        let number = words::limit(&name).with_context(|| format!("{name}: unknown limit"))?;
        let value = |value| match value {
            UNLIMITED => "-".to_owned(),
            value => value.to_string(),
        };
        let (soft, hard) = (value(limit.soft()), value(limit.hard()));
        steps.push(step("limit", &[&number.to_string(), &soft, &hard])?);
    }
    steps.push(step("folder", &[text(process.cwd())?])?);
    steps.push(user(process)?);
    if process.no_new_privileges() == Some(true) {
        steps.push(step("locked", &[])?);
    }
    for entry in process.env().iter().flatten() {
        ensure!(!entry.contains('\0'), "env: a zero byte");
        steps.push(format!("env\n{entry}"));
    }
    Ok(steps)
}

fn user(process: &Process) -> Result<String> {
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().map(u32::to_string);
    let groups = groups.collect::<Vec<_>>().join(",");
    let set = |set: &Option<Capabilities>| {
        let names = set.iter().flatten().map(ToString::to_string);
        format!("{:x}", words::capabilities(names))
    };
    let sets = match process.capabilities() {
        Some(all) => {
            [all.bounding(), all.effective(), all.permitted(), all.inheritable(), all.ambient()]
                .map(set)
        }
        // As runc: none.
        None => [const { None }; 5].map(|none| set(&none)),
    };
    let [bounding, effective, permitted, inheritable, ambient] = &sets;
    let (uid, gid) = (user.uid().to_string(), user.gid().to_string());
    let umask = user.umask().unwrap_or(0o022).to_string();
    step(
        "user",
        &[&uid, &gid, &groups, &umask, bounding, effective, permitted, inheritable, ambient],
    )
}

/// The command that takes `steps` and becomes `process`.
pub fn command(steps: Vec<String>, process: &Process) -> Result<Vec<String>> {
    let args = process.args().as_deref().unwrap_or_default();
    ensure!(!args.is_empty(), "config.json: process.args is empty");
    let words = AGENT.into_iter().map(String::from);
    Ok(words.chain(steps).chain(["--".into()]).chain(args.iter().cloned()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(more: Value) -> Spec {
        let mut all = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
        });
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn a_process_becomes_steps_in_the_order_of_rights() {
        let spec = spec(json!({"process": {
            "cwd": "/srv", "args": ["a", "b c"], "env": ["A=1\n2"], "noNewPrivileges": true, "oomScoreAdj": 7,
            "user": {"uid": 1, "gid": 2, "additionalGids": [3, 4], "umask": 63},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 18446744073709551615u64}],
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_CHOWN"]},
        }}));
        let process = spec.process().as_ref().unwrap();
        let command = command(of_process(process).unwrap(), process).unwrap();
        assert_eq!(
            command,
            [
                "/proc/self/exe",
                "--contained",
                "write\n/proc/self/oom_score_adj\n7",
                "limit\n7\n5\n-",
                "folder\n/srv",
                "user\n1\n2\n3,4\n63\n20\n21\n0\n0\n0",
                "locked",
                "env\nA=1\n2",
                "--",
                "a",
                "b c",
            ]
        );
    }

    #[test]
    fn mounts_of_the_host_are_bound_in_order_and_those_of_the_guest_are_its_own() {
        let spec = spec(json!({
            "hostname": "web",
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m", "tmpcopyup"]},
                {"destination": "/run/x", "type": "bind", "source": "/a", "options": ["rbind", "ro"]},
                {"destination": "/dev/shm", "type": "bind", "source": "/shm", "options": ["bind"]},
                {"destination": "/data", "source": "/b", "options": ["bind"]},
            ],
            "linux": {"maskedPaths": ["/proc/keys"], "readonlyPaths": ["/proc/bus"], "sysctl": {"net.ipv4.ip_forward": "1"}},
        }));
        let steps = of_container(&spec, &["card\neth0\n0".into()]).unwrap();
        assert_eq!(
            steps[..11],
            [
                "host\nweb",
                "card\neth0\n0",
                "readonly\n/sys",
                "try\nmqueue\n/dev/mqueue\n0\n",
                "mount\ntmpfs\n/run\n2\nsize=1m",
                "bind\n/tinyvmm/shared/0\n/run/x\n1",
                "bind\n/tinyvmm/shared/1\n/data\n0",
                "write\n/proc/sys/net/ipv4/ip_forward\n1",
                "readonly\n/proc/bus",
                "hide\n/proc/keys",
                "readonly\n/",
            ]
        );
    }

    #[test]
    fn what_a_guest_cannot_have_is_refused_by_name() {
        let refused = |more| format!("{:#}", of_container(&spec(more), &[]).unwrap_err());
        let mount = |mount: Value| refused(json!({"mounts": [mount]}));
        let device = json!({"destination": "/dev/fuse", "type": "bind", "source": "/dev/null", "options": ["bind"]});
        assert!(mount(device).contains("/dev/fuse: a guest has devices"));
        assert!(
            mount(json!({"destination": "/x", "type": "nfs", "source": "h:/x"}))
                .contains("type nfs")
        );
        assert!(mount(json!({"destination": "x", "type": "tmpfs"})).contains("absolute path"));
        assert!(mount(json!({"destination": "/a\nb", "type": "tmpfs"})).contains("line feed"));
        assert!(refused(json!({"linux": {"sysctl": {"a...b": "1"}}})).contains("not a name"));
        assert!(
            refused(json!({"process": {"cwd": "/a\nb", "args": ["x"], "user": {}}}))
                .contains("line feed")
        );
    }
}
