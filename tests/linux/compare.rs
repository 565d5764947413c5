//! `scripts/compare`: the same workload as a process, in a container and in a machine.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::fixture::{Dir, TINYVMM};

const ROWS: usize = 31;
const SIDES: [&str; 3] = ["process", "container", "machine"];

fn compare(dir: &Dir, args: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/compare");
    let mut command = Command::new(script);
    command.args(args).current_dir(&dir.0).env("TINYVMM", &*TINYVMM);
    command
}

/// Checks the exit status and the only line on standard error.
#[track_caller]
fn says(output: &Output, status: i32, line: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, format!("compare: {line}\n"));
    assert_eq!(output.status.code(), Some(status), "{said}");
}

/// Whether the cell has a fact, figures, or the reason why there is no value.
fn has_content(cell: &Value) -> bool {
    let number = |name: &str| cell[name].as_f64().is_some_and(|value| value >= 0.0);
    let word = |name: &str| cell[name].as_str().is_some_and(|text| !text.is_empty());
    let samples = cell["samples"].as_array().map_or(0, Vec::len) as u64;
    let figures =
        number("median") && number("p99") && cell["n"].as_u64() == Some(samples) && samples > 0;
    figures || word("text") || word("reason")
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn every_row_has_a_value_or_a_reason() {
    let dir = Dir::new();
    let output = compare(&dir, &["-n", "1", "--quick", "--json", "result.json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let json = std::fs::read_to_string(dir.path("result.json")).unwrap();
    let result: Value = serde_json::from_str(&json).unwrap();
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len(), ROWS, "{json}");
    for row in rows {
        let name = row["id"].as_str().unwrap();
        assert!(row["method"].as_str().unwrap().len() > 20, "{name} has no method");
        for side in SIDES {
            let cell = &row["values"][side];
            assert!(has_content(cell), "{name} of {side}: {cell}");
            let reason = cell["reason"].as_str();
            let none_is_right = match name {
                "other_host" => reason.is_some_and(|reason| reason.contains("--other")),
                "trusted_lines" if side != "machine" => reason.is_some(),
                _ => matches!(reason, None | Some("one processor here")),
            };
            assert!(none_is_right, "{name} of {side} failed: {cell}\n{said}");
        }
    }
    let fact = |row: &str, side: &str| {
        let row = rows.iter().find(|found| found["id"] == row).unwrap();
        row["values"][side].clone()
    };
    let content = |side| fact("other_host", side)["digests"]["content"].clone();
    assert!(content("machine").is_string(), "{json}");
    assert_eq!(content("machine"), content("container"), "the same files: {json}");
    for (row, side, good) in [
        ("kernel", "machine", true),
        ("kernel", "container", false),
        ("processes", "process", false),
        ("writes_gone", "process", false),
        ("writes_gone", "container", true),
        ("writes_gone", "machine", true),
        ("hardware", "machine", true),
        ("hardware", "container", false),
        ("web_host", "process", true),
        ("web_host", "container", false),
        ("web_host", "machine", false),
    ] {
        assert_eq!(fact(row, side)["good"], good, "{row} of {side}: {json}");
    }
    let calls = |side| fact("calls_host", side)["number"].as_u64().unwrap();
    assert!(calls("machine") < 100 && calls("machine") < calls("container"), "{json}");
    assert!(calls("container") < calls("process"), "{json}");
    assert!(fact("trusted_lines", "machine")["number"].as_u64().unwrap() > 10_000, "{json}");
    let size = |side| fact("trusted_size", side)["median"].as_f64().unwrap();
    assert!(size("process") == 0.0 && size("machine") > 1.0 && size("container") > 1.0, "{json}");
}

#[test]
fn what_is_wrong_is_reported_in_one_line() {
    let dir = Dir::new();
    let see = "see scripts/compare --help";
    let output = compare(&dir, &["--fast"]).output().unwrap();
    says(&output, 2, &format!("unrecognized arguments: --fast; {see}"));
    let output = compare(&dir, &["--only", "start", "beauty"]).output().unwrap();
    says(&output, 2, &format!("there is no row 'beauty'; {see}"));
    let output = compare(&dir, &["-n", "0"]).output().unwrap();
    says(&output, 2, &format!("-n 0: 1 to 1000 samples can be taken; {see}"));
    let output = compare(&dir, &[]).env("RUNC", "./nowhere").output().unwrap();
    says(&output, 1, "there is no ./nowhere for the container");
    let output =
        compare(&dir, &[]).env("TINYVMM", "/nowhere").env("RUNC", "true").output().unwrap();
    says(&output, 1, "there is no /nowhere; run: cargo build --release");
    let output = compare(&dir, &["--from", "nowhere"]).output().unwrap();
    says(&output, 1, "nowhere is no result of --json: No such file or directory");
    std::fs::write(dir.path("odd"), "{\"format\": 1, \"rows\": 7}").unwrap();
    let output = compare(&dir, &["--from", "odd"]).output().unwrap();
    says(&output, 1, "odd is not what --json writes: no 'sides'");
}

/// A result: figures, one row without a value, facts; and what two hosts may have the same.
const RESULT: &str = r#"{"format": 1, "when": "today", "place": {"emulated": true, "counts_instructions": true, "name": "here", "cpu": "486", "cpus": 1,
  "memory_mib": 4, "kernel": "0.99", "file_system": "minix", "runc": "", "tinyvmm": ""},
  "sides": [{"id": "container", "name": "runc", "is": "<script>"}, {"id": "machine", "name": "tinyvmm", "is": ""}],
  "rows": [
    {"id": "stop", "group": "Speed", "title": "stop", "unit": "ms", "better": "less", "ratio_only": true, "method": "watch",
     "values": {"container": {"n": 2, "median": 1234.5, "p99": 1300, "samples": [1169, 1300]}, "machine": {"reason": "it was <late>"}}},
    {"id": "start", "group": "Speed", "title": "start", "unit": "ms", "better": "less", "ratio_only": true, "method": "watch",
     "values": {"container": {"n": 1, "median": 50, "p99": 50, "samples": [50]}, "machine": {"n": 1, "median": 150, "p99": 150, "samples": [150]}}},
    {"id": "copy", "group": "Speed", "title": "copy", "unit": "MiB/s", "better": "more", "ratio_only": true, "method": "watch",
     "values": {"container": {"n": 1, "median": 98, "p99": 98, "samples": [98]}, "machine": {"n": 1, "median": 100, "p99": 100, "samples": [100]}}},
    {"id": "kernel", "group": "Security", "title": "kernel", "unit": "", "better": "", "ratio_only": false, "method": "ask",
     "values": {"container": {"text": "shared", "good": false}, "machine": {"text": "its own", "good": true}}},
    {"id": "calls", "group": "Security", "title": "calls", "unit": "", "better": "less", "ratio_only": false, "method": "count",
     "values": {"container": {"text": "all", "number": 300}, "machine": {"text": "some", "number": 60}}},
    {"id": "crowd_cache", "group": "Host utilisation", "title": "cache", "unit": "MiB", "better": "less", "ratio_only": false, "method": "sum",
     "values": {"container": {"n": 1, "median": 0, "p99": 0, "samples": [0]}, "machine": {"n": 1, "median": -0.001, "p99": 0, "samples": [-0.001]}}},
    {"id": "other_host", "group": "Replicability", "title": "elsewhere", "unit": "", "better": "", "ratio_only": false, "method": "compare",
     "values": {"container": {"reason": "one host", "digests": {"content": "1", "machine": "2"}}, "machine": {"reason": "one host", "digests": {"content": "1", "machine": "2"}}}}]}"#;

/// In both.
const FINDINGS: [(&str, &str); 4] = [
    (
        "Speed",
        "tinyvmm is behind runc in start (150 against 50 ms, 3×) — level with runc in copy (100 against 98 MiB/s) \
         — not compared: stop — what depends on time is by an emulator’s clock.",
    ),
    (
        "Security",
        "tinyvmm is ahead of runc in kernel (its own, against shared); calls (60 against 300, 5×).",
    ),
    ("Host utilisation", "tinyvmm is level with runc in cache (0.00 against 0 MiB)."),
    ("Replicability", "no row compares the two — not compared: elsewhere."),
];

#[test]
fn a_result_becomes_findings_a_table_and_a_page_that_needs_nothing_else() {
    let dir = Dir::new();
    std::fs::write(dir.path("result.json"), RESULT).unwrap();
    let args = ["--from", "result.json", "--html", "page.html", "--json", "copy.json"];
    let output = compare(&dir, &args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    let page = std::fs::read_to_string(dir.path("page.html")).unwrap();
    for (topic, said) in FINDINGS {
        assert!(table.contains(&format!("{topic}: {said}\n")), "{said} is not in:\n{table}");
        let found = page.find(&format!("<dt>{topic}</dt><dd>{said}</dd>"));
        let evidence = page.find("<h2>Evidence").unwrap();
        assert!(found.is_some_and(|at| at < evidence), "{said} is not in:\n{page}");
    }
    for part in ["stop, ms ~", "1,234 (1,300)", "- [1]", "[1] it was <late>", "tinyvmm   its own"] {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
    for part in [
        "1,234",
        "no value: it was &lt;late&gt;",
        "ratios only",
        "clock counts instructions",
        "&lt;script&gt;",
    ] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    for part in ["<script", "http", "url(", "<link", "<img", "-0.0"] {
        assert!(!page.contains(part), "{part} is in:\n{page}");
    }
    let copy = std::fs::read_to_string(dir.path("copy.json")).unwrap();
    let same = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(same(&copy), same(RESULT));
}

#[test]
fn a_result_of_another_host_fills_a_row() {
    let dir = Dir::new();
    std::fs::write(dir.path("here.json"), RESULT).unwrap();
    let machine =
        r#""machine": {"reason": "one host", "digests": {"content": "1", "machine": "2"}}"#;
    assert!(RESULT.contains(machine));
    let there = RESULT.replace(machine, &machine.replace("\"2\"", "\"3\""));
    std::fs::write(dir.path("there.json"), there).unwrap();
    let output = compare(&dir, &["--from", "here.json", "--other", "there.json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    let behind = "Replicability: tinyvmm is behind runc in elsewhere (files the same, hardware others, \
                  against files the same, hardware the same).\n";
    assert!(table.contains(behind), "{table}");
}

#[test]
fn a_reader_that_goes_is_no_error_that_is_reported() {
    let dir = Dir::new();
    std::fs::write(dir.path("result.json"), RESULT).unwrap();
    let unread = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = compare(&dir, args).stdout(writer).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        output.status.code().unwrap()
    };
    assert_eq!(unread(&["--from", "result.json", "--html", "page.html"]), 128 + libc::SIGPIPE);
    unread(&["--help"]); // its status is Python's business
    assert!(dir.path("page.html").exists(), "what has a file of its own is written");
}
