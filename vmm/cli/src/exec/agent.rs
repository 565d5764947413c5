//! A connection to the agent in a machine's guest, over the socket of its vsock device. What comes from there is the
//! guest's: any bytes.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use agent_wire::{HELLO, Inbound, Kind, Malformed, PORT, put};
use anyhow::{Context, Result, anyhow, bail, ensure};

use super::LOST;
use crate::names::{self, Known};

/// How long an agent that listens may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How old a machine is by when its agent listens, if there is one.
const BOOT_S: u64 = 30;
/// The interval of tries until then.
const PAUSE: Duration = Duration::from_millis(50);
/// Most characters of the guest's reason for a failure.
const MAX_REASON: usize = 400;

/// A connection on which a request was sent.
pub struct Connection {
    /// The guest's end is the agent.
    pub(super) stream: UnixStream,
    pub(super) inbound: Inbound,
}

impl Connection {
    /// One that a request was sent on, with the hello.
    pub(super) fn on(stream: UnixStream) -> Self {
        Self { stream, inbound: Inbound::default() }
    }

    /// Connects to the agent of `machine` and makes a request of it. A machine that has just started gets some time.
    ///
    /// # Errors
    ///
    /// There is no such machine, it has ended, or no agent of this version answers.
    pub fn open(machine: &str, kind: Kind, payload: &[u8]) -> Result<Self> {
        loop {
            let known = names::find(machine)?;
            ensure!(known.lives, "{machine}: the machine has ended, see tinyvmm logs {machine}");
            let mut request = HELLO.to_vec();
            put(&mut request, kind, payload);
            match Self::try_open(&known.vsock(), &request).with_context(|| machine.to_owned())? {
                Some(connection) => return Ok(connection),
                None if is_young(&known) => thread::sleep(PAUSE),
                None => bail!(
                    "{machine}: no agent answers in the guest: start the machine with --initrd and --name, or install \
                     what guest-images/build agent makes"
                ),
            }
        }
    }

    /// Makes a request that the agent answers with `Done`, at the `socket` of a machine's vsock device.
    ///
    /// # Errors
    ///
    /// No agent of this version answers within some seconds, or the guest's reason.
    pub fn ask(socket: &Path, kind: Kind, payload: &[u8]) -> Result<()> {
        let mut request = HELLO.to_vec();
        put(&mut request, kind, payload);
        let this = Self::try_open(socket, &request)?;
        let mut this = this.context("no agent answers in the guest")?;
        this.stream.set_read_timeout(Some(PATIENCE))?;
        match this.wait()? {
            (Kind::Done, _) => Ok(()),
            (Kind::Failure, payload) => bail!("{}", failure(&payload).1),
            _ => Err(strange(Malformed::Kind)),
        }
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    ///
    /// The connection is gone, or this is not the protocol.
    pub(super) fn wait(&mut self) -> Result<(Kind, Vec<u8>)> {
        loop {
            if let Some((kind, payload)) = self.inbound.next().map_err(strange)? {
                return Ok((kind, payload.to_vec()));
            }
            ensure!(self.receive()?, LOST);
        }
    }

    /// Receives some bytes; waits until there are some. False: the connection is gone.
    pub(super) fn receive(&mut self) -> Result<bool> {
        match self.stream.read(self.inbound.room()) {
            Ok(0) => return Ok(false),
            Ok(len) => self.inbound.add(len),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("the guest does not answer: is it paused?")
            }
            Err(error) => return Err(error).context(LOST),
        }
        Ok(true)
    }

    /// `None` if nobody listens in the guest.
    fn try_open(socket: &Path, request: &[u8]) -> Result<Option<Self>> {
        let stream = UnixStream::connect(socket);
        let mut stream = match stream {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("the machine has no vsock device: start it with fewer other devices")
            }
            stream => stream.context("cannot connect to its vsock device")?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
        if !is_accepted(&mut stream)? {
            return Ok(None);
        }
        stream.write_all(request).context(LOST)?;
        let mut this = Self::on(stream);
        while !this.inbound.greeted().map_err(strange)? {
            ensure!(this.receive()?, LOST);
        }
        this.stream.set_read_timeout(None)?;
        this.stream.set_write_timeout(None)?;
        Ok(Some(this))
    }
}

/// Whether the device answers `OK PORT`. A port that nobody has in the guest closes the connection.
fn is_accepted(stream: &mut UnixStream) -> Result<bool> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        match stream.read(&mut byte) {
            Ok(1..) => line.extend(byte),
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("the guest does not answer: is it paused?"),
        }
        ensure!(line.len() <= 32, "its vsock device gives a strange answer");
    }
    Ok(line.starts_with(b"OK "))
}

fn is_young(known: &Known) -> bool {
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    now.saturating_sub(known.description.started) < BOOT_S
}

/// What it means that the other side speaks something else.
pub(super) fn strange(malformed: Malformed) -> anyhow::Error {
    anyhow!(
        "{}",
        match malformed {
            Malformed::Version => "the guest's agent is of another version: install this one's",
            _ => "what answers in the guest is no agent of tinyvmm's",
        }
    )
}

/// The exit code and the reason of a `Failure`, fit for a terminal.
pub(super) fn failure(payload: &[u8]) -> (u8, String) {
    let Some((code, reason)) = payload.split_first() else {
        return (super::EXIT_NO_STATUS, String::new());
    };
    (*code, printable(reason).replace('\n', "?"))
}

/// The start of what a guest has written, fit for a terminal.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_REASON)]);
    let is_wrong = |c: char| c.is_control() && c != '\n';
    text.chars().take(MAX_REASON).map(|c| if is_wrong(c) { '?' } else { c }).collect()
}
