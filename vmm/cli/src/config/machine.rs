//! The flags of a machine: each sets the field of [`MachineConfig`] that has its name.
//!
//! The library knows no flags, so they are not derived from its struct: flags become the same TOML table that a
//! configuration file is, and the struct is deserialized from that.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint, value_parser};
use serde::{Deserialize, Serialize};
use tinyvmm::config::{
    BalloonConfig, Cpus, DiskConfig, MachineConfig, Mem, NetConfig, Publish, ShareConfig,
    VhostUserConfig, VsockConfig,
};
use toml::{Table, Value};
use uuid::Uuid;

use super::SWITCH;

/// The flag that is no field: it adds to a network card.
const PUBLISH: &str = "publish";

/// The machine that flags describe.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MachineFlags(pub MachineConfig);

fn args() -> Vec<Arg> {
    [cpus_and_memory(), kernel(), devices(), served_devices(), identity()].concat()
}

fn cpus_and_memory() -> Vec<Arg> {
    vec![
        about(
            text::<Cpus>("cpus", "N[,sockets=S][,cores=C][,threads=T]").default_value("1"),
            "Virtual CPUs: a count, or a count and how they are arranged",
            "`4` is one socket of four cores. `4,sockets=1,cores=2,threads=2` is what lscpu shows in the \
                guest. Sockets and threads are 1 unless given, cores are what is left.",
        ),
        about(
            text::<Mem>("mem", "SIZE[,max=SIZE]").default_value("256M"),
            "Memory of the guest, with K, M, G or T (powers of 1024; KiB and so on mean the same)",
            "From 16M. Memory that the guest does not touch costs the host nothing. With `max` the machine \
                has that much more that it can be given, and give back, while it runs (virtio-mem): `tinyvmm ctl \
                MACHINE memory SIZE`.",
        ),
        about(
            switch("hugepages"),
            "Take guest memory from the host's hugetlb pool, 2 MiB pages, all of it reserved at start",
            "",
        ),
        about(
            text::<BalloonConfig>("balloon", "SIZE|off").default_value("0"),
            "Memory that the guest is to do without at once; or off: no balloon device",
            "By that device a guest also says what it has freed, and the host gets it back within seconds. \
                With `off`, and with --hugepages, the machine keeps what it once had.",
        ),
    ]
}

fn kernel() -> Vec<Arg> {
    vec![
        about(
            path("kernel"),
            "Linux kernel: bzImage (vmlinuz) or ELF (vmlinux); `auto`: that of the first disk",
            "With `auto` the newest /boot/vmlinuz-VERSION of the first --disk is booted, with its initrd and with that \
                disk's root: an image of a whole system needs no more. It is read from ext4, with or without partitions, \
                and not from a layer of `overlay=FILE`. A file of that name is `./auto`.",
        ),
        about(
            flag("kernel-entry", "direct|decompress")
                .default_value("direct")
                .value_parser(["direct", "decompress"])
                .hide_possible_values(true),
            "Who unpacks a bzImage: tinyvmm, or its own decompressor in the guest",
            "`direct` is faster. A bzImage that tinyvmm cannot unpack is left to its own decompressor in any \
                case. The kernel's address is random either way, unless its command line has `nokaslr`.",
        ),
        about(path("initrd"), "Initial RAM disk for the kernel", ""),
        about(
            flag("cmdline", "STRING").allow_hyphen_values(true),
            "Kernel command line, appended to the default one",
            "The default is `console=ttyS0 panic=-1 pci=noearly 8250.nr_uarts=1 cryptomgr.notests`, and \
                `root=/dev/vda rw` (or `ro`) when there is a disk and no initrd. A kernel without ACPI, or with \
                `acpi=off`, finds its devices there, too. A ` -- ` within STRING is the \
                kernel\'s: what follows it are arguments for the guest\'s init. The `--` after tinyvmm\'s flags is \
                another: it begins a COMMAND.",
        ),
        about(switch("cmdline-only"), "Use --cmdline as the whole command line, untouched", ""),
    ]
}

fn devices() -> Vec<Arg> {
    vec![
        about(
            text::<DiskConfig>("disk", "FILE[,OPTION]...").action(ArgAction::Append),
            "Disk: a raw image file or block device. May be given several times",
            "An OPTION is readonly, direct, overlay, overlay=FILE, aio=threads, aio=io_uring, sector=512, \
                sector=4096, lock=off or id=NAME; a comma of a file's name is `,,`.\n\n\
                `readonly` refuses writes and lets other machines read the same file. `direct` goes around the \
                host's page cache (O_DIRECT). `id` is the serial number that the guest sees, at most 20 bytes. \
                With `overlay` the file is only read, by any number of machines: what the guest writes goes to a \
                temporary file in $TMPDIR and is lost when tinyvmm ends, or to the file named by `overlay=FILE`, \
                made if it is not there, to go on with the next time. The guest sees sectors of 512 bytes, or those \
                of the block device, unless `sector` says otherwise. `aio=threads` or `aio=io_uring` chooses how \
                many requests are kept going at a time. A disk is locked for one machine that writes or many that \
                read; `lock=off` leaves that out, for file systems that have no locks.",
        ),
        about(
            text::<NetConfig>("net", "user|tap=NAME|fd=N[,OPTION]...").action(ArgAction::Append),
            "Network card: in the user's network, or at a tap of the host's. May be given several times",
            "With `user` the guest has the network of the user who runs tinyvmm, without root: passt, a process of its \
                own, makes connections for it, and gives it an address by DHCP. `tap` is an existing tap device, `fd` an \
                open descriptor: a tap, or a stream of frames. An OPTION is publish=[ADDRESS:]HOST:GUEST[/udp] (of \
                `user`: a port of this host leads to one of the guest), host (of `user`: the guest reaches what listens \
                on this host's loopback, at its gateway's address), mac=ADDRESS, or mtu=BYTES.",
        ),
        about(
            text::<Publish>(PUBLISH, "[ADDRESS:]HOST:GUEST[/udp]")
                .short('p')
                .action(ArgAction::Append),
            "Port of this host that leads to one of the guest; implies --net user. May be given several times",
            "Whoever reaches the address reaches the guest: without ADDRESS that is everybody on this host's networks.",
        ),
        about(
            text::<VsockConfig>("vsock", "path=FILE[,cid=N]"),
            "Unix socket at which programs of this host connect to programs of the guest, by virtio-vsock",
            "As Firecracker has it: a program connects to FILE, writes `CONNECT PORT` and a newline, and reads `OK` and a \
                number once the guest has accepted at that port of AF_VSOCK. The guest's connections to port PORT of \
                address 2 arrive at the Unix socket FILE_PORT, if somebody listens there. The guest's own address is \
                3 unless `cid` says another. A machine with --name has one in its folder, named vsock.",
        ),
    ]
}

fn served_devices() -> Vec<Arg> {
    vec![
        about(
            text::<ShareConfig>("share", "DIR[,tag=NAME][,readonly]").action(ArgAction::Append),
            "Folder of this host that the guest can mount, by virtio-fs. May be given several times",
            "virtiofsd serves it, a process of its own; install its package. In the guest: `mount -t virtiofs NAME /mnt`, \
                where NAME is the folder's own unless `tag` says another. Who is root in the guest has the rights of this \
                user in the folder; with `readonly` nobody in the guest can change it. The guest's memory is shared with \
                virtiofsd, and the machine cannot be saved.",
        ),
        about(
            text::<VhostUserConfig>("vhost-user", "socket=PATH,kind=blk|fs[,tag=NAME]")
                .action(ArgAction::Append),
            "Device of a process that listens at a Unix socket and speaks vhost-user. May be given several times",
            "`kind=blk` is a disk, as of qemu-storage-daemon's, after those of --disk; `kind=fs` a file system with a \
                tag. The process has all of the guest's memory: it is trusted as tinyvmm is.",
        ),
    ]
}

fn identity() -> Vec<Arg> {
    vec![
        about(
            flag("uart", "ports|memory")
                .default_value("ports")
                .value_parser(["ports", "memory"])
                .hide_possible_values(true),
            "Where the serial port's registers are: at I/O ports, or in memory, which costs fewer exits",
            "In memory, a guest reads all but what it receives without an exit. To Linux it is ttyS4, which \
                the default command line names. Its driver finds it late: what the kernel printed before comes \
                then, and a panic before that is silent. `earlycon=uart8250,io,0x3f8` shows that, too. A driver \
                has to turn the transmitter's interrupt off when it has nothing to send, as Linux's does.",
        ),
        about(
            flag("uuid", "UUID").value_parser(uuid),
            "Identity of the machine, in its SMBIOS tables [default: random]",
            "",
        ),
    ]
}

/// `arg` with its short help, and `more` as a paragraph of --help.
fn about(arg: Arg, short: &'static str, more: &'static str) -> Arg {
    let arg = arg.help(short);
    if more.is_empty() { arg } else { arg.long_help(format!("{short}\n\n{more}")) }
}

fn flag(name: &'static str, value: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value)
}

/// A flag whose value is a `T`, parsed here for its error and again when the machine is made of all values.
fn text<T: FromStr<Err: Display>>(name: &'static str, value: &'static str) -> Arg {
    let parse = |text: &str| match text.parse::<T>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    };
    flag(name, value).value_parser(parse)
}

fn uuid(text: &str) -> Result<String, String> {
    let example = Uuid::from_u128(0x1234_5678_90ab_4def_8123_4567_890a_bcde);
    match text.parse::<Uuid>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("say one as in {example}")),
    }
}

fn path(name: &'static str) -> Arg {
    let arg = flag(name, "FILE").value_hint(ValueHint::FilePath);
    arg.value_parser(value_parser!(PathBuf))
}

fn switch(name: &'static str) -> Arg {
    flag(name, SWITCH)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value("false")
        .value_parser(value_parser!(bool))
        .hide_possible_values(true)
        .hide_default_value(true)
}

/// The value of `arg`, as in a configuration file.
fn value(arg: &Arg, matches: &ArgMatches) -> Option<Value> {
    let name = arg.get_id().as_str();
    if matches!(arg.get_action(), ArgAction::Append) {
        let values = matches.get_many::<String>(name)?.cloned().map(Value::String);
        return Some(Value::Array(values.collect()));
    }
    let switch = matches.try_get_one::<bool>(name).ok().flatten();
    let text = || matches.try_get_one::<String>(name).ok().flatten();
    switch.map(|on| Value::Boolean(*on)).or_else(|| text().cloned().map(Value::String))
}

impl FromArgMatches for MachineFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let args = args();
        let given = args
            .iter()
            .filter(|arg| arg.get_id() != PUBLISH)
            .filter_map(|arg| Some((arg.get_id().as_str().to_owned(), value(arg, matches)?)));
        let machine = MachineConfig::deserialize(Value::Table(given.collect::<Table>()));
        let mut machine =
            machine.map_err(|error| clap::Error::raw(ErrorKind::ValueValidation, error))?;
        // Paths need not be UTF-8, as tables are.
        machine.kernel = matches.get_one("kernel").cloned();
        machine.initrd = matches.get_one("initrd").cloned();
        for port in matches.get_many::<String>(PUBLISH).into_iter().flatten() {
            let port = port.parse().map_err(|e| clap::Error::raw(ErrorKind::ValueValidation, e))?;
            machine.publish(port);
        }
        Ok(Self(machine))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for MachineFlags {
    fn augment_args(command: Command) -> Command {
        command.next_help_heading("Machine").args(args())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_the_fields_and_their_defaults_the_defaults() {
        let command = MachineFlags::augment_args(Command::new("tinyvmm"));
        let none = command.get_matches_from(["tinyvmm"]);
        assert_eq!(MachineFlags::from_arg_matches(&none).unwrap().0, MachineConfig::default());
        // Fields that only the API sets are left out of a table while they have their defaults.
        let fields = Table::try_from(MachineConfig {
            kernel: Some("k".into()),
            initrd: Some("i".into()),
            cmdline: Some("c".into()),
            uuid: Some(Uuid::nil()),
            vsock: Some(VsockConfig::new(Some("v".into()))),
            ..MachineConfig::default()
        });
        let mut fields: Vec<_> = fields.unwrap().keys().cloned().collect();
        let mut flags: Vec<_> = args().iter().map(|arg| arg.get_id().to_string()).collect();
        flags.retain(|flag| flag != PUBLISH);
        fields.sort();
        flags.sort();
        assert_eq!(flags, fields);
    }
}
