//! The API: HTTP over a Unix socket, in the terms of Firecracker's (docs/firecracker-api.md).
//!
//! One thread speaks with the clients. What a client wants goes to the machine's owner as a [`Call`], and comes
//! back as an [`Answer`]; nothing else is shared.

pub mod bodies;
mod config_file;
mod connection;
pub mod control;
pub mod http;
mod metrics;
pub mod routes;
mod server;
mod setup;
mod socket;
mod stats;

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::SyncSender;

use anyhow::{Context, Result};
use serde_json::Value;

use self::routes::Request;
use self::server::Server;
use self::socket::{Place, Socket};
use crate::config::MachineConfig;
use crate::event::EventSender;
use crate::jail::Jail;
use crate::worker::Worker;

/// The version of the description that the API follows.
pub const FIRECRACKER_VERSION: &str = "1.16.1";

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It is done.
    Done,
    /// This is how it is.
    Value(Value),
    /// It cannot be, and why.
    Fault(String),
}

impl From<Result<()>> for Answer {
    fn from(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) => Self::Fault(format!("{error:#}")),
        }
    }
}

impl From<Result<Value>> for Answer {
    fn from(result: Result<Value>) -> Self {
        result.map_or_else(|error| Self::Fault(format!("{error:#}")), Self::Value)
    }
}

/// What a client wants, on its way to the machine's owner.
#[derive(Debug)]
pub struct Call {
    /// What it wants.
    pub request: Request,
    /// Takes one answer without waiting.
    pub reply: SyncSender<Answer>,
}

impl Call {
    /// Tells the client, who may be gone.
    pub fn answer(self, answer: impl Into<Answer>) {
        let _ = self.reply.try_send(answer.into());
    }
}

/// The API of this process: its socket, and the thread that serves it. Dropped, the socket is removed.
pub struct Door {
    place: Place,
    /// Until there is a thread for it.
    server: Option<Server>,
    thread: Option<Worker<Server>>,
}

impl Door {
    /// Makes the socket that `config` names, if it does.
    pub fn open_if_wanted(config: &MachineConfig, events: EventSender) -> Result<Option<Self>> {
        let most_bytes = config.http_api_max_payload_size as usize;
        let open = |path| Self::open(path, most_bytes, events);
        config.api_sock.as_deref().map(open).transpose()
    }

    fn open(path: &Path, most_bytes: usize, events: EventSender) -> Result<Self> {
        let named = || format!("--api-sock {}", path.display());
        let Socket { listener, place } = socket::listen(path).with_context(named)?;
        let server = Server::new(listener, most_bytes, events);
        Ok(Self { place, server: Some(server), thread: None })
    }

    /// Starts to serve, on a thread that is in its jail from the beginning.
    pub fn serve(&mut self, jail: &Jail, exit_code: u8) -> Result<()> {
        if let Some(server) = self.server.take() {
            jail.prepare(exit_code, Some(self.place.folder()))?;
            self.thread = Some(Worker::spawn(server)?);
        }
        Ok(())
    }

    /// The folder that the socket is in: it is removed from there at the end.
    pub fn folder(&self) -> &File {
        self.place.folder()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // First of all nobody new can come.
        self.place.remove();
        self.thread = None;
    }
}
