//! What a user writes: configuration files and specs of boot tests.

use tinyvmm::api::{Answer, http, routes};
use tinyvmm::boot_test;
use tinyvmm::cli::{self, Invocation};
use tinyvmm::config::MachineConfig;

use crate::files::MemoryFile;

/// One with every key.
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

/// Each key of a test.
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

fn read(text: &[u8]) -> Option<MachineConfig> {
    let file = MemoryFile::new(text);
    let config = format!("--config={}", file.path().display());
    match cli::parse(vec!["tinyvmm".into(), config.into()]) {
        Ok(Invocation::Run(cli)) => Some(cli.machine),
        Ok(Invocation::Shown(text)) => panic!("a file is no cry for help: {text}"),
        Err(error) => {
            let line = format!("{error:#}");
            assert!(!line.contains('\n'), "more than a line: {line:?}");
            None
        }
    }
}

/// What is understood can be printed, and is understood the same way then.
pub fn config(data: &[u8]) {
    let Some(config) = read(data) else { return };
    let _ = config.validate();
    let Ok(printed) = toml::to_string(&config) else { return };
    let again = read(printed.as_bytes()).unwrap_or_else(|| panic!("not read back:\n{printed}"));
    assert_eq!(printed, toml::to_string(&again).unwrap());
}

pub fn spec(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Err(error) = boot_test::read_spec(text) {
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
    let answer = Answer::Fault(format!("{request:?}"));
    assert!(http::render(&answer, head.closes).starts_with(b"HTTP/1.1 400 "));
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
        seed("PUT /cpu-config", r#"{"cpuid_modifiers": [], "msr_modifiers": [{}]}"#),
        seed("PUT /actions", r#"{"action_type": "InstanceStart"}"#),
        seed("PATCH /vm", r#"{"state": "Paused"}"#),
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
