//! Linux's driver of a network card: through passt to servers of the host, and from the host to servers of the guest.

use std::fs;
use std::process::Command;

use super::{CLOUD_ELF, Kernel, SMALL_ELF};
use crate::fixture::Vmm;
use crate::net::NETWORK;

/// Servers at an address of the host's: a file and its hash over HTTP, and names over UDP, all of which are 192.0.2.1.
const SERVERS: &str = r#"
import hashlib, http.server, os, socket, sys, threading
data = os.urandom(4 << 20)
files = {"/data": data, "/hash": hashlib.md5(data).hexdigest().encode()}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(files[self.path])
    def log_message(self, *arguments): pass
class Six(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind((sys.argv[1], 53))
def names():
    while True:
        ask, peer = udp.recvfrom(2000)
        address = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\xc0\0\2\1" if ask[-3] == 1 else b""
        count = b"\0\1" if address else b"\0\0"
        udp.sendto(ask[:2] + b"\x81\x80" + ask[4:6] + count + b"\0\0\0\0" + ask[12:] + address, peer)
servers = [http.server.ThreadingHTTPServer((sys.argv[1], 80), Handler), Six(("::1", 80), Handler)]
for serve in [names] + [server.serve_forever for server in servers]:
    threading.Thread(target=serve).start()
open("serving", "w").close()
"#;

/// Asks the guest's server at an address and port until it answers, with an error if that is not what it should be. A
/// connection that is made before the guest listens may hang, and passt resets one now and then.
const CLIENT: &str = r#"
import hashlib, http.client, sys, time, urllib.request
def get(name):
    while True:
        try:
            return urllib.request.urlopen(f"http://{sys.argv[1]}/{name}", timeout=20).read()
        except (OSError, http.client.HTTPException):
            time.sleep(0.5)
hash = get("hash").split()[0].decode()
print("from-outside=" + str(hashlib.md5(get("data")).hexdigest() == hash), flush=True)
get("done")
"#;

/// An IPv6 address comes some time after the card is up, and passt resets a connection now and then instead of ending it.
const FETCH: &str = r#"
fetch() {
    for try in 1 2 3 4 5 6 7 8; do
        wget -qO /tmp/fetched "$1" 2>/dev/null && break
        sleep 1
    done
    cat /tmp/fetched
}
"#;

/// What a guest does in its user's network.
const BY_PASST: &str = r#"
cat /sys/class/net/eth0/mtu
ip address show eth0 | grep -c "inet 10.9.9.2/24"
fetch "http://[fd99::1]/data" | md5sum
nslookup a.test 10.9.9.1 | grep -c 192.0.2.1
server=10.9.9.1
"#;

/// The same on a tap, where nobody gives it an address.
const BY_TAP: &str = r#"
ip address add 10.1.1.2/24 dev eth0
echo begin
nslookup a.test 10.1.1.1 | grep -c 192.0.2.1
server=10.1.1.1
"#;

/// What it does then. The last line waits for the client.
const BOTH_WAYS: &str = r#"
fetch http://$server/hash
echo
fetch http://$server/data | md5sum
mkdir /tmp/www && cd /tmp/www && head -c 3000000 /dev/urandom >data && md5sum data >hash
mkfifo /tmp/done && ln -s /tmp/done done
httpd -p 80 -h /tmp/www
echo served >/tmp/done
"#;

/// Becomes tinyvmm, whose arguments it gets after its path, as a user whose group may open /dev/kvm, and who has no other
/// right: a copy, for the original may be in a folder that is not theirs.
const ORDINARILY: &str = r#"
cp "$0" tinyvmm && mkdir home && chown 1000 home && chgrp 1000 /dev/kvm && chmod 660 /dev/kvm || exit
export HOME=$PWD/home XDG_CACHE_HOME=$PWD/home
exec setpriv --reuid=1000 --regid=1000 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs ./tinyvmm "$@"
"#;

/// A guest of `kernel` in a network namespace after `setup`, started by `starter`, which does as `guest` says; there are
/// servers at `address`, and a client of the guest's at `of_guest`. Returns the lines that it printed.
fn networked(
    kernel: Kernel,
    setup: &str,
    starter: &[&str],
    [address, of_guest, card, guest]: [&str; 4],
) -> Vec<String> {
    let _ = Command::new("modprobe").args(["-a", "veth", "tun"]).status();
    let script = format!(
        "{setup} && (python3 servers.py {address} & echo $! >servers.pid; \
         python3 client.py {of_guest} >client.txt & echo $! >client.pid) && \
         until [ -e serving ]; do sleep 0.1; done && \"$@\"; status=$?; \
         kill $(cat servers.pid client.pid); exit $status"
    );
    let vmm = Vmm::started_by(&[&["unshare", "-n", "sh", "-c", &script, "sh"], starter].concat());
    let vmm = vmm.patiently(super::IN_A_BOX).file("servers.py", SERVERS).file("client.py", CLIENT);
    let vmm = vmm.kernel(&fs::read(kernel.path()).unwrap());
    let vmm = vmm.file("initrd", fs::read(kernel.initrd()).unwrap()).args(["--initrd", "initrd"]);
    let guest = format!("{FETCH}{guest}{BOTH_WAYS}");
    let outcome = vmm.args(["--net", card, "--", "sh", "-c", &guest]).run().exits(0);
    let printed = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert_eq!(outcome.file("client.txt"), "from-outside=True\n", "{printed}{}", outcome.stderr);
    printed.lines().map(str::to_owned).collect()
}

fn works_by_passt(kernel: Kernel, starter: &[&str]) {
    let card = "user,host,publish=127.0.0.1:8080:80";
    let lines =
        networked(kernel, NETWORK, starter, ["127.0.0.1", "127.0.0.1:8080", card, BY_PASST]);
    let [mtu, addresses, data_by_six, names, hash, data] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!([mtu, addresses, names], ["65520", "1", "1"], "{lines:?}");
    assert_eq!(hash.len(), 32, "{lines:?}");
    assert!(data.starts_with(hash) && data_by_six.starts_with(hash), "{lines:?}");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_stock_kernel_reaches_and_is_reached_by_tcp_udp_and_ipv6() {
    works_by_passt(CLOUD_ELF, &[]);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn the_small_kernel_reaches_and_is_reached_by_tcp_udp_and_ipv6() {
    works_by_passt(SMALL_ELF, &[]);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_ordinary_user_reaches_and_is_reached_by_tcp_udp_and_ipv6() {
    works_by_passt(SMALL_ELF, &["sh", "-c", ORDINARILY]);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_tap_leads_both_ways() {
    let setup = "ip link set lo up && ip tuntap add t0 mode tap && ip link set t0 up && \
        ip address add 10.1.1.1/24 dev t0";
    let lines = networked(CLOUD_ELF, setup, &[], ["10.1.1.1", "10.1.1.2", "tap=t0", BY_TAP]);
    // Before it begins, nobody has given it an address.
    let begin = lines.iter().position(|line| line == "begin").unwrap();
    let [names, hash, data] = &lines[begin + 1..] else { panic!("{lines:?}") };
    assert!(names == "1" && hash.len() == 32 && data.starts_with(hash), "{lines:?}");
}
