//! `tinyvmm ctl`: a client of the API for people.

pub mod snapshot;

use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueHint};
use serde_json::{Value, json};

use tinyvmm::config::Size;
use tinyvmm::layout;

use crate::names;

/// How long a response may take; a machine that starts may unpack a kernel first.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of a response.
const MAX_BYTES: u64 = 16 << 20;
/// The interval of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

/// The flags of `tinyvmm ctl`.
#[derive(Args, Debug)]
pub struct CtlOptions {
    /// The machine's name, or the path that --api-sock gave it
    #[arg(value_name = "MACHINE", value_hint = ValueHint::FilePath)]
    pub machine: PathBuf,

    /// What to do
    #[command(subcommand)]
    pub action: Action,

    /// Print the response as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Repeat every second, until the machine ends
    #[arg(long, global = true)]
    pub watch: bool,
}

/// The actions on a machine.
#[derive(Subcommand, Debug)]
pub enum Action {
    /// Report whether the VM runs, and how much memory is plugged if any can be
    Status,
    /// Report memory, processor time, exits and disks
    Stats,
    /// Pause the VM
    Pause,
    /// Resume the VM
    Resume,
    /// Press the power button
    PowerButton,
    /// End the VM at once
    Stop,
    /// Save what the machine is, for `tinyvmm --restore DIR`; it is paused meanwhile
    Snapshot {
        /// A folder, which is made
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
        /// End the machine with it
        #[arg(long)]
        stop: bool,
        /// Copy the disks, so that it needs no others; where the file system can, copies share what does not change
        #[arg(long)]
        with_disks: bool,
    },
    /// Plug or unplug memory, to this total. Without a size: report how much is plugged
    Memory {
        /// The total, with K, M, G or T; a whole number of M, up to the max of --mem
        #[arg(value_parser = whole_mib)]
        size: Option<Size>,
    },
    /// Set the size of the balloon: memory that the guest is to do without
    Balloon {
        /// With K, M, G or T; a whole number of M
        #[arg(value_parser = whole_mib)]
        size: Size,
    },
}

/// Parses a size that is a whole number of MiB, the API's unit.
fn whole_mib(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    let whole = size.bytes().is_multiple_of(layout::MIB);
    whole.then_some(size).ok_or_else(|| "say a whole number of M, as in 512M".into())
}

/// Method, path and body of a request.
type HttpRequest = (&'static str, &'static str, Option<Value>);

/// Makes the request and prints the response. An error is one line: no machine listens there, or it refuses.
pub fn main(options: &CtlOptions) -> Result<ExitCode> {
    let socket = &names::socket(&options.machine)?;
    if let Action::Snapshot { folder, stop, with_disks } = &options.action {
        snapshot::make(socket, folder, *stop, *with_disks)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (method, path, body) = match options.action {
        Action::Memory { size: Some(size) } => resize_memory(socket, size)?,
        _ => options.action.request(),
    };
    let is_question = method == "GET";
    let mut seen = false;
    loop {
        let mut answer = match ask(socket, PATIENCE, method, path, body.as_ref()) {
            // The machine has ended, and with it the watch.
            Err(_) if seen => return Ok(ExitCode::SUCCESS),
            answer => answer?,
        };
        if matches!(options.action, Action::Status)
            && let Ok(memory) = get(socket, "/hotplug/memory")
        {
            answer["memory"] = memory;
        }
        if matches!(options.action, Action::Memory { .. }) && is_question {
            let machine = get(socket, "/machine-config")?;
            let (first, more) = (&machine["mem_size_mib"], &answer["plugged_size_mib"]);
            answer["in_all_mib"] = json!(first.as_u64().zip(more.as_u64()).map(|(a, b)| a + b));
        }
        let text = match (is_question, options.json) {
            (false, _) => String::new(),
            (true, true) => format!("{answer}\n"),
            (true, false) => table(&answer),
        };
        // On a terminal each table is at the top left, and the rest of the screen is cleared; elsewhere tables are a
        // line apart.
        let clear = match options.watch && !options.json {
            true if std::io::stdout().is_terminal() => "\x1b[H\x1b[J",
            true if seen => "\n",
            _ => "",
        };
        let written = std::io::stdout().write_all(format!("{clear}{text}").as_bytes());
        if !options.watch || written.is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        seen = true;
        thread::sleep(EVERY);
    }
}

impl CtlOptions {
    /// Checks the flags as far as that takes no request.
    pub fn validate(&self) -> Result<()> {
        let changes = self.action.request().0 != "GET"
            || matches!(self.action, Action::Memory { size: Some(_) });
        ensure!(
            !self.watch || !changes,
            "--watch: what changes a machine is done once, leave it out"
        );
        Ok(())
    }
}

impl Action {
    fn request(&self) -> HttpRequest {
        let state = |state: &str| Some(json!({ "state": state }));
        match self {
            Self::Status => ("GET", "/", None),
            Self::Stats => ("GET", "/tinyvmm/stats", None),
            Self::Pause => ("PATCH", "/vm", state("Paused")),
            Self::Resume => ("PATCH", "/vm", state("Resumed")),
            Self::PowerButton => ("PUT", "/tinyvmm/power-button", None),
            Self::Stop => ("PUT", "/tinyvmm/stop", None),
            Self::Snapshot { .. } => ("PUT", "/tinyvmm/snapshot", None),
            Self::Memory { .. } => ("GET", "/hotplug/memory", None),
            Self::Balloon { size } => {
                ("PATCH", "/balloon", Some(json!({ "amount_mib": size.bytes() / layout::MIB })))
            }
        }
    }
}

/// The request that makes `size` the machine's total of memory.
fn resize_memory(socket: &Path, size: Size) -> Result<HttpRequest> {
    let machine = get(socket, "/machine-config")?;
    let first = machine["mem_size_mib"].as_u64().context("the response has no mem_size_mib")?;
    let more = (size.bytes() / layout::MIB).checked_sub(first);
    let more = more.with_context(|| {
        format!("memory {size}: the machine has started with {first}M, shrink it with the balloon")
    })?;
    let room = get(socket, "/hotplug/memory")?;
    let most = room["total_size_mib"].as_u64().context("the response has no total_size_mib")?;
    ensure!(more <= most, "memory {size}: the machine can have {}M in all", first + most);
    Ok(("PATCH", "/hotplug/memory", Some(json!({ "requested_size_mib": more }))))
}

fn get(socket: &Path, path: &str) -> Result<Value> {
    ask(socket, PATIENCE, "GET", path, None)
}

/// Makes a request of the machine that listens at `socket`, and returns the body of its response.
///
/// # Errors
///
/// No machine listens there, it does not answer within `patience`, or it refuses.
pub fn ask(
    socket: &Path,
    patience: Duration,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value> {
    let named = || format!("{}", socket.display());
    let stream = UnixStream::connect(socket);
    let mut stream = stream.context("no machine listens there").with_context(named)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let len = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).with_context(named)?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer).context("no answer").with_context(named)?;
    read_answer(&answer).with_context(named)
}

/// The body of a complete response.
fn read_answer(bytes: &[u8]) -> Result<Value> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(len)) = response.parse(bytes) else {
        bail!("the machine has closed the connection: try again");
    };
    let body = &bytes[len..];
    let value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(body).context("it does not speak JSON")?
    };
    if response.code.is_some_and(|code| code < 300) {
        return Ok(value);
    }
    bail!("{}", value["fault_message"].as_str().unwrap_or("the machine refuses"))
}

/// `value` as lines `name: value`, with nested names joined.
fn table(value: &Value) -> String {
    let mut text = String::new();
    add_rows(&mut text, "", value);
    text
}

fn add_rows(text: &mut String, name: &str, value: &Value) {
    let inner = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name} {key}") };
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| add_rows(text, &inner(key), value));
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                add_rows(text, &inner(&index.to_string()), item);
            }
        }
        value => {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // A guest can choose some texts; they must not control the terminal.
            let value = value.replace(char::is_control, "?");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<28} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_its_fault_is_the_error() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\":[1]}";
        assert_eq!(table(&read_answer(ok).unwrap()), format!("{:<28} 1\n", "a 0"));
        let done = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(read_answer(done).unwrap(), Value::Null);
        let fault = b"HTTP/1.1 400 Bad Request\r\n\r\n{\"fault_message\":\"no\"}";
        assert_eq!(read_answer(fault).unwrap_err().to_string(), "no");
        for cut in [&b""[..], b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n\r\n{\"a\""] {
            read_answer(cut).unwrap_err();
        }
    }
}
