//! Texts of users: configuration files and specs of boot tests.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use tinyvmm_cli::api::routes::{ApiRequest, Configure};
use tinyvmm_cli::api::{Api, ApiCall, ApiResponse, http, routes};
use tinyvmm_cli::cli::{self, Invocation};
use tinyvmm_cli::config::Config;
use tinyvmm_cli::measure::Record;
use tinyvmm_cli::print_config;
use tinyvmm_cli::snapshot::MemoryPlace;

use crate::files::MemoryFile;

/// A configuration file with every key.
const CONFIG: &str = r#"
cpus = "8,sockets=2,cores=2,threads=2"
mem = "4.5G"
hugepages = true
kernel = "a folder/vm=linux"
kernel-entry = "decompress"
no-kernel-cache = true
initrd = 'it"s'
cmdline = "quiet \"x y\" back\\slash"
cmdline-only = true
disk = ["root.img,readonly,direct,id=root", "data.img"]
console = "log.txt"
uart = "memory"
uuid = "01234567-89ab-cdef-0123-456789abcdef"
timeout = "1h 30m"
no-reboot = false
boot-report = "report.json"
trace-exits = true
log-level = "debug"
"#;

/// A spec with each key of a test.
const SPEC: &str = r#"
baseline = "figures.json"
[defaults]
mem = "256M"
timeout = "30s"
[matrix]
cpus = [1, 2]
mem = ["128M", "1G"]
[[machine]]
name = "one"
kernel = "vmlinux"
expect = ["first", { pattern = "^sec[o]nd$", timeout = "5s" }]
fail-on = ['BUG', "Oops"]
fail-on-warning = true
end = "reboot"
repeat = 3
alone = true
budget = { init-ms = 500, exits = 3000, rss-mib = 60.5 }
tolerance = { exits = "10%", init-ms = "none" }
[[machine]]
name = "two"
kernel = "bzImage"
initrd = "initrd"
run = ["cat", "/proc/cpuinfo"]
exit-status = 3
matrix = { uart = ["ports", "memory"] }
"#;

fn read(text: &[u8]) -> Option<Config> {
    let file = MemoryFile::new(text);
    let config = format!("--config={}", file.path().display());
    match cli::parse(vec!["tinyvmm".into(), config.into()]) {
        Ok(Invocation::Run(cli)) => Some(cli.config.clone()),
        Ok(Invocation::Shown(text)) => panic!("a file is no cry for help: {text}"),
        Err(error) => {
            let line = format!("{error:#}");
            assert!(!line.contains('\n'), "more than a line: {line:?}");
            None
        }
    }
}

/// A valid configuration can be printed, and is the same when it is read again.
pub fn config(data: &[u8]) {
    let Some(config) = read(data) else { return };
    let _ = config.validate();
    let Ok(printed) = toml::to_string(&config) else { return };
    let again = read(printed.as_bytes()).unwrap_or_else(|| panic!("not read back:\n{printed}"));
    assert_eq!(printed, toml::to_string(&again).unwrap());
}

pub fn spec(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(Invocation::Run(cli)) = cli::parse(vec!["tinyvmm".into()]) else {
        panic!("no flags are as they should be")
    };
    let printed = print_config::json(&cli.config, cli.log_level).unwrap();
    if let Err(error) = boot_test::read_spec(text, &printed) {
        let line = format!("{error:#}");
        assert!(!line.contains('\n'), "more than a line: {line:?}");
    }
}

/// A request of a client of the API, with its body.
pub fn api(data: &[u8]) {
    let Ok(Some(head)) = http::parse(data, 1000) else { return };
    assert!(head.len <= data.len() && head.body <= 1000, "{head:?}");
    let body = &data[head.len..];
    let request = routes::request(head.method, &head.path, &body[..head.body.min(body.len())]);
    let answer = ApiResponse::Fault(format!("{request:?}"));
    let manner =
        http::Manner { server: "Firecracker API", closes: head.closes, is_deprecated: false };
    assert!(http::render(&answer, manner).starts_with(b"HTTP/1.1 400 "));
}

/// Whether the fuzzer may have the request executed: files are opened only in its folder, which is empty.
fn is_harmless(request: &ApiRequest) -> bool {
    let is_near = |path: &Path| !path.as_os_str().as_encoded_bytes().contains(&b'/');
    if let ApiRequest::Load(load) = request {
        return is_near(&load.snapshot_path)
            && load.memory().is_ok_and(|place| {
                // No socket is connected to.
                matches!(place, MemoryPlace::File(path) if is_near(&path))
            });
    }
    let ApiRequest::Configure(what) = request else { return true };
    match &**what {
        Configure::Logger(_) | Configure::Metrics(_) => false,
        Configure::Drive(drive) => drive.path_on_host.as_deref().is_none_or(is_near),
        Configure::BootSource(source) => {
            is_near(&source.kernel_image_path) && source.initrd_path.as_deref().is_none_or(is_near)
        }
        _ => true,
    }
}

/// Requests one after another, as the owner answers them before there is a machine.
pub fn setup(mut data: &[u8]) {
    let Ok(Invocation::Run(cli)) = cli::parse(vec!["tinyvmm".into(), "--api-sock=s".into()]) else {
        panic!("flags that are as they should be")
    };
    let record = Arc::new(Record::since(Instant::now(), false));
    let mut api = Api::new(&cli.config, &record).expect("nothing is opened");
    for _ in 0..20 {
        let Ok(Some(head)) = http::parse(data, 1000) else { return };
        let (body, rest) = data[head.len..].split_at(head.body.min(data.len() - head.len));
        data = rest;
        let Ok(request) = routes::request(head.method, &head.path, body) else { continue };
        if !is_harmless(&request) {
            continue;
        }
        let before = format!("{:?}", api.config());
        let (reply, answer) = sync_channel(1);
        if let Some(Err(_)) = api.serve_before(ApiCall { request, files: Vec::new(), reply }) {
            return;
        }
        match answer.try_recv() {
            Ok(ApiResponse::Fault(_)) => assert_eq!(before, format!("{:?}", api.config())),
            Ok(_) => api.config().validate().expect("what is accepted can be"),
            // The request is a start.
            Err(_) => api.config().validate().expect("what is complete can be"),
        }
    }
}

/// All requests in a row, and each alone.
pub fn conversations() -> Vec<Vec<u8>> {
    let mut all = requests();
    all.push(requests().concat());
    all
}

pub fn requests() -> Vec<Vec<u8>> {
    let seed = |line: &str, body: &str| {
        let len = body.len();
        format!("{line} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{body}").into_bytes()
    };
    vec![
        seed("GET /", ""),
        seed(
            "PUT /machine-config",
            r#"{"vcpu_count": 2, "mem_size_mib": 512, "smt": true, "huge_pages": "2M"}"#,
        ),
        seed("PATCH /machine-config", r#"{"vcpu_count": 4, "track_dirty_pages": false}"#),
        seed(
            "PUT /boot-source",
            r#"{"kernel_image_path": "k", "initrd_path": "i", "boot_args": "a"}"#,
        ),
        seed("PUT /drives/a", r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "d"}"#),
        seed(
            "PUT /balloon",
            r#"{"amount_mib": 1, "deflate_on_oom": true, "free_page_reporting": true}"#,
        ),
        seed("PUT /logger", r#"{"log_path": "l", "level": "Info", "show_level": true}"#),
        seed(
            "PUT /cpu-config",
            r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0b0", "flags": 0, "modifiers": [{"register": "eax", "bitmap": "0b1x_0"}]}], "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1x"}]}"#,
        ),
        seed("PUT /actions", r#"{"action_type": "InstanceStart"}"#),
        seed("PATCH /vm", r#"{"state": "Paused"}"#),
        seed("GET /vm/config", ""),
        seed(
            "PUT /entropy",
            r#"{"rate_limiter": {"bandwidth": {"size": 9, "refill_time": 8, "one_time_burst": 7}, "ops": null}}"#,
        ),
        seed(
            "PATCH /drives/a",
            r#"{"drive_id": "a", "rate_limiter": {"ops": {"size": 1, "refill_time": 2}}}"#,
        ),
        seed("PATCH /balloon", r#"{"amount_mib": 3}"#),
        seed("PATCH /balloon/statistics", r#"{"stats_polling_interval_s": 1}"#),
    ]
}

/// The whole, and each of its lines.
fn with_lines(text: &str) -> Vec<Vec<u8>> {
    [text].into_iter().chain(text.lines()).map(Into::into).collect()
}

pub fn configs() -> Vec<Vec<u8>> {
    with_lines(CONFIG)
}

pub fn specs() -> Vec<Vec<u8>> {
    [SPEC, include_str!("../boot-test.toml")].map(Into::into).into()
}
