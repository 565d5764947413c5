//! `--boot-report`: where a boot's time went, as a table or, in a file that ends in .json, as JSON.
//!
//! docs/boot-report.md describes the JSON.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use tinyvmm::config::MachineConfig;

use crate::files;
use crate::inbox::End;
use crate::logger;
use crate::measure::exits::ExitCounts;
use crate::measure::{Reached, Record};
use tinyvmm::memory::{self, GuestRam};

/// Changes when a field goes or changes its meaning.
const SCHEMA: u32 = 1;

/// The JSON of a boot report.
#[derive(Serialize)]
struct BootReport {
    schema: u32,
    version: &'static str,
    end: &'static str,
    exit_code: u8,
    marks: Vec<Reached>,
    exits: Option<ExitCounts>,
    instructions: Option<u64>,
    memory_kib: Memory,
}

/// Memory of the process, in KiB.
#[derive(Clone, Copy, Default, Serialize)]
pub struct Memory {
    /// Resident guest RAM.
    guest: u64,
    /// All other resident memory of the process.
    vmm: u64,
    /// The most that was resident at any time, in all.
    peak: u64,
}

impl Memory {
    fn parse(status: &str, maps: &str, ram: &GuestRam) -> Self {
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
        };
        let guest = memory::resident_kib(ram, maps);
        let total: u64 = field("VmRSS:");
        Self { guest, vmm: total.saturating_sub(guest), peak: field("VmHWM:") }
    }
}

/// The destination of a report.
pub struct ReportFile<'a> {
    path: &'a Path,
    /// `None`: stderr.
    file: Option<File>,
    usage: Usage,
}

/// Reads the memory of this process.
pub struct Usage {
    /// Files of /proc, opened before the jail forbids it.
    status: File,
    maps: File,
    /// /proc/self/pagemap: which pages are in memory.
    pub pagemap: File,
}

impl Usage {
    /// Opens the files that it reads.
    pub fn open() -> Result<Self> {
        let of_process = |name: String| File::open(&name).context(name);
        let [status, maps, pagemap] =
            ["status", "smaps", "pagemap"].map(|name| of_process(format!("/proc/self/{name}")));
        Ok(Self { status: status?, maps: maps?, pagemap: pagemap? })
    }

    /// Resident memory, that of `ram` as the guest's.
    pub fn memory(&mut self, ram: &GuestRam) -> Memory {
        let read = |file: &mut File| {
            let mut text = String::new();
            // Zeroes if it cannot be read.
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
            text
        };
        Memory::parse(&read(&mut self.status), &read(&mut self.maps), ram)
    }
}

impl<'a> ReportFile<'a> {
    /// Creates the report's file, which must be none of the machine's; `-` is stderr.
    pub fn open(path: &'a Path, config: &MachineConfig) -> Result<Self> {
        let create = || {
            files::create(path, config).with_context(|| format!("boot report {}", path.display()))
        };
        let file = if path == Path::new("-") { None } else { Some(create()?) };
        Ok(Self { path, file, usage: Usage::open()? })
    }

    /// Resident memory, that of `ram` as the guest's.
    pub fn memory(&mut self, ram: &GuestRam) -> Memory {
        self.usage.memory(ram)
    }

    /// Writes the report on a boot that ended with `end`.
    pub fn write(self, record: &Record, end: &End, memory: Memory) -> Result<()> {
        let marks = record.marks();
        let report = BootReport {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            end: end.name(),
            exit_code: end.exit_code(),
            exits: marks.last().and_then(|end| end.exits),
            instructions: marks.last().and_then(|end| end.instructions),
            marks,
            memory_kib: memory,
        };
        let Some(mut file) = self.file else {
            logger::print_message(report.table()?.trim_end());
            return Ok(());
        };
        let text = if self.path.extension().is_some_and(|extension| extension == "json") {
            serde_json::to_string_pretty(&report)? + "\n"
        } else {
            report.table()?
        };
        let written = file.write_all(text.as_bytes());
        written.with_context(|| format!("boot report {}", self.path.display()))
    }
}

impl BootReport {
    /// A row for each mark: when the boot passed it, and the cost since the mark before.
    fn table(&self) -> Result<String> {
        let mut text = format!("boot report: {}\n", self.end);
        let titles = ["exits", "port I/O", "MMIO", "HLT", "interrupt", "page fault"];
        write!(text, "{:<14} {:>9} {:>9}", "until", "at ms", "took ms")?;
        titles.iter().try_for_each(|title| write!(text, " {title:>10}"))?;
        let mut before: Option<&Reached> = None;
        for mark in &self.marks {
            let name = serde_json::to_value(mark.name)?;
            let at = |mark: &Reached| mark.ms.as_secs_f64() * 1e3;
            let took = at(mark) - before.map_or(0.0, at);
            write!(text, "\n{:<14} {:>9.3} {took:>9.3}", name.as_str().unwrap_or(""), at(mark))?;
            let earlier = before.and_then(|before| before.exits).unwrap_or_default();
            for (now, then) in
                mark.exits.iter().flat_map(|exits| exits.each().into_iter().zip(earlier.each()))
            {
                write!(text, " {:>10}", now - then)?;
            }
            before = Some(mark);
        }
        if let Some(instructions) = self.instructions {
            write!(text, "\ninstructions of the guest: {instructions}")?;
        }
        let Memory { guest, vmm, peak } = self.memory_kib;
        writeln!(text, "\nmemory in KiB: guest {guest}, tinyvmm {vmm}, peak of both {peak}")?;
        Ok(text)
    }
}
