//! Network interfaces that are described over the API. Each test has taps in a network namespace of its own.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{Client, SOCKET, listening};
use crate::fixture::{Running, Vmm};
use crate::guests::{self, guest};
use crate::net::in_namespace;

guest!(
    /// Gives its card buffers for 8 frames, and sends frames as fast as it can; resets when the power button is pressed.
    sends_frames,
    "mov ebx, 0xfec00000", // IOAPIC: route pin 9, an edge, to vector 0x40 of CPU 0
    "mov ecx, 0xfee00000",
    "mov dword ptr [rcx + 0xf0], 0x1ff", // spurious vector; APIC on
    "mov dword ptr [rbx], 0x10 + 9 * 2 + 1",
    "mov dword ptr [rbx + 0x10], 0",
    "mov dword ptr [rbx], 0x10 + 9 * 2",
    "mov dword ptr [rbx + 0x10], 0x40",
    // virtio 1.2, 4.2.2: the status, VIRTIO_F_VERSION_1, the two queues.
    "mov ebx, 0xd0000000",
    "mov dword ptr [rbx + 0x70], 3",
    "mov dword ptr [rbx + 0x24], 1",
    "mov dword ptr [rbx + 0x20], 1",
    "mov dword ptr [rbx + 0x70], 11",
    "xor edi, edi",
    "mov r8d, 0x300000",
    "2: mov [rbx + 0x30], edi",
    "mov dword ptr [rbx + 0x38], 8",
    "mov [rbx + 0x80], r8d",
    "add r8d, 0x1000",
    "mov [rbx + 0x90], r8d",
    "add r8d, 0x1000",
    "mov [rbx + 0xa0], r8d",
    "add r8d, 0x1000",
    "mov dword ptr [rbx + 0x44], 1",
    "inc edi",
    "cmp edi, 2",
    "jne 2b",
    // 8 buffers to be written, all of them in one place; and one frame to be read.
    "xor edi, edi",
    "3: mov r8d, edi",
    "shl r8d, 4",
    "mov dword ptr [r8 + 0x300000], 0x310000",
    "mov dword ptr [r8 + 0x300008], 2048",
    "mov word ptr [r8 + 0x30000c], 2",
    "mov [rdi * 2 + 0x301004], di",
    "inc edi",
    "cmp edi, 8",
    "jne 3b",
    "mov word ptr [0x301002], 8",
    "mov dword ptr [0x303000], 0x320000",
    "mov dword ptr [0x303008], 12 + 60",
    "mov dword ptr [rbx + 0x70], 15",
    "mov dword ptr [rbx + 0x50], 0",
    r#"say "ready\n""#,
    "4: inc word ptr [0x304002]",
    "mov dword ptr [rbx + 0x50], 1",
    "5: mov eax, [rcx + 0x220]", // IRR of vectors 0x40 to 0x5f
    "test eax, 1",
    "jnz 6f",
    "mov ax, [0x305002]",
    "cmp ax, [0x304002]",
    "jne 5b",
    r#"say "sent\n""#,
    "jmp 4b",
    "6: out8 {i8042}, 0xfe",
    "sleep",
);

/// Two taps; the first has a neighbour, and nothing is sent to it but what a test sends.
const TAPS: &str = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6; \
    ip tuntap add tap0 mode tap && ip tuntap add tap1 mode tap && ip link set tap0 up && \
    ip addr add 192.0.2.1/24 dev tap0 && \
    ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:01 dev tap0";
const START: &str = r#"{"action_type":"InstanceStart"}"#;
/// A limit of 2 requests an hour and more.
const TWO: &str = r#"{"ops":{"size":2,"refill_time":10000000}}"#;

/// A tinyvmm with taps; `None` where the host forbids that.
fn vmm() -> Option<Vmm> {
    Some(in_namespace(TAPS)?.file("vmlinux", guests::elf(&sends_frames())))
}

/// One that waits for its configuration.
fn waiting(args: &[&str]) -> Option<(Running, Client)> {
    Some(listening(vmm()?.args(["--api-sock", SOCKET]).args(args).start()))
}

fn interface(id: &str, tap: &str, more: Value) -> (String, String) {
    let mut body = json!({"iface_id": id, "host_dev_name": tap});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    (format!("/network-interfaces/{id}"), body.to_string())
}

impl Client {
    fn put(&self, id: &str, tap: &str, more: Value) {
        let (path, body) = interface(id, tap, more);
        self.does("PUT", &path, &body);
    }

    #[track_caller]
    fn refuses_to_put(&self, id: &str, tap: &str, more: Value, words: &[&str]) {
        let (path, body) = interface(id, tap, more);
        self.refuses("PUT", &path, &body, words);
    }

    fn interfaces(&self) -> Value {
        self.get("/vm/config")["network-interfaces"].clone()
    }

    fn limit(&self, id: &str, which: &str, limit: &str) {
        let body = format!(r#"{{"iface_id":"{id}","{which}":{limit}}}"#);
        self.does("PATCH", &format!("/network-interfaces/{id}"), &body);
    }

    /// The sum of this figure in all lines of metrics, one more included.
    fn sum(&self, running: &Running, group: &str, name: &str) -> u64 {
        self.does("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
        let lines = fs::read_to_string(running.dir().path("metrics")).unwrap();
        let figure = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            line[group][name].as_u64().unwrap_or_else(|| panic!("no {group}.{name} in {line}"))
        };
        lines.lines().map(figure).sum()
    }
}

#[test]
fn interfaces_are_listed_as_they_were_put_and_can_be_put_again() {
    let Some((running, client)) = waiting(&[]) else { return };
    let mac = |last: u8| json!({"guest_mac": format!("02:00:00:00:00:0{last}")});
    let all = json!({
        "iface_id": "eth0",
        "host_dev_name": "tap0",
        "guest_mac": "02:00:00:00:00:01",
        "mtu": 1400,
        "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 9}},
    });
    client.does("PUT", "/network-interfaces/eth0", &all.to_string());
    let found = client.interfaces();
    assert_eq!(found[0]["rx_rate_limiter"]["ops"]["size"], 1, "{found}");
    for name in ["iface_id", "host_dev_name", "guest_mac", "mtu"] {
        assert_eq!(found[0][name], all[name], "{found}");
    }
    client.refuses_to_put(
        "eth1",
        "tap0",
        json!({}),
        &["Could not create the network device: host_dev_name tap0"],
    );
    client.refuses_to_put(
        "eth1",
        "tap1",
        mac(1),
        &["The MAC address is already in use: 02:00:00:00:00:01"],
    );
    client.put("eth0", "tap0", json!({}));
    client.put("eth1", "tap1", mac(1));
    client.put("eth0", "tap0", mac(2));
    let expected = json!([
        {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:02",
            "mtu": null, "rx_rate_limiter": null, "tx_rate_limiter": null},
        {"iface_id": "eth1", "host_dev_name": "tap1", "guest_mac": "02:00:00:00:00:01",
            "mtu": null, "rx_rate_limiter": null, "tx_rate_limiter": null},
    ]);
    assert_eq!(client.interfaces(), expected);
    client.does("PUT", "/tinyvmm/stop", "");
    running.wait().exits(8).leaves_nothing();
}

#[test]
fn an_interface_that_is_wrong_is_refused_and_changes_nothing() {
    let Some((_running, client)) = waiting(&["--net", "tap=tap1"]) else { return };
    let before = client.get("/vm/config");
    let of_flags = json!([{"iface_id": "net0", "host_dev_name": "tap1", "guest_mac": null, "mtu": null,
        "rx_rate_limiter": null, "tx_rate_limiter": null}]);
    assert_eq!(before["network-interfaces"], of_flags);
    for (tap, more, words) in [
        ("tap2", json!({}), &["host_dev_name tap2: there is none", "ip tuntap add tap2"][..]),
        ("lo", json!({}), &["host_dev_name lo", "it is no tap"]),
        ("tap1", json!({}), &["host_dev_name tap1", "another interface"]),
        ("a/b", json!({}), &["host_dev_name", "1 to 15 letters"]),
        ("tap0,mtu=1400", json!({}), &["host_dev_name tap0,mtu=1400"]),
        ("tap0", json!({"guest_mac": "01:00:5e:00:00:01"}), &["guest_mac", "no card can have it"]),
        ("tap0", json!({"guest_mac": "02:00"}), &["guest_mac", "six bytes"]),
        ("tap0", json!({"mtu": 67}), &["mtu", "68 to 65535"]),
        ("tap0", json!({"mtu": 65536}), &["invalid value"]),
        ("tap0", json!({"tx_rate_limiter": {"ops": {"size": 1}}}), &["refill_time"]),
        ("tap0", json!({"allow_mmds_requests": true}), &["unknown field `allow_mmds_requests`"]),
        ("tap0", json!({"iface_id": "eth1"}), &["iface_id", "Say the same"]),
    ] {
        client.refuses_to_put("eth0", tap, more, words);
    }
    client.refuses_to_put("net0", "tap0", json!({}), &["iface_id", "flags"]);
    let path = "/network-interfaces/eth0";
    client.refuses("PUT", path, r#"{"iface_id":"eth0"}"#, &["missing field `host_dev_name`"]);
    client.refuses("PATCH", path, r#"{"iface_id":"eth0"}"#, &["before starting"]);
    assert_eq!(client.get("/vm/config"), before);
}

#[test]
fn limits_hold_from_the_start_and_can_be_changed_while_it_runs() {
    let Some((running, client)) = waiting(&[]) else { return };
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    client.does("PUT", "/metrics", r#"{"metrics_path":"metrics"}"#);
    let one: Value = serde_json::from_str(r#"{"ops":{"size":1,"refill_time":10000000}}"#).unwrap();
    client.put("eth0", "tap0", json!({"rx_rate_limiter": one, "tx_rate_limiter": one}));
    client.does("PUT", "/actions", START);
    let client = &client;
    let sum = |running: &Running, name| client.sum(running, "net_eth0", name);
    let passes =
        |name, count| move |running: &Running| client.sum(running, "net_eth0", name) > count;
    let frames =
        |running: &Running| ["rx_packets_count", "tx_packets_count"].map(|n| sum(running, n));
    let running = running.prints("ready");
    let namespace = format!("--net={}", running.proc("ns/net").display());
    let datagrams = "for n in 1 2 3; do echo > /dev/udp/192.0.2.2/9; done";
    let sent = Command::new("nsenter").args([&namespace, "bash", "-c", datagrams]).status();
    assert!(sent.unwrap().success());
    let (rx_waits, tx_waits) = ("rx_rate_limiter_throttled", "tx_rate_limiter_throttled");
    let running = running.until(passes(rx_waits, 0)).until(passes(tx_waits, 0));
    assert_eq!(frames(&running), [1, 1]);
    assert_eq!((sum(&running, "rx_count"), sum(&running, "tx_bytes_count")), (1, 60));
    // Of headers of Ethernet, IPv4 and UDP, and a byte.
    assert_eq!(client.sum(&running, "net", "rx_bytes_count"), 14 + 20 + 8 + 1);

    let waits = sum(&running, tx_waits);
    client.limit("eth0", "tx_rate_limiter", TWO);
    let running = running.until(passes(tx_waits, waits)).prints("sent\nsent\nsent\n");
    assert_eq!(frames(&running), [1, 3]);
    client.limit("eth0", "rx_rate_limiter", r#"{"ops":{"size":0,"refill_time":0}}"#);
    let running = running.until(passes("rx_packets_count", 2));
    assert_eq!(frames(&running), [3, 3]);
    assert_eq!(client.interfaces()[0]["tx_rate_limiter"]["ops"]["size"], 2);
    client.refuses("PATCH", "/network-interfaces/x", r#"{"iface_id":"x"}"#, &["no such interface"]);
    let (path, body) = interface("eth0", "tap0", json!({}));
    client.refuses("PATCH", &path, &body, &["unknown field `host_dev_name`"]);
    client.refuses("PUT", &path, &body, &["after starting"]);
    client.does("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#);
    running.wait().exits(4);
}

#[test]
fn a_limit_outlives_a_reboot() {
    let Some(vmm) = vmm() else { return };
    let vmm = vmm.args(["--kernel", "vmlinux", "--net", "tap=tap0", "--api-sock", SOCKET]);
    let (running, client) = listening(vmm.start().prints("sent\nsent\nsent\n"));
    client.limit("net0", "tx_rate_limiter", TWO);
    assert_eq!(client.interfaces()[0]["tx_rate_limiter"]["ops"]["size"], 2);
    client.does("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#);
    let running = running.prints("sent\nready\nsent\nsent\n");
    // Its CPU never rests: by then it would have sent more.
    let used = || client.get("/tinyvmm/stats")["cpu_ms"]["vcpu0"].as_f64().unwrap();
    let before = used();
    let running = running.until(|_| used() > before + 100.0);
    client.does("PUT", "/tinyvmm/stop", "");
    let outcome = running.wait().exits(8).leaves_nothing();
    let text = String::from_utf8(outcome.stdout).unwrap();
    let (_, second) = text.split_once("sent\nready\n").unwrap();
    assert_eq!(second, "sent\nsent\n");
}

#[test]
fn a_file_describes_interfaces_in_the_same_terms() {
    let with = |vmm: Vmm, tap: &str| {
        let file = json!({
            "boot-source": {"kernel_image_path": "vmlinux"},
            "network-interfaces": [{"iface_id": "eth0", "host_dev_name": tap}],
        });
        let vmm = vmm.file("vm.json", file.to_string()).args(["--config-file", "vm.json"]);
        vmm.file("vmlinux", guests::elf(&sends_frames())).args(["--api-sock", SOCKET])
    };
    let Some(fine) = vmm() else { return };
    let (running, client) = listening(with(fine, "tap0").start().prints("sent\nsent\n"));
    assert_eq!(client.interfaces()[0]["host_dev_name"], "tap0");
    let namespace = format!("--net={}", running.proc("ns/net").display());
    let refused = |tap: &str, why: &str| {
        let vmm = with(Vmm::started_by(&["nsenter", &namespace]), tap);
        vmm.run().refuses(3, &["vm.json", &format!("host_dev_name {tap}"), why]);
    };
    refused("tap0", "another machine uses it");
    refused("tap2", "there is none");
}
