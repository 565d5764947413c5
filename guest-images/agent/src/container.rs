//! A container's process: what an engine's description asks for is done to this process, which then becomes the program.
//!
//! Its arguments are steps, taken in their order; after `--` come the program and its arguments. A step is a name and its
//! values, a line each. Whoever writes them decides what is needed and in which order (vmm/oci/src/steps.rs).
//!
//! | step | values |
//! |---|---|
//! | `host` | the host's name |
//! | `mount`, `try` | type, place, flags of mount(2) in decimal, options; `try` need not succeed |
//! | `bind` | a file or folder, where it is to be, too, and flags of mount(2) in decimal |
//! | `readonly` | a file or folder that cannot be changed there; it need not be there |
//! | `hide` | a file or folder that is to be empty; it need not be there |
//! | `write` | a file in /proc, what is written into it |
//! | `mark`, `await` | a file that is made, and waited for |
//! | `card`, `address`, `route` | of network.rs |
//! | `limit` | number of a resource (getrlimit(2)), soft and hard limit, either may be `-`: none |
//! | `locked` | none: programs give no more rights (PR_SET_NO_NEW_PRIVS) |
//! | `user` | user, group, further groups, mask of umask(2) in decimal; five sets of capabilities as hexadecimal numbers: |
//! | | bounding, effective, permitted, inheritable, ambient |
//! | `env` | `NAME=VALUE` |
//! | `folder` | the working folder |

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use rustix::fd::AsFd;
use rustix::fs::{FileType, Mode, OFlags, fchown, open, stat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_remount};
use rustix::process::{Gid, Resource, Rlimit, Uid, chdir, getuid, setrlimit, umask};
use rustix::system::sethostname;
use rustix::termios::isatty;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid,
};

use crate::program::{PATH, find_and_execute, said};
use crate::sys::{Texts, Words, standard};
use crate::user::User;
use crate::{make_folders, network, say, wait};

/// Exit codes as docker's: what is asked for cannot be had; there is no such program.
const CANNOT: i32 = 126;
const NO_PROGRAM: i32 = 127;
/// How often a mark is looked for, every 10 ms.
const TRIES: u32 = 3000;
/// Numbers of resources (include/uapi/asm-generic/resource.h).
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// Takes the steps from argument `first` on, and becomes the program. Returns only if that fails: an exit code.
pub fn become_program(args: Words, first: usize) -> i32 {
    let mut words = (first..).map_while(|at| args.get(at)).map(|word| word.to_bytes());
    let mut env: Vec<&[u8]> = Vec::new();
    for word in words.by_ref().take_while(|word| *word != b"--") {
        let (name, values) =
            word.split_at(word.iter().position(|b| *b == b'\n').unwrap_or(word.len()));
        let values = values.strip_prefix(b"\n").unwrap_or(values);
        if name == b"env" {
            env.push(values);
        } else if let Err(error) = take(name, values) {
            let shown = String::from_utf8_lossy(word).replace('\n', " ");
            say(format!("tinyvmm-agent: {shown}: {}\n", said(error)).as_bytes());
            return CANNOT;
        }
    }
    let program: Vec<_> = words.collect();
    let home = home();
    if !env.iter().any(|text| text.starts_with(b"HOME=")) {
        env.push(&home);
    }
    let path = env.iter().find_map(|text| text.strip_prefix(b"PATH=")).unwrap_or(PATH);
    let texts = [&program, &env].map(|texts| Texts::new(texts.iter().copied()));
    let name = program.first().copied().unwrap_or_default();
    let error = find_and_execute(name, path, &texts[0], &texts[1]);
    say(format!("tinyvmm-agent: {}: {}\n", String::from_utf8_lossy(name), said(error)).as_bytes());
    if error == Errno::NOENT { NO_PROGRAM } else { CANNOT }
}

/// The user's HOME, as an entry of the environment.
fn home() -> Vec<u8> {
    let uid = format!("{}", getuid().as_raw());
    let user = User::find(Some(uid.as_bytes()));
    [&b"HOME="[..], user.as_ref().map_or(b"/", |user| &user.home)].concat()
}

/// Takes one step.
fn take(name: &[u8], values: &[u8]) -> Result<(), Errno> {
    let mut lines = values.split(|byte| *byte == b'\n');
    let mut next = || lines.next().ok_or(Errno::INVAL);
    match name {
        b"host" => sethostname(next()?),
        b"try" => {
            let _ = take(b"mount", values);
            Ok(())
        }
        b"mount" => {
            let (kind, place, flags, options) = (next()?, next()?, number(next()?)?, next()?);
            make_folders(place);
            let options = alloc::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
            mount(kind, place, kind, MountFlags::from_bits_retain(flags), Some(options.as_c_str()))
        }
        b"bind" => bind(next()?, next()?, number(next()?)?),
        b"hide" => hide(next()?),
        b"readonly" => lock(next()?),
        b"write" => {
            let file = open(next()?, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&file, next()?).map(drop)
        }
        b"mark" => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            open(next()?, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
        b"await" => {
            let path = next()?;
            let mut tries = 0;
            while tries < TRIES && stat(path).is_err() {
                wait(10);
                tries += 1;
            }
            stat(path).map(drop)
        }
        b"card" => network::raise(next()?, number(next()?)?),
        b"address" => network::add_address(next()?, next()?, number(next()?)?),
        b"route" => network::add_route(next()?, next()?, number(next()?)?, next()?),
        b"limit" => {
            let resource = RESOURCES.get(number::<usize>(next()?)?).ok_or(Errno::INVAL)?;
            let mut value = || match next()? {
                b"-" => Ok(None),
                text => number(text).map(Some),
            };
            setrlimit(*resource, Rlimit { current: value()?, maximum: value()? })
        }
        b"locked" => set_no_new_privs(true),
        b"user" => {
            let (uid, gid) = (number(next()?)?, number(next()?)?);
            let groups = next()?.split(|byte| *byte == b',').filter(|text| !text.is_empty());
            let groups: Vec<_> =
                groups.map(|text| number(text).map(Gid::from_raw)).collect::<Result<_, _>>()?;
            umask(Mode::from_raw_mode(number(next()?)?));
            let mut sets = [CapabilitySet::empty(); 5];
            for set in &mut sets {
                *set = capabilities(next()?)?;
            }
            become_user(uid, gid, &groups, sets)
        }
        b"folder" => {
            let folder = next()?;
            make_folders(folder);
            chdir(folder)
        }
        _ => Err(Errno::INVAL),
    }
}

fn number<T: core::str::FromStr>(text: &[u8]) -> Result<T, Errno> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::INVAL)?;
    text.parse().map_err(|_| Errno::INVAL)
}

fn capabilities(text: &[u8]) -> Result<CapabilitySet, Errno> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::INVAL)?;
    u64::from_str_radix(text, 16).map(CapabilitySet::from_bits_retain).map_err(|_| Errno::INVAL)
}

/// Makes the place of a file or folder if it is not there, and mounts that there.
fn bind(from: &[u8], place: &[u8], flags: u32) -> Result<(), Errno> {
    if FileType::from_raw_mode(stat(from)?.st_mode) == FileType::Directory {
        make_folders(place);
    } else {
        let folder = place.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at.max(1));
        make_folders(&place[..folder]);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let _ = open(place, flags, Mode::from_raw_mode(0o644));
    }
    mount_bind_recursive(from, place)?;
    match flags {
        0 => Ok(()),
        flags => mount_remount(place, MountFlags::BIND | MountFlags::from_bits_retain(flags), ""),
    }
}

/// A folder becomes an empty one, a file /dev/null.
fn hide(place: &[u8]) -> Result<(), Errno> {
    let readonly = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    match mount(c"tmpfs", place, c"tmpfs", readonly, Some(c"size=0k")) {
        Err(Errno::NOTDIR) => mount_bind(c"/dev/null", place),
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// What is at `place` is read only; it need not be there.
fn lock(place: &[u8]) -> Result<(), Errno> {
    if place != b"/" {
        match mount_bind(place, place) {
            Err(Errno::NOENT) => return Ok(()),
            done => done?,
        }
    }
    mount_remount(place, MountFlags::RDONLY | MountFlags::BIND, "")
}

/// Becomes this user with these sets of capabilities: bounding, effective, permitted, inheritable, ambient.
fn become_user(uid: u32, gid: u32, groups: &[Gid], sets: [CapabilitySet; 5]) -> Result<(), Errno> {
    let [bounding, effective, permitted, inheritable, ambient] = sets;
    if isatty(standard(0)) {
        fchown(standard(0).as_fd(), Some(Uid::from_raw(uid)), None)?;
    }
    let each = || (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for one in each().filter(|one| !bounding.contains(*one)) {
        // The kernel does not know all 64.
        let _ = remove_capability_from_bounding_set(one);
    }
    set_keep_capabilities(true)?;
    set_thread_groups(groups)?;
    set_thread_gid(Gid::from_raw(gid))?;
    set_thread_uid(Uid::from_raw(uid))?;
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
    clear_ambient_capability_set()?;
    for one in each().filter(|one| ambient.contains(*one)) {
        // Descriptions name some that are not inheritable, which cannot be (capabilities(7)).
        let _ = configure_capability_in_ambient_set(one, true);
    }
    Ok(())
}
