//! The command that a machine was started with, `tinyvmm ... -- COMMAND`, on this process's standard streams: by the agent,
//! which init starts and which then connects to the host, or on the console of a guest whose kernel has no vsock.

use std::fs::File;
use std::io::{IsTerminal, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use agent_wire::{Exec, HELLO, Kind, PORT, put};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::OutputModes;
use tinyvmm::virtio::vsock::host::Host;
use tinyvmm::worker::{StopFlag, ThreadKind, Work, Worker, borrow};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::agent::{Connection, failure, strange};
use super::input::{Input, PIECE};
use super::session::{End, Session};
use super::signals::Signals;
use super::{EXIT_NO_STATUS, terminal_size};
use crate::command::kind_of_terminal;
use crate::inbox::{self, Waker};
use crate::terminal::{Mode, Terminal};
use crate::{jail, logger};

/// What init has the agent run: a script that it has written, with the command and init's environment.
const WORDS: [&str; 2] = ["/bin/sh", "/tinyvmm/run"];
/// Why a command cannot be passed on.
const TOO_LONG: &str = "-- COMMAND: it is longer than 128 KiB, leave --template out";
/// What runs that script on the console, as init does it where there is no agent.
const ON_CONSOLE: &str = r#"printf '\002' | /tinyvmm/tell
exec </dev/console >/dev/console 2>&1
/bin/sh /tinyvmm/run "$@"
status=$?
stty sane 2>/dev/null
exit $status"#;

/// The command. Dropping it restores the terminal.
pub struct GuestCommand {
    /// The guest's ends of the connection with the agent, and of the console's input, until they are taken.
    stream: Option<OwnedFd>,
    source: Option<File>,
    streams: Option<Streams>,
    thread: Option<Worker<Streams>>,
    on_console: Arc<EventFd>,
}

impl GuestCommand {
    /// Prepares its streams. Without `request`, the payload of one, it is the script that init has written.
    pub fn open(request: Option<&[u8]>) -> Result<Self> {
        let of_image = request.and_then(Exec::decode).map(|mut exec| {
            exec.env.splice(0..0, term());
            exec
        });
        let exec = of_image.unwrap_or_else(|| exec_of(&WORDS, &[]));
        Self::of(HELLO.to_vec(), exec, Manner::default())
    }

    /// The request for `words` in a guest whose root is a container's; `None` if it is too long for one.
    pub fn in_container(words: &[String]) -> Option<Vec<u8>> {
        Exec { folder: Some(b"/".into()), ..exec_of(&[], words) }.encode()
    }

    /// The command `words` of a template's guest, which first takes its `identity`. Its streams are this process's if they
    /// `are_ours`; else it has the guest's console.
    pub fn of_template(words: &[String], identity: &[u8], are_ours: bool) -> Result<Self> {
        let mut request = HELLO.to_vec();
        put(&mut request, Kind::Identity, identity);
        let script = if are_ours { &WORDS[..] } else { &["/bin/sh", "-c", ON_CONSOLE, "sh"] };
        // What init knows of the terminal is the maker's.
        let exec = Exec { env: term().into_iter().collect(), ..exec_of(script, words) };
        Self::of(request, exec, Manner { has_console: !are_ours, is_of_template: true })
    }

    /// None yet: what comes of the agent's connection is up to who has the other end of standard input.
    pub fn awaited() -> Result<Self> {
        let stream = Some(stdin().as_fd().try_clone_to_owned()?);
        let on_console = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self { stream, source: None, streams: None, thread: None, on_console })
    }

    /// One that is requested after `request`.
    fn of(mut request: Vec<u8>, exec: Exec, manner: Manner) -> Result<Self> {
        let (ours, stream) = UnixStream::pair().context("cannot make sockets")?;
        let (console, source) = UnixStream::pair().context("cannot make sockets")?;
        console.set_nonblocking(true)?;
        let is_on_terminal = stdin().is_terminal() && stdout().is_terminal() && !manner.has_console;
        let exec = Exec { terminal: is_on_terminal.then(terminal_size), ..exec };
        let too_long = if manner.is_of_template { TOO_LONG } else { "it is longer than 128 KiB" };
        put(&mut request, Kind::Exec, &exec.encode().context(too_long)?);
        // It waits in the socket until the agent connects.
        (&ours).write_all(&request)?;
        let on_console = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let streams = Streams {
            connection: Some(Connection::on(ours)),
            console,
            on_console: on_console.clone(),
            input: None,
            is_on_terminal,
            manner,
            given_up: None,
        };
        let source = match manner.has_console {
            true => stdin().as_fd().try_clone_to_owned()?,
            false => source.into(),
        };
        let source = Some(File::from(source));
        let (stream, streams) = (Some(stream.into()), Some(streams));
        Ok(Self { stream, source, streams, thread: None, on_console })
    }

    /// Has the connection that the agent makes from within the guest lead here.
    pub fn connect(&mut self, host: &Host) -> Result<()> {
        match self.stream.take() {
            Some(stream) => Ok(host.serve_first(PORT, stream)?),
            None => Ok(()),
        }
    }

    /// Takes the terminal, if there is one; returns the source of the console's input.
    pub fn source(&mut self, waker: Waker) -> Result<Option<File>> {
        if let Some(streams) = self.streams.as_mut().filter(|streams| !streams.manner.has_console) {
            let mode = if streams.is_on_terminal { Mode::default() } else { Mode::Cooked };
            streams.input = Some(Input::new(true, Terminal::open(waker, false, mode)?)?);
        }
        Ok(self.source.take())
    }

    /// Starts its thread.
    pub fn start(&mut self) -> Result<()> {
        self.thread = self.streams.take().map(Worker::spawn).transpose()?;
        Ok(())
    }

    /// The guest has no agent that could connect: the command is on the console.
    pub fn use_console(&self) {
        // Cannot fail: the counter is far below its limit.
        let _ = self.on_console.write(1);
    }

    /// Ends its thread, when the machine has ended. Returns the exit code if the command was not waited for.
    pub fn finish(self) -> Option<u8> {
        self.thread.and_then(Worker::stop).and_then(|streams| streams.given_up)
    }
}

/// The value of TERM that a command gets, if it is on this terminal.
fn term() -> Option<Vec<u8>> {
    kind_of_terminal().map(|term| format!("TERM={term}").into())
}

/// A request to run `script` with `words`.
fn exec_of(script: &[&str], words: &[String]) -> Exec {
    let script = script.iter().map(|word| (*word).into());
    let args = script.chain(words.iter().map(|word| word.clone().into())).collect();
    Exec { args, ..Exec::default() }
}

/// How a command runs.
#[derive(Clone, Copy, Default)]
struct Manner {
    /// By the agent, on the guest's console: nothing is passed on.
    has_console: bool,
    is_of_template: bool,
}

/// The process's standard streams, and where they lead.
struct Streams {
    /// With the agent, once that connects.
    connection: Option<Connection>,
    /// What is written here is the console's input.
    console: UnixStream,
    on_console: Arc<EventFd>,
    input: Option<Input>,
    is_on_terminal: bool,
    manner: Manner,
    /// The exit code of a command that is left to itself.
    given_up: Option<u8>,
}

/// Who runs the command.
enum Way {
    Agent,
    Console,
    /// The machine has ended before that.
    Nobody,
}

/// An entry for poll(2): a descriptor that is not waited for is replaced by `nothing`, without events.
fn entry<'a>(fd: Option<BorrowedFd<'a>>, nothing: BorrowedFd<'a>, flags: PollFlags) -> PollFd<'a> {
    let flags = if fd.is_some() { flags } else { PollFlags::empty() };
    PollFd::from_borrowed_fd(fd.unwrap_or(nothing), flags)
}

/// Which of `fds` are ready.
fn ready<const N: usize>(mut fds: [PollFd; N], patience: Option<&Timespec>) -> [bool; N] {
    match poll(&mut fds, patience) {
        Ok(_) => fds.map(|fd| !fd.revents().is_empty()),
        Err(_) => [false; N], // EINTR
    }
}

impl Streams {
    /// Waits until the guest shows who runs the command. Of a terminal our own keys are found meanwhile.
    fn wait(&self, stop: &StopFlag, input: &mut Input, connection: &Connection) -> Way {
        while !stop.is_set() {
            let (nothing, patience) = (stop.as_fd(), input.patience());
            let fds = [
                entry(Some(nothing), nothing, PollFlags::IN),
                entry(Some(connection.stream.as_fd()), nothing, PollFlags::IN),
                entry(Some(borrow(&self.on_console)), nothing, PollFlags::IN),
                entry(input.source().filter(|_| input.has_keys()), nothing, PollFlags::IN),
                entry(input.changed(), nothing, PollFlags::IN),
            ];
            let [_, agent, console, typed, changed] = ready(fds, patience.as_ref());
            if agent {
                return Way::Agent;
            }
            if console {
                return Way::Console;
            }
            input.check(changed);
            if typed {
                input.read();
            }
        }
        Way::Nobody
    }

    /// Serves the command that the agent runs, to its end.
    fn attend(&mut self, stop: &StopFlag, mut input: Input, connection: Connection) -> Result<End> {
        if self.is_on_terminal {
            // The guest's terminal returns the carriage.
            input.set_mode(Mode::Raw(OutputModes::empty()))?;
        }
        let signals = Signals::new(self.is_on_terminal)?;
        let mut session = Session::new(connection, signals, input);
        if self.manner.is_of_template {
            session = session.after_identity();
        }
        if self.is_on_terminal {
            session.send_size();
        }
        session.run(Some(stop))
    }

    /// Passes input on to the console.
    fn relay(&self, stop: &StopFlag, mut input: Input) -> Result<()> {
        input.set_mode(Mode::default())?;
        let mut rest = Vec::new();
        while !stop.is_set() {
            if rest.is_empty() {
                match input.next(PIECE) {
                    Some(bytes) if bytes.is_empty() => self.console.shutdown(Shutdown::Write)?,
                    bytes => rest = bytes.unwrap_or_default(),
                }
            }
            let (nothing, patience) = (stop.as_fd(), input.patience());
            let console = (!rest.is_empty()).then(|| self.console.as_fd());
            let fds = [
                entry(Some(nothing), nothing, PollFlags::IN),
                entry(console, nothing, PollFlags::OUT),
                entry(input.source(), nothing, PollFlags::IN),
                entry(input.changed(), nothing, PollFlags::IN),
            ];
            let [_, room, typed, changed] = ready(fds, patience.as_ref());
            if room {
                let taken = (&self.console).write(&rest).unwrap_or(0);
                rest.drain(..taken);
            }
            input.check(changed);
            if typed {
                input.read();
            }
        }
        Ok(())
    }
}

/// Waits until a command on the console has ended. Nobody waits for its status here: init reports that.
fn await_end(stop: &StopFlag, mut connection: Connection) -> Result<()> {
    while !stop.is_set() {
        match connection.inbound.next().map_err(strange)? {
            Some((Kind::Status, _)) => return Ok(()),
            Some((Kind::Failure, payload)) => bail!("{}", failure(payload).1),
            Some(_) => continue,
            None => {}
        }
        let (stop, stream) = (stop.as_fd(), connection.stream.as_fd());
        let fds = [stop, stream].map(|fd| entry(Some(fd), fd, PollFlags::IN));
        let [_, news] = ready(fds, None);
        if news && !connection.receive()? {
            return Ok(());
        }
    }
    Ok(())
}

fn report_failure(done: Result<()>) {
    if let Err(error) = done {
        logger::print_message(format_args!("-- COMMAND: {error:#}"));
    }
}

impl Work for Streams {
    fn name(&self) -> String {
        "command".into()
    }

    fn kind(&self) -> ThreadKind {
        jail::COMMAND
    }

    fn run(&mut self, stop: &StopFlag) {
        let Some(connection) = self.connection.take() else { return };
        if self.manner.has_console {
            return report_failure(await_end(stop, connection));
        }
        let Some(mut input) = self.input.take() else { return };
        let end = match self.wait(stop, &mut input, &connection) {
            Way::Agent => self.attend(stop, input, connection),
            Way::Console => return drop(self.relay(stop, input)),
            Way::Nobody => return,
        };
        // The connection is closed: the agent ends, and then init ends the machine, with the disks as they are to be.
        inbox::take_signals();
        self.given_up = match end {
            Ok(End::Status(_) | End::Lost) => None,
            Ok(End::GivenUp(code)) => Some(code),
            Err(error) => {
                report_failure(Err(error));
                Some(EXIT_NO_STATUS)
            }
        };
        if self.given_up.is_some() {
            inbox::request_stop();
        }
    }
}
