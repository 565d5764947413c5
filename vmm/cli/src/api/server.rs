//! The thread that serves the API's clients: many connections, one request at a time.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::Connection;
use super::http::{self, Manner};
use super::requests::RequestCounts;
use super::routes::{self, ApiRequest};
use super::{ApiCall, ApiResponse, journal};
use crate::inbox::Waker;
use crate::jail;
use crate::logger::log_as_firecracker;
use tinyvmm::worker::{StopFlag, ThreadKind, Work};

/// Most clients at a time. For one more, the client that has been idle for longest is disconnected.
const MAX_CLIENTS: usize = 16;
/// The interval of checks whether the machine's owner is at its end.
const LOOK: Duration = Duration::from_millis(100);

pub(super) struct Server {
    /// Non-blocking.
    pub listener: UnixListener,
    pub clients: Vec<Connection>,
    /// Most bytes of a request's body.
    pub max_bytes: usize,
    pub calls: Sender<ApiCall>,
    pub waker: Waker,
    /// What it calls itself.
    pub name: &'static str,
    pub counts: Arc<RequestCounts>,
}

impl Server {
    /// Waits until a client is ready, or `stop` is set; returns whether a new client connects, and for each client
    /// whether it is ready.
    fn wait(&self, stop: &StopFlag) -> (bool, Vec<bool>) {
        let watch =
            |client: &Connection| if client.is_sending() { PollFlags::OUT } else { PollFlags::IN };
        let mut fds = vec![
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        fds.extend(self.clients.iter().map(|c| PollFd::from_borrowed_fd(c.as_fd(), watch(c))));
        let deadline = self.clients.iter().map(Connection::deadline).min();
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // An error is EINTR: none is ready then.
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return (false, vec![false; self.clients.len()]);
        }
        let mut ready = fds.iter().skip(1).map(|fd| !fd.revents().is_empty());
        (ready.next().unwrap_or(false), ready.collect())
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                if self.clients.len() >= MAX_CLIENTS {
                    let least = |client: &&Connection| (!client.is_idle(), client.since());
                    let at = self.clients.iter().min_by_key(least).map(Connection::since);
                    let at = self.clients.iter().position(|client| Some(client.since()) == at);
                    self.clients.swap_remove(at.unwrap_or(0));
                }
                self.clients.push(Connection::new(stream));
            }
            // Out of descriptors or memory: the listener stays readable, so wait before the next try.
            Err(error) if error.kind() != ErrorKind::WouldBlock => thread::sleep(LOOK),
            _ => {}
        }
    }

    /// Serves a client that is ready; false when its connection is done.
    fn serve(&self, client: &mut Connection, stop: &StopFlag) -> bool {
        if client.is_sending() {
            if !client.write() {
                return false;
            }
        } else if !client.read() {
            return false;
        }
        while let Some(request) = client.take_request(self.max_bytes) {
            match request {
                Err(refusal) => client.send(http::render_refusal(&refusal, self.name), true),
                Ok((head, body)) => {
                    let (files, now) = (client.take_files(), Instant::now());
                    journal::received(head.method, &head.path, &body);
                    let request = routes::request(head.method, &head.path, &body);
                    let deprecated = request.as_ref().ok().and_then(ApiRequest::deprecated);
                    let place = self.counts.arrived(head.method, &head.path);
                    let Some(answer) = self.answer(request, files, stop) else { return false };
                    let failed = matches!(answer, ApiResponse::Fault(_));
                    self.counts.answered(place, failed, deprecated.is_some());
                    journal::answered(&answer, deprecated, now);
                    let (server, closes) = (self.name, head.closes);
                    let manner = Manner { server, closes, is_deprecated: deprecated.is_some() };
                    client.send(http::render(&answer, manner), closes);
                }
            }
            if !client.write() {
                return false;
            }
        }
        !client.is_over()
    }

    /// The owner's response; `None` when the owner is gone.
    fn answer(
        &self,
        request: Result<ApiRequest, String>,
        files: Vec<File>,
        stop: &StopFlag,
    ) -> Option<ApiResponse> {
        let request = match request {
            Ok(request) => request,
            Err(reason) => return Some(ApiResponse::Fault(reason)),
        };
        let (reply, answer) = mpsc::sync_channel(1);
        self.calls.send(ApiCall { request, files, reply }).ok()?;
        self.waker.door();
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) if !stop.is_set() => {}
                Err(_) => return None,
            }
        }
    }
}

impl Work for Server {
    fn name(&self) -> String {
        "api".into()
    }

    fn kind(&self) -> ThreadKind {
        jail::API
    }

    fn run(&mut self, stop: &StopFlag) {
        log_as_firecracker(Level::Info, format_args!("API server started."));
        while !stop.is_set() {
            let (newcomer, ready) = self.wait(stop);
            let now = Instant::now();
            let clients = std::mem::take(&mut self.clients);
            for (mut client, ready) in clients.into_iter().zip(ready) {
                let stays =
                    if ready { self.serve(&mut client, stop) } else { client.deadline() > now };
                if stays {
                    self.clients.push(client);
                }
            }
            if newcomer {
                self.accept();
            }
        }
    }
}
