//! The API: HTTP over a Unix socket, with Firecracker's requests (docs/firecracker-api.md).
//!
//! One thread serves the clients. It sends a request to the machine's owner as an [`ApiCall`], and gets an
//! [`ApiResponse`] back; nothing else is shared.

pub mod bodies;
mod config_file;
mod connection;
pub mod control;
pub mod http;
mod journal;
mod metrics;
mod requests;
pub mod routes;
mod server;
mod setup;
mod stats;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

use anyhow::{Context, Result};
use log::Level;
use serde_json::Value;
use tinyvmm::machine::LiveMachine;
use tinyvmm::worker::Worker;

pub use self::control::Api;
use self::requests::RequestCounts;
use self::routes::ApiRequest;
use self::server::Server;
use crate::config::Config;
use crate::inbox::{End, Waker};
use crate::jail::{Jail, landlock};
use crate::logger::{self, log_as_firecracker};
use crate::measure::Record;
use crate::snapshot::Subject;
use crate::socket::{self, Socket, SocketPath};

/// The version of the description that the API follows.
pub const FIRECRACKER_VERSION: &str = "1.16.1";

/// The response to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiResponse {
    /// Success: 204.
    Done,
    /// Success with a value: 200.
    Value(Value),
    /// Rejected, with the reason: 400.
    Fault(String),
}

impl From<Result<()>> for ApiResponse {
    fn from(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) => Self::Fault(format!("{error:#}")),
        }
    }
}

impl From<Result<Value>> for ApiResponse {
    fn from(result: Result<Value>) -> Self {
        result.map_or_else(|error| Self::Fault(format!("{error:#}")), Self::Value)
    }
}

/// A client's request, on its way to the machine's owner.
#[derive(Debug)]
pub struct ApiCall {
    /// The request.
    pub request: ApiRequest,
    /// Files that the client has opened and sent along.
    pub files: Vec<File>,
    /// Takes one response without blocking.
    pub reply: SyncSender<ApiResponse>,
}

impl ApiCall {
    /// Sends the response to the client, who may be gone.
    pub fn answer(self, answer: impl Into<ApiResponse>) {
        let _ = self.reply.try_send(answer.into());
    }
}

/// The socket of the API, and the thread that serves it. Dropping it removes the socket.
struct ApiServer {
    place: SocketPath,
    /// `None` once its thread runs.
    server: Option<Server>,
    thread: Option<Worker<Server>>,
    calls: Receiver<ApiCall>,
}

impl ApiServer {
    fn bind(
        path: &Path,
        max_bytes: usize,
        waker: Waker,
        counts: Arc<RequestCounts>,
    ) -> Result<Self> {
        let named = || {
            let (path, ours) = (path.display(), format!("--api-sock {}", path.display()));
            let words = format!(
                "RunWithApiError error: Failed to open the API socket at: {path}. Check that it is not already used."
            );
            logger::worded(&words, ours)
        };
        let Socket { listener, place } = socket::listen(path).with_context(named)?;
        log_as_firecracker(Level::Info, format_args!("Listening on API socket ({path:?})."));
        let (sender, calls) = mpsc::channel();
        let name = if logger::is_firecracker() { "Firecracker API" } else { "tinyvmm" };
        let server =
            Server { listener, clients: Vec::new(), max_bytes, calls: sender, waker, name, counts };
        Ok(Self { place, server: Some(server), thread: None, calls })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // No new clients from here on.
        self.place.remove();
        self.thread = None;
    }
}

impl Api {
    /// Binds the socket and reads the file that `config` names; `None` if `config` names neither.
    pub fn open(config: &Config, record: &Arc<Record>, waker: Waker) -> Result<Option<Self>> {
        let process = &config.process;
        if process.api_sock.is_none() && process.config_file.is_none() {
            return Ok(None);
        }
        let mut api = Self::new(config, record)?;
        let max_bytes = process.http_api_max_payload_size as usize;
        let bind = |path| ApiServer::bind(path, max_bytes, waker, api.requests.clone());
        api.server = process.api_sock.as_deref().map(bind).transpose()?;
        Ok(Some(api))
    }

    /// Starts the thread that serves clients, with its filter from the start.
    pub fn serve(&mut self, jail: &Jail) -> Result<()> {
        if let Some(server) = &mut self.server
            && let Some(work) = server.server.take()
        {
            jail.prepare(Some(server.place.folder()))?;
            server.thread = Some(Worker::spawn(work)?);
        }
        Ok(())
    }

    /// The folder of the socket, from which it is removed at the end.
    pub fn folder(&self) -> Option<&File> {
        self.server.as_ref().map(|server| server.place.folder())
    }

    /// The paths in which PATCH /drives and PUT /snapshot/create open files while the machine runs.
    pub fn places(&self) -> Result<Vec<landlock::AllowedPath>> {
        if self.server.is_none() {
            return Ok(Vec::new());
        }
        let mut places = self.setup.places().context("the folders of drives")?;
        if let Some(folder) = &self.config().process.snapshots {
            let place = landlock::AllowedPath::for_new_files(folder);
            places.push(place.with_context(|| format!("--snapshots {}", folder.display()))?);
        }
        Ok(places)
    }

    /// Sets whether files can be opened in these while the machine runs.
    pub fn allow_opening(&mut self, may_open: bool) {
        self.may_open = may_open;
    }

    fn next_call(&self) -> Option<ApiCall> {
        self.server.as_ref()?.calls.try_recv().ok()
    }

    /// Serves waiting calls before there is a machine. Returns a call that requests a start if nothing is missing, or
    /// the end.
    pub fn serve_before_start(&mut self) -> Option<Result<ApiCall, End>> {
        while let Some(call) = self.next_call() {
            let wanted = self.serve_before(call);
            if wanted.is_some() {
                return wanted;
            }
        }
        None
    }

    /// Serves waiting calls for a machine that has started; returns the end if a call requests it.
    pub fn serve_calls(&mut self, machine: &mut LiveMachine, subject: &Subject) -> Option<End> {
        while let Some(call) = self.next_call() {
            let end = self.serve_after(call, machine, subject);
            if end.is_some() {
                return end;
            }
        }
        None
    }
}
