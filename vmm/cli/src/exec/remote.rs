//! A command in a guest whose streams are this process's to read and write.

use std::io::{self, ErrorKind, Read, Write};

use agent_wire::{Exec, Kind, WINDOW, put};
use anyhow::{Context, Result, bail};

use super::agent::{Connection, failure, printable};

/// Most bytes of the command's standard error that are kept.
const MAX_ERRORS: usize = 4096;

/// A command that runs.
pub(super) struct Remote {
    connection: Connection,
    /// How many more bytes of input may be under way.
    window: usize,
    /// Output that was not read yet: how much of it was.
    piece: (Vec<u8>, usize),
    errors: Vec<u8>,
    /// How it has ended: its status, or why it could not run.
    end: Option<Result<u8, String>>,
}

impl Remote {
    /// Starts a command in the guest of `machine`.
    pub fn start(machine: &str, args: &[&[u8]]) -> Result<Self> {
        let args = args.iter().map(|arg| arg.to_vec()).collect();
        let request = Exec { args, ..Exec::default() }.encode().context("a path is too long")?;
        let connection = Connection::open(machine, Kind::Exec, &request)?;
        Ok(Self {
            connection,
            window: WINDOW,
            piece: (Vec::new(), 0),
            errors: Vec::new(),
            end: None,
        })
    }

    /// Waits for a frame, and acts on it.
    fn step(&mut self) -> Result<()> {
        let (kind, payload) = self.connection.wait()?;
        match (kind, &payload[..]) {
            (Kind::Output, _) => self.piece = (payload, 0),
            (Kind::Errors, _) => {
                let room = MAX_ERRORS - self.errors.len();
                self.errors.extend(&payload[..payload.len().min(room)]);
            }
            (Kind::Taken, [a, b, c, d]) => {
                let taken = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
                self.window = self.window.saturating_add(taken).min(WINDOW);
            }
            (Kind::Status, [0, status]) => self.end = Some(Ok(*status)),
            (Kind::Status, [1, _]) => self.end = Some(Err("a signal has ended it".into())),
            (Kind::Failure, _) => self.end = Some(Err(failure(&payload).1)),
            _ => bail!("what answers in the guest is no agent of tinyvmm's"),
        }
        Ok(())
    }

    /// Whether its end was seen.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Ends its input, and waits for its end; returns its status.
    pub fn finish(&mut self) -> Result<u8> {
        let mut end = Vec::new();
        put(&mut end, Kind::Input, &[]);
        // One that has ended takes none.
        let _ = self.connection.stream.write_all(&end);
        loop {
            match &self.end {
                Some(Ok(status)) => return Ok(*status),
                Some(Err(why)) => bail!("{why}"),
                None => self.step()?,
            }
        }
    }

    /// As [`Self::finish`]; a status that is not 0 is an error with what the command has said.
    pub fn succeed(&mut self) -> Result<()> {
        match self.finish()? {
            0 => Ok(()),
            status => {
                let said = printable(&self.errors);
                let line = said.lines().next().unwrap_or_default();
                bail!(
                    "the guest: {}",
                    if line.is_empty() { format!("exit status {status}") } else { line.into() }
                )
            }
        }
    }
}

impl Read for Remote {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let (piece, done) = &mut self.piece;
            if *done < piece.len() {
                let len = (&piece[*done..]).read(bytes)?;
                *done += len;
                return Ok(len);
            }
            if self.end.is_some() {
                return Ok(0);
            }
            self.step().map_err(io::Error::other)?;
        }
    }
}

impl Write for Remote {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.window == 0 && self.end.is_none() {
            self.step().map_err(io::Error::other)?;
        }
        if self.end.is_some() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let len = bytes.len().min(self.window);
        let mut frame = Vec::new();
        put(&mut frame, Kind::Input, &bytes[..len]);
        // An empty one would be the end.
        if len > 0 {
            self.connection.stream.write_all(&frame)?;
        }
        self.window -= len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
