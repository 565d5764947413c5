//! The process that makes a template: its machine boots, and is saved when its agent waits.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::time::{Duration, Instant};

use agent_wire::HELLO;
use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal,
    waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use tinyvmm::config::{MachineConfig, NetEnd};

use super::plain;
use super::store::Unfinished;
use crate::config::{Config, ConsoleConfig, TemplateRole};
use crate::ctl::snapshot;
use crate::{jail, run};

/// How long a guest may take until its agent connects.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the process runs that makes the template of `config`.
pub fn config_of(config: &Config) -> Result<Config> {
    let mut made = config.clone();
    plain(&mut made.machine.0)?;
    let process = &mut made.process;
    process.snapshot.role = TemplateRole::Makes;
    // Nothing of this run's, and nothing for people.
    (process.command, process.by_agent) = (Vec::new(), true);
    (process.name, process.detach, process.console) = (None, false, ConsoleConfig::Off);
    (process.boot_report, process.trace_exits, process.timeout) = (None, false, None);
    (process.snapshots, process.no_reboot) = (None, true);
    Ok(made)
}

/// Boots the machine of `made`, and saves it as `new`, before `timeout` is over.
pub fn make(made: &Config, new: &Unfinished, timeout: Option<Duration>) -> Result<()> {
    let (agent, theirs) = UnixStream::pair()?;
    let mut config = made.clone();
    let socket = new.socket();
    config.process.api_sock = Some(socket.clone());
    let cards = connect_cards(&mut config.machine.0)?;
    let parent = getpid();
    let Some(child) = jail::fork().context("cannot start a process")? else {
        drop((agent, cards.ours));
        let done = become_maker(parent, &theirs).and_then(|()| {
            // Its jail closes what it was given once the machine has it.
            cards.guests.into_iter().for_each(std::mem::forget);
            run::run(&config, None, Instant::now()).map(drop)
        });
        exit(done.is_err().into())
    };
    drop((theirs, cards.guests));
    let saved = wait_for_agent(&agent, timeout).and_then(|()| {
        let made = snapshot::make(&socket, &new.snapshot(), true, false);
        made.context("it cannot be saved")
    });
    if saved.is_err() {
        let _ = kill_process(child, Signal::KILL);
    }
    while let Err(Errno::INTR) = waitpid(Some(child), WaitOptions::empty()) {}
    saved
}

/// The streams of network cards that lead nowhere.
#[derive(Default)]
struct Cards {
    ours: Vec<UnixStream>,
    guests: Vec<UnixStream>,
}

fn connect_cards(machine: &mut MachineConfig) -> Result<Cards> {
    let mut cards = Cards::default();
    for card in &mut machine.net {
        let (ours, guests) = UnixStream::pair()?;
        card.end = NetEnd::Fd(guests.as_raw_fd());
        cards.ours.push(ours);
        cards.guests.push(guests);
    }
    Ok(cards)
}

/// Has this process be one that nobody sees, and that ends with its `parent`.
fn become_maker(parent: Pid, agent: &UnixStream) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    ensure!(getppid() == Some(parent), "the parent has ended");
    let nothing = File::options().write(true).open("/dev/null").context("/dev/null")?;
    dup2_stdin(agent)?;
    dup2_stdout(&nothing)?;
    Ok(dup2_stderr(&nothing)?)
}

/// Waits until the guest's agent greets.
fn wait_for_agent(mut agent: &UnixStream, timeout: Option<Duration>) -> Result<()> {
    let patience = timeout.map_or(PATIENCE, |timeout| timeout.min(PATIENCE));
    agent.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
    let mut hello = [0; HELLO.len()];
    if let Err(error) = agent.read_exact(&mut hello) {
        match error.kind() {
            ErrorKind::UnexpectedEof => bail!("its guest has ended before its agent waited"),
            ErrorKind::WouldBlock => bail!("its guest's agent did not wait in time"),
            _ => return Err(error.into()),
        }
    }
    ensure!(&hello == HELLO, "what connects in the guest is no agent of tinyvmm's");
    Ok(())
}
