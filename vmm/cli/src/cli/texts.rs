//! What the manual's pages have besides the flags.

/// The end of a man page and of `--help`: exit codes, a note, examples.
pub(super) struct Page {
    pub name: &'static str,
    pub exit_codes: &'static [(&'static str, &'static str)],
    pub note: &'static str,
    pub examples: &'static [&'static str],
}

pub(super) const PAGES: [Page; 14] = [
    Page {
        name: "tinyvmm",
        exit_codes: &[
            ("0", "the guest powered off"),
            ("1", "internal error"),
            ("2", "the command line or the file of --config is wrong"),
            ("3", "the machine cannot start: a file is unfit or the host lacks something"),
            ("4", "the guest rebooted, with --no-reboot"),
            ("5", "triple fault in the guest"),
            ("6", "kernel panic in the guest"),
            ("7", "--timeout is over"),
            (
                "8",
                "a signal asked the guest to power off and it did not in time; or stopped over the API",
            ),
            ("9", "Ctrl-A x"),
            ("10", "the jail stopped it: a thread made a system call that it never needs"),
            ("any", "the guest wrote it to port 0x701, or ran a COMMAND that ended with it"),
            ("125", "with a COMMAND: the machine ended, or could not start, without a status"),
        ],
        note: "SIGTERM, SIGINT, SIGHUP and SIGQUIT press the power button; 5 s later, or at another signal half a second \
               after the first, the machine is ended.",
        examples: &[
            "tinyvmm --kernel bzImage --initrd initrd.img",
            "tinyvmm --kernel bzImage --initrd initrd.img -- uname -a",
            "tinyvmm --template --kernel bzImage --initrd initrd.img -- uname -a",
            "tinyvmm --cpus 2 --mem 512M --kernel bzImage --disk root.img",
            "tinyvmm --config vm.toml --mem 1G --print-config",
            "tinyvmm -d --name vm --kernel bzImage --initrd initrd.img",
        ],
    },
    Page {
        name: "doctor",
        exit_codes: &[
            ("0", "ready: this host runs machines"),
            ("1", "limited: this host runs machines, but something is missing"),
            ("2", "unusable: this host runs no machines"),
        ],
        note: "",
        examples: &["tinyvmm doctor", "tinyvmm doctor --json"],
    },
    Page {
        name: "boot-test",
        exit_codes: &[
            ("0", "all passed"),
            ("1", "some failed, or a result could not be written"),
            ("2", "the command line or the spec is wrong"),
            ("3", "no machine can run here"),
        ],
        note: "",
        examples: &[
            "tinyvmm boot-test boot.toml",
            "tinyvmm boot-test boot.toml --junit results.xml --jobs 4",
        ],
    },
    Page {
        name: "cache",
        exit_codes: &[
            ("0", "done, also where there is no cache"),
            ("2", "the command line is wrong"),
            ("3", "the cache cannot be used"),
        ],
        note: "",
        examples: &["tinyvmm cache list", "tinyvmm cache clear"],
    },
    Page {
        name: "ctl",
        exit_codes: &[
            ("0", "done"),
            ("1", "no machine listens there, or it refuses"),
            ("2", "the command line is wrong"),
        ],
        note: "",
        examples: &[
            "tinyvmm --api-sock vm.sock --kernel bzImage --initrd initrd.img --console boot.log &",
            "tinyvmm ctl vm.sock stats --watch",
            "tinyvmm ctl vm.sock balloon 64M",
            "tinyvmm ctl vm.sock power-button",
            "tinyvmm ctl vm stats",
        ],
    },
    Page {
        name: "ps",
        exit_codes: &[
            ("0", "listed"),
            ("1", "the folder of the machines is not this user's alone"),
            ("2", "the command line is wrong"),
        ],
        note: "States are running, paused, waiting (to be configured over the API), silent (its API does not answer); and \
               of machines whose process is gone, failed (with the reason) and killed. The next machine of that name \
               takes the place of such a one, and `tinyvmm stop` removes it.",
        examples: &["tinyvmm ps", "tinyvmm ps --json"],
    },
    Page {
        name: "stop",
        exit_codes: &[
            ("0", "the machine has ended, and its folder is gone"),
            ("1", "there is no such machine, or it cannot be ended"),
            ("2", "the command line is wrong"),
        ],
        note: "A process that does not react is killed.",
        examples: &["tinyvmm stop vm", "tinyvmm stop vm --timeout 1m"],
    },
    Page {
        name: "logs",
        exit_codes: &[
            ("0", "printed"),
            ("1", "there is no such machine"),
            ("2", "the command line is wrong"),
        ],
        note: "A log has the last MiB that the console has printed. It is gone with its machine, unless that was \
               detached and has failed.",
        examples: &["tinyvmm logs vm", "tinyvmm logs vm --follow"],
    },
    Page {
        name: "attach",
        exit_codes: &[
            ("0", "the user has left, or the machine has ended"),
            ("1", "there is no such machine, or it has ended before"),
            ("2", "the command line is wrong"),
        ],
        note: "Ctrl-A h shows the keys, Ctrl-A d leaves, Ctrl-A x stops the machine. Several can be attached at once: all \
               see what the guest prints, and what each types reaches the guest. Who reads slowly misses output.",
        examples: &["tinyvmm attach vm"],
    },
    Page {
        name: "exec",
        exit_codes: &[
            ("any", "the command's exit status, or 128 and the number of the signal that ended it"),
            ("2", "the command line is wrong"),
            ("125", "there is no such machine, no agent in its guest, or the connection is lost"),
            ("126", "the command cannot run, or not as this user or in this folder"),
            ("127", "there is no such command in the guest"),
        ],
        note: "The guest needs tinyvmm's agent: a machine that was started with --name and --initrd has it, others can \
               install what `guest-images/build agent` makes. The environment has PATH, HOME and USER, with -t also TERM, and \
               what -e sets. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the command's process \
               group; a third SIGINT or SIGTERM ends tinyvmm exec at once. If it is gone before the command, the command gets \
               SIGHUP.",
        examples: &[
            "tinyvmm exec vm uname -r",
            "tinyvmm exec vm -- sh -c 'dmesg | tail; exit 3'",
            "tinyvmm exec -it -u nobody -w /tmp vm sh",
            "tar -c src | tinyvmm exec -i vm tar -x -C /mnt",
        ],
    },
    Page {
        name: "shell",
        exit_codes: &[
            ("any", "the shell's exit status"),
            ("2", "the command line is wrong"),
            ("125", "there is no such machine, no agent in its guest, or the connection is lost"),
        ],
        note: "It is the user's shell in the guest's /etc/passwd, or /bin/sh. `tinyvmm exec` runs other commands.",
        examples: &["tinyvmm shell vm", "tinyvmm shell -u nobody vm"],
    },
    Page {
        name: "cp",
        exit_codes: &[
            ("0", "copied"),
            (
                "1",
                "a file cannot be read or written, or what the guest sends is not fit to be written",
            ),
            ("2", "the command line is wrong"),
        ],
        note: "Paths in the guest are absolute, or relative to root's home. A folder is copied with all that is in it; if the \
               target is a folder, into that. Files keep modes and times; they belong to root in the guest and to the user \
               here. Links stay links, and none is followed out of the target; devices, sockets and pipes are left out. The \
               guest needs tinyvmm's agent, sh and tar.",
        examples: &["tinyvmm cp test.sh vm:/tmp", "tinyvmm cp vm:/var/log ./guest-log"],
    },
    Page {
        name: "completions",
        exit_codes: &[("0", "printed"), ("2", "the command line is wrong")],
        note: "",
        examples: &[
            "source <(tinyvmm completions bash)",
            "tinyvmm completions fish >~/.config/fish/completions/tinyvmm.fish",
            "tinyvmm completions zsh >/usr/local/share/zsh/site-functions/_tinyvmm",
        ],
    },
    Page {
        name: "man",
        exit_codes: &[("0", "printed"), ("2", "the command line is wrong")],
        note: "",
        examples: &["tinyvmm man | man -l -", "tinyvmm man ctl >tinyvmm-ctl.1"],
    },
];
