//! `tinyvmm ps`: the machines that have names.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tinyvmm::layout;

use crate::ctl;
use crate::names::{self, Known};

/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The flags of `tinyvmm ps`.
#[derive(Args, Debug)]
pub struct PsOptions {
    /// Print an array of JSON, with memory in KiB and the uptime in seconds
    #[arg(long)]
    json: bool,
}

/// A machine in the list.
#[derive(Serialize)]
struct Row {
    name: String,
    /// running, paused, waiting (for clients of its API), silent (it does not answer); not running: failed, killed.
    state: &'static str,
    cpus: u32,
    memory_kib: u64,
    /// Guest RAM and the process's own memory, as far as they are resident.
    resident_kib: Option<u64>,
    /// Ports of the host that lead into the guest.
    ports: Vec<String>,
    uptime_s: Option<u64>,
    /// How a machine has failed.
    end: Option<String>,
}

impl Row {
    fn of(known: Known) -> Self {
        let stats = known.lives.then(|| get(&known, "/tinyvmm/stats")).flatten();
        let kib = |name: &str| stats.as_ref().and_then(|stats| stats["memory_kib"][name].as_u64());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let names::Description { cpus, memory, ports, started, end, .. } =
            known.description.clone();
        Self {
            state: state(&known, stats.as_ref()),
            cpus,
            memory_kib: (memory >> 10) + kib("plugged").unwrap_or(0),
            resident_kib: kib("guest").zip(kib("vmm")).map(|(guest, vmm)| guest + vmm),
            ports,
            uptime_s: known.lives.then(|| now.as_secs().saturating_sub(started)),
            end: end.filter(|_| !known.lives),
            name: known.name,
        }
    }
}

fn get(known: &Known, path: &str) -> Option<Value> {
    ctl::ask(&known.api(), PATIENCE, "GET", path, None).ok()
}

fn state(known: &Known, stats: Option<&Value>) -> &'static str {
    match stats.and_then(|stats| stats["state"].as_str()) {
        _ if !known.lives && known.description.end.is_some() => "failed",
        _ if !known.lives => "killed",
        Some("Paused") => "paused",
        Some(_) => "running",
        // One that has not started has no statistics.
        None if get(known, "/").is_some() => "waiting",
        None => "silent",
    }
}

/// Prints the list.
pub fn ps(options: &PsOptions) -> Result<ExitCode> {
    let rows: Vec<_> = names::all()?.into_iter().map(Row::of).collect();
    let text =
        if options.json { serde_json::to_string_pretty(&rows)? + "\n" } else { table(&rows) };
    // A reader may be gone.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let titles =
        ["NAME", "STATE", "CPUS", "MEMORY", "RESIDENT", "UPTIME", "PORTS"].map(str::to_owned);
    let all = std::iter::once(titles).chain(rows.iter().map(cells)).collect::<Vec<_>>();
    let width = |at: usize| all.iter().map(|cells| cells[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    for cells in &all {
        let line = cells.iter().zip(widths).fold(String::new(), |mut line, (cell, width)| {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
            line
        });
        text = text + line.trim_end() + "\n";
    }
    text
}

fn cells(row: &Row) -> [String; 7] {
    let mib = |kib: u64| format!("{}M", kib / (layout::MIB >> 10));
    let uptime = |s| humantime::format_duration(Duration::from_secs(s)).to_string();
    // The reason has no column of its own.
    let state =
        row.end.as_ref().map_or(row.state.to_owned(), |end| format!("{}: {end}", row.state));
    [
        row.name.clone(),
        state.replace(char::is_control, "?"),
        row.cpus.to_string(),
        mib(row.memory_kib),
        row.resident_kib.map_or("-".into(), mib),
        row.uptime_s.map_or("-".into(), uptime),
        row.ports.join(" "),
    ]
}
