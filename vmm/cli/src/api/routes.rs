//! Parses method, path and body into a request.

use serde::de::DeserializeOwned;

use super::bodies::*;
use super::http::Method;

/// A client's request.
#[derive(Clone, Debug)]
pub enum ApiRequest {
    /// Returns a resource.
    Get(Resource),
    /// Describes the machine before its start.
    Configure(Box<Configure>),
    /// Starts the machine.
    Start,
    /// Makes a machine of a snapshot.
    Load(Box<SnapshotLoad>),
    /// Controls a machine that has started.
    Control(ControlCommand),
}

impl ApiRequest {
    /// What in it clients should stop to use, in Firecracker's words.
    pub fn deprecated(&self) -> Option<&'static str> {
        let what = match self {
            Self::Load(load) => return load.deprecated(),
            Self::Configure(what) => &**what,
            _ => return None,
        };
        match what {
            Configure::Machine(machine) if machine.cpu_template.is_some() => {
                Some("PUT /machine-config: cpu_template field is deprecated.")
            }
            Configure::PartialMachine(part) if part.cpu_template.is_some() => {
                Some("PATCH /machine-config: cpu_template field is deprecated.")
            }
            Configure::Vsock(vsock) if vsock.vsock_id.is_some() => {
                Some("PUT /vsock: vsock_id field is deprecated.")
            }
            _ => None,
        }
    }
}

/// A resource that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// GET /
    Instance,
    /// GET /version
    Version,
    /// GET /machine-config
    Machine,
    /// GET /vm/config
    All,
    /// GET /balloon
    Balloon,
    /// GET /balloon/statistics
    BalloonStatistics,
    /// GET /balloon/hinting/status
    Hinting,
    /// GET /hotplug/memory
    Memory,
    /// GET /tinyvmm/stats
    Stats,
    /// GET /tinyvmm/boot-report
    BootReport,
    /// GET /tinyvmm/snapshot
    SnapshotNames,
}

/// A part of the description, before the start.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the bodies of PUT and PATCH by name")]
pub enum Configure {
    BootSource(BootSource),
    Machine(MachineConfiguration),
    PartialMachine(PartialMachineConfiguration),
    Drive(Drive),
    Interface(NetworkInterface),
    Balloon(BalloonBody),
    Memory(MemoryHotplug),
    Entropy(Entropy),
    Serial(Serial),
    Logger(Logger),
    Metrics(MetricsBody),
    Cpu(CpuConfig),
    Vsock(VsockBody),
}

/// An action on a machine that has started.
#[derive(Clone, Debug)]
pub enum ControlCommand {
    /// PUT /actions, SendCtrlAltDel; PUT /tinyvmm/power-button
    PressPowerButton,
    /// PUT /actions, FlushMetrics
    FlushMetrics,
    /// PATCH /vm
    State(VmState),
    /// PATCH /drives/{drive_id}
    Drive(PartialDrive),
    /// PATCH /network-interfaces/{iface_id}
    Interface(PartialNetworkInterface),
    /// PATCH /balloon
    ResizeBalloon(BalloonUpdate),
    /// PATCH /balloon/statistics
    PollBalloon(BalloonStatisticsUpdate),
    /// PATCH /balloon/hinting/start; whether the run ends itself
    StartHinting(bool),
    /// PATCH /balloon/hinting/stop
    StopHinting,
    /// PATCH /hotplug/memory
    ResizeMemory(MemoryUpdate),
    /// PUT /tinyvmm/stop
    Stop,
    /// PUT /tinyvmm/snapshot
    Snapshot,
    /// PUT /snapshot/create
    CreateSnapshot(SnapshotCreate),
}

/// The request for `method`, `path` and `body`; or the reason why it is invalid.
pub fn request(method: Method, path: &str, body: &[u8]) -> Result<ApiRequest, String> {
    let of = |error: String| format!("{path}: {error}");
    let (place, query) = path.split_once('?').unwrap_or((path, ""));
    if !query.is_empty() {
        return Err(of("no request takes a query, leave it out".into()));
    }
    // Slashes at the ends are ignored, as in Firecracker.
    let parts: Vec<&str> = place.trim_matches('/').split('/').collect();
    match (method, parts.as_slice()) {
        (_, ["pmem", _]) => Err(of("not supported yet".into())),
        (_, ["mmds"] | ["mmds", "config"]) => {
            Err(of("not supported yet: it takes a TCP of tinyvmm's own, use boot_args or a drive"
                .into()))
        }
        (Method::Patch, ["balloon", "hinting", what]) => {
            hinting(what, body).ok_or_else(|| nothing("PATCH", &parts))?.map(ApiRequest::Control)
        }
        (Method::Put | Method::Patch, [first, ..]) if body.is_empty() && *first != "tinyvmm" => {
            Err(empty_request(method))
        }
        (Method::Get, parts) => {
            let resource = resource(parts).ok_or_else(|| nothing("GET", parts))?;
            if !body.is_empty() {
                return Err("GET request cannot have a body.".into());
            }
            Ok(ApiRequest::Get(resource))
        }
        (Method::Put, ["tinyvmm", "power-button"]) => {
            nearly_empty(body).map_err(of)?;
            Ok(ApiRequest::Control(ControlCommand::PressPowerButton))
        }
        (Method::Put, ["tinyvmm", "stop"]) => {
            nearly_empty(body).map_err(of)?;
            Ok(ApiRequest::Control(ControlCommand::Stop))
        }
        (Method::Put, ["tinyvmm", "snapshot"]) => {
            nearly_empty(body).map_err(of)?;
            Ok(ApiRequest::Control(ControlCommand::Snapshot))
        }
        (Method::Put, parts) => put(parts, body).ok_or_else(|| nothing("PUT", parts))?,
        (Method::Patch, parts) => patch(parts, body).ok_or_else(|| nothing("PATCH", parts))?,
    }
}

/// The errors of requests are in Firecracker's words (its src/firecracker/src/api_server/parsed_request.rs).
fn nothing(method: &str, parts: &[&str]) -> String {
    format!("Invalid request method and/or path: {method} {}.", parts.join("/"))
}

fn empty_request(method: Method) -> String {
    let method = if method == Method::Put { "PUT" } else { "PATCH" };
    format!("Empty {method} request.")
}

fn resource(parts: &[&str]) -> Option<Resource> {
    Some(match parts {
        [""] => Resource::Instance,
        ["version"] => Resource::Version,
        ["machine-config"] => Resource::Machine,
        ["vm", "config"] => Resource::All,
        ["balloon"] => Resource::Balloon,
        ["balloon", "statistics"] => Resource::BalloonStatistics,
        ["balloon", "hinting", "status"] => Resource::Hinting,
        ["hotplug", "memory"] => Resource::Memory,
        ["tinyvmm", "stats"] => Resource::Stats,
        ["tinyvmm", "boot-report"] => Resource::BootReport,
        ["tinyvmm", "snapshot"] => Resource::SnapshotNames,
        _ => return None,
    })
}

fn put(parts: &[&str], body: &[u8]) -> Option<Result<ApiRequest, String>> {
    let configured = match parts {
        ["actions"] => return Some(json(body).map(action)),
        ["snapshot", "create"] => {
            let create = |create| ApiRequest::Control(ControlCommand::CreateSnapshot(create));
            return Some(json(body).map(create));
        }
        ["snapshot", "load"] => {
            return Some(json(body).map(|load| ApiRequest::Load(Box::new(load))));
        }
        ["boot-source"] => json(body).map(Configure::BootSource),
        ["machine-config"] => json(body).map(Configure::Machine),
        ["drives", id] => json(body).and_then(|drive: Drive| {
            same_id("drive_id", id, &drive.drive_id)?;
            Ok(Configure::Drive(drive))
        }),
        ["network-interfaces", id] => json(body).and_then(|interface: NetworkInterface| {
            same_id("iface_id", id, &interface.iface_id)?;
            Ok(Configure::Interface(interface))
        }),
        ["balloon"] => json(body).map(Configure::Balloon),
        ["hotplug", "memory"] => json(body).map(Configure::Memory),
        ["entropy"] => json(body).map(Configure::Entropy),
        ["serial"] => json(body).map(Configure::Serial),
        ["logger"] => json(body).map(Configure::Logger),
        ["metrics"] => json(body).map(Configure::Metrics),
        ["cpu-config"] => json(body).map(Configure::Cpu),
        ["vsock"] => json(body).map(Configure::Vsock),
        _ => return None,
    };
    Some(configured.map(|what| ApiRequest::Configure(Box::new(what))))
}

fn patch(parts: &[&str], body: &[u8]) -> Option<Result<ApiRequest, String>> {
    let command = match parts {
        ["machine-config"] => {
            let part = json(body).and_then(|part: PartialMachineConfiguration| {
                if part.is_empty() { Err(empty_request(Method::Patch)) } else { Ok(part) }
            });
            let change = |part| ApiRequest::Configure(Box::new(Configure::PartialMachine(part)));
            return Some(part.map(change));
        }
        ["drives", id] => json(body).and_then(|drive: PartialDrive| {
            same_id("drive_id", id, &drive.drive_id)?;
            Ok(ControlCommand::Drive(drive))
        }),
        ["network-interfaces", id] => json(body).and_then(|update: PartialNetworkInterface| {
            same_id("iface_id", id, &update.iface_id)?;
            Ok(ControlCommand::Interface(update))
        }),
        ["vm"] => json(body).map(|vm: Vm| ControlCommand::State(vm.state)),
        ["balloon"] => json(body).map(ControlCommand::ResizeBalloon),
        ["balloon", "statistics"] => json(body).map(ControlCommand::PollBalloon),
        ["hotplug", "memory"] => json(body).map(ControlCommand::ResizeMemory),
        _ => return None,
    };
    Some(command.map(ApiRequest::Control))
}

/// A body can be left out of these.
fn hinting(what: &str, body: &[u8]) -> Option<Result<ControlCommand, String>> {
    let body = if body.is_empty() { b"{}" } else { body };
    match what {
        "start" => Some(json(body).map(|start: HintingStart| {
            ControlCommand::StartHinting(start.acknowledge_on_stop.unwrap_or(true))
        })),
        "stop" => Some(nearly_empty(body).map(|()| ControlCommand::StopHinting)),
        _ => None,
    }
}

fn action(action: ActionBody) -> ApiRequest {
    match action.action_type {
        ActionType::InstanceStart => ApiRequest::Start,
        ActionType::SendCtrlAltDel => ApiRequest::Control(ControlCommand::PressPowerButton),
        ActionType::FlushMetrics => ApiRequest::Control(ControlCommand::FlushMetrics),
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    // A file that curl sends may have a byte order mark.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    serde_json::from_slice(body).map_err(|error| {
        format!("An error occurred when deserializing the json body of a request: {error}.")
    })
}

/// Some clients cannot PUT without a body.
fn nearly_empty(body: &[u8]) -> Result<(), String> {
    let nothing = body.is_empty() || body.trim_ascii() == b"{}";
    if nothing { Ok(()) } else { Err("takes no body".into()) }
}

/// Checks an id that the path has and, as the field `name`, the body.
fn same_id(name: &str, path: &str, body: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if path != body {
        return Err(format!(
            "The id from the path [{path}] does not match the id from the body [{body}]! Say the same {name} in both"
        ));
    }
    if path.is_empty() || path.len() > 64 || !path.chars().all(fits) {
        return Err(format!("{name}: say 1 to 64 letters, digits, _ and -"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_there_and_what_is_not_supported_are_different_errors() {
        let refused = |method, path| request(method, path, b"{}").unwrap_err();
        for path in ["/mmds", "/mmds/config", "/pmem/a"] {
            assert!(refused(Method::Put, path).contains("not supported yet"), "{path}");
        }
        assert!(refused(Method::Put, "/mmds").contains("a TCP of tinyvmm's own, use boot_args"));
        for path in ["/nothing", "", "//", "/drives", "/drives/a/b", "/version/"] {
            assert!(refused(Method::Put, path).contains("path: PUT"), "{path}");
        }
        assert!(refused(Method::Put, "/drives/a?b=c").contains("takes a query"));
        assert!(refused(Method::Patch, "/boot-source").contains("path: PATCH boot-source."));
        assert!(refused(Method::Get, "/version").contains("cannot have a body"));
        assert!(refused(Method::Put, "/actions").contains("action_type"));
    }

    #[test]
    fn slashes_and_an_empty_query_say_nothing() {
        for path in ["/version/", "//version", "/version?", "/version/?"] {
            let resource = request(Method::Get, path, b"").unwrap();
            assert!(matches!(resource, ApiRequest::Get(Resource::Version)), "{path}");
        }
        let body = b"\xef\xbb\xbf{\"action_type\":\"InstanceStart\"}\r\n";
        assert!(matches!(request(Method::Put, "/actions/", body), Ok(ApiRequest::Start)));
    }

    #[test]
    fn a_drive_or_interface_has_one_name() {
        for (folder, name, rest) in [
            ("drives", "drive_id", r#""is_root_device":false"#),
            ("network-interfaces", "iface_id", r#""host_dev_name":"tap0""#),
        ] {
            let put = |path: &str, id: &str| {
                let body = format!(r#"{{"{name}":"{id}",{rest}}}"#);
                request(Method::Put, &format!("/{folder}/{path}"), body.as_bytes())
            };
            put("root_1-a", "root_1-a").unwrap();
            let other = put("a", "b").unwrap_err();
            assert!(other.contains("same") && other.contains(name), "{other}");
            assert!(put("a%20b", "a%20b").unwrap_err().contains(name));
            put(&"x".repeat(65), &"x".repeat(65)).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn no_path_or_body_makes_it_panic(path: String, body: Vec<u8>, text in r#"\{("[a-z_]{1,9}":(1|"x"|null|\[\]),?){0,4}\}"#) {
            for method in [Method::Get, Method::Put, Method::Patch] {
                let _ = request(method, &path, &body);
                for path in ["/drives/a", "/network-interfaces/a", "/machine-config", "/balloon", "/hotplug/memory", "/actions", "/cpu-config"] {
                    let _ = request(method, path, &body);
                    let _ = request(method, path, text.as_bytes());
                }
            }
        }
    }
}
