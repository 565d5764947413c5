//! `tinyvmm exec`, `shell` and `cp` with the agent, without a VM: this host is the guest, and an agent serves each
//! connection that the machine's vsock device would pass on.

mod commands;
mod copies;
mod lies;
mod requests;
mod terminals;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::fixture::{Dir, Outcome, Vmm};

/// The agent that the command has in it, as it was built.
const AGENT: &str = env!("TINYVMM_AGENT");

/// A machine `vm` whose vsock device leads to this host.
struct Machine {
    runtime: Dir,
    /// Locked, as by a process that runs the machine.
    _description: File,
    agents: Arc<Mutex<Vec<Child>>>,
}

impl Machine {
    /// A machine with an agent.
    fn new() -> Self {
        Self::with(|stream, agents| {
            let mut agent = Command::new(AGENT);
            agent.arg("--connection").stdin(OwnedFd::from(stream));
            agents.lock().unwrap().push(agent.spawn().unwrap());
        })
    }

    /// A machine where `serve` is the other end of a connection that was accepted.
    fn with(serve: impl Fn(UnixStream, &Mutex<Vec<Child>>) + Send + 'static) -> Self {
        let runtime = Dir::new();
        let folder = runtime.path("tinyvmm/vm");
        fs::create_dir_all(&folder).unwrap();
        for folder in [&folder, folder.parent().unwrap()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        fs::write(folder.join("machine.json"), "{}").unwrap();
        let description = File::open(folder.join("machine.json")).unwrap();
        description.lock().unwrap();
        let listener = UnixListener::bind(folder.join("vsock")).unwrap();
        let agents = Arc::<Mutex<Vec<Child>>>::default();
        let shared = agents.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = [0; 13];
                stream.read_exact(&mut line).unwrap();
                assert_eq!(&line, b"CONNECT 1024\n");
                stream.write_all(b"OK 1073741824\n").unwrap();
                serve(stream, &shared);
            }
        });
        Self { runtime, _description: description, agents }
    }

    fn vmm(&self) -> Vmm {
        Vmm::new().env("XDG_RUNTIME_DIR", &self.runtime.0)
    }

    /// `tinyvmm exec` with `args`, to be started.
    fn exec(&self, args: &[&str]) -> Vmm {
        self.vmm().args(["exec"]).args(args)
    }

    /// Runs a shell command.
    #[track_caller]
    fn sh(&self, command: &str) -> Outcome {
        self.exec(&["vm", "--", "sh", "-c", command]).run()
    }

    /// Waits for the end of all agents, and returns how many there were.
    fn agents_end(&self) -> usize {
        let mut agents = self.agents.lock().unwrap();
        agents.iter_mut().for_each(|agent| assert!(agent.wait().unwrap().success()));
        agents.len()
    }
}
