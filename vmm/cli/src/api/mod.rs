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
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

use anyhow::{Context, Result};
use serde_json::Value;
use tinyvmm::machine::LiveMachine;
use tinyvmm::memory::GuestRam;
use tinyvmm::worker::Worker;

pub use self::control::Api;
use self::routes::Request;
use self::server::Server;
use self::socket::{Place, Socket};
use crate::config::Config;
use crate::inbox::{End, Waker};
use crate::jail::{Jail, landlock};
use crate::measure::Record;

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

/// The socket of the API, and the thread that serves it. Dropped, the socket is removed.
struct ApiServer {
    place: Place,
    /// Until there is a thread for it.
    server: Option<Server>,
    thread: Option<Worker<Server>>,
    calls: Receiver<Call>,
}

impl ApiServer {
    fn bind(path: &Path, max_bytes: usize, waker: Waker) -> Result<Self> {
        let named = || format!("--api-sock {}", path.display());
        let Socket { listener, place } = socket::listen(path).with_context(named)?;
        let (sender, calls) = mpsc::channel();
        let server = Server::new(listener, max_bytes, sender, waker);
        Ok(Self { place, server: Some(server), thread: None, calls })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // First of all nobody new can come.
        self.place.remove();
        self.thread = None;
    }
}

impl Api {
    /// Binds the socket and reads the file that `config` names; `None` if it names neither.
    pub fn open(config: &Config, record: &Arc<Record>, waker: Waker) -> Result<Option<Self>> {
        let process = &config.process;
        if process.api_sock.is_none() && process.config_file.is_none() {
            return Ok(None);
        }
        let mut api = Self::new(config, record)?;
        let max_bytes = process.http_api_max_payload_size as usize;
        let bind = |path| ApiServer::bind(path, max_bytes, waker);
        api.server = process.api_sock.as_deref().map(bind).transpose()?;
        Ok(Some(api))
    }

    /// Starts to serve, on a thread that is in its jail from the beginning.
    pub fn serve(&mut self, jail: &Jail) -> Result<()> {
        if let Some(server) = &mut self.server
            && let Some(work) = server.server.take()
        {
            jail.prepare(Some(server.place.folder()))?;
            server.thread = Some(Worker::spawn(work)?);
        }
        Ok(())
    }

    /// The folder that the socket is in: it is removed from there at the end.
    pub fn folder(&self) -> Option<&File> {
        self.server.as_ref().map(|server| server.place.folder())
    }

    /// Where files are to be opened once the machine runs, for PATCH /drives.
    pub fn places(&self) -> Result<Vec<landlock::Place>> {
        if self.server.is_none() {
            return Ok(Vec::new());
        }
        self.setup.places().context("the folders of drives")
    }

    /// Whether files can be opened there once the machine runs.
    pub fn allow_opening(&mut self, may_open: bool) {
        self.may_open = may_open;
    }

    fn next_call(&self) -> Option<Call> {
        self.server.as_ref()?.calls.try_recv().ok()
    }

    /// Serves the calls that wait, before there is a machine. A call that is returned wants one, and nothing is missing;
    /// or it wants the end.
    pub fn serve_before_start(&mut self) -> Option<Result<Call, End>> {
        while let Some(call) = self.next_call() {
            let wanted = self.serve_before(call);
            if wanted.is_some() {
                return wanted;
            }
        }
        None
    }

    /// Serves the calls that wait, for a machine that has started; returns the end, if one asks for it.
    pub fn serve_calls(&mut self, machine: &mut LiveMachine, ram: &GuestRam) -> Option<End> {
        while let Some(call) = self.next_call() {
            let end = self.serve_after(call, machine, ram);
            if end.is_some() {
                return end;
            }
        }
        None
    }
}
