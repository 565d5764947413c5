//! Linux's driver of a network card: through passt to servers of the host, and from the host to servers of the guest.

use std::process::Command;

use super::{CLOUD_ELF, Kernel, SMALL_ELF};
use crate::fixture::Vmm;
use crate::net::NETWORK;

/// Servers on the host's loopback: a file and its hash over HTTP, and names over UDP, all of which are 192.0.2.1.
const SERVERS: &str = r#"
import hashlib, http.server, os, socket, threading
data = os.urandom(4 << 20)
files = {"/data": data, "/hash": hashlib.md5(data).hexdigest().encode()}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(files[self.path])
    def log_message(self, *arguments): pass
class Six(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
def names():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 53))
    while True:
        ask, peer = udp.recvfrom(2000)
        address = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\xc0\0\2\1" if ask[-3] == 1 else b""
        count = b"\0\1" if address else b"\0\0"
        udp.sendto(ask[:2] + b"\x81\x80" + ask[4:6] + count + b"\0\0\0\0" + ask[12:] + address, peer)
threading.Thread(target=names).start()
threading.Thread(target=http.server.ThreadingHTTPServer(("127.0.0.1", 80), Handler).serve_forever).start()
Six(("::1", 80), Handler).serve_forever()
"#;

/// Asks the guest's server by the published port until it answers, with an error if that is not what it should be.
const CLIENT: &str = r#"
import hashlib, time, urllib.request
get = lambda name: urllib.request.urlopen("http://127.0.0.1:8080/" + name, timeout=60).read()
while True:
    try:
        hash = get("hash").split()[0].decode()
        break
    except OSError:
        time.sleep(0.5)
print("from-outside=" + str(hashlib.md5(get("data")).hexdigest() == hash), flush=True)
get("done")
"#;

/// What the guest does. Its last line waits for the client.
const GUEST: &str = r#"
cat /sys/class/net/eth0/mtu
ip address show eth0 | grep -c "inet 10.9.9.2/24"
wget -qO- http://10.9.9.1/hash
echo
wget -qO- http://10.9.9.1/data | md5sum
for try in 1 2 3 4 5 6 7 8; do wget -qO- "http://[fd99::1]/data" | md5sum | grep -v d41d8cd98f00 && break; sleep 1; done
nslookup a.test 10.9.9.1 | grep -c 192.0.2.1
mkdir /tmp/www && cd /tmp/www && head -c 3000000 /dev/urandom >data && md5sum data >hash
mkfifo /tmp/done && ln -s /tmp/done done
httpd -p 80 -h /tmp/www
echo served >/tmp/done
"#;

/// A guest of `kernel` in a network namespace, with servers and a client outside.
fn networked(kernel: Kernel, flags: &[&str]) -> Vmm {
    let script = format!(
        "{NETWORK} && (python3 servers.py & echo $! >servers.pid; python3 client.py >client.txt & echo $! >client.pid) && \
         \"$@\"; status=$?; kill $(cat servers.pid client.pid); exit $status"
    );
    let vmm = Vmm::started_by(&["unshare", "-n", "sh", "-c", &script, "sh"]);
    let (kernel, initrd) = (kernel.path(), kernel.initrd());
    let vmm = vmm.patiently(super::IN_A_BOX).file("servers.py", SERVERS).file("client.py", CLIENT);
    let vmm = vmm.args(["--kernel".into(), kernel, "--initrd".into(), initrd]);
    vmm.args(flags).args(["--", "sh", "-c", GUEST])
}

fn works_both_ways(kernel: Kernel) {
    let _ = Command::new("modprobe").arg("veth").status();
    let flags = ["--net", "user,host,publish=127.0.0.1:8080:80"];
    let outcome = networked(kernel, &flags).run().exits(0);
    let printed = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let lines: Vec<_> = printed.lines().collect();
    let [mtu, addresses, hash, data, data_by_six, names] = lines[..] else {
        panic!("{printed}\n{}", outcome.stderr)
    };
    assert_eq!((mtu, addresses), ("65520", "1"), "{printed}");
    assert_eq!(hash.len(), 32, "{printed}");
    assert!(data.starts_with(hash), "{printed}");
    assert!(data_by_six.starts_with(hash), "{printed}");
    assert_eq!(names, "1", "{printed}");
    assert_eq!(outcome.file("client.txt"), "from-outside=True\n", "{printed}");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_stock_kernel_reaches_and_is_reached_by_tcp_udp_and_ipv6() {
    works_both_ways(CLOUD_ELF);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn the_small_kernel_reaches_and_is_reached_by_tcp_udp_and_ipv6() {
    works_both_ways(SMALL_ELF);
}
