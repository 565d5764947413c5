//! passt, which gives a machine the network of its user: a process with a sandbox of its own, and no privileges.
//!
//! It has one end of a pair of sockets, and ends when the other one is closed, however this process ends.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use tinyvmm::config::{Publish, User};

/// Most bytes of a packet on its wire, by passt(1): fewer frames cost less.
pub const MTU: u16 = 65520;

/// Bytes of frames that may be on their way to the guest. passt copies as much as the guest would take, several MiB, sends
/// what there is room for, and copies the rest again the next time.
const ON_THE_WAY: usize = 1 << 20;

/// A process that starts.
pub struct Passt(Child);

impl Passt {
    /// Starts it, and returns this process's end of the wire.
    pub fn start(user: &User, mtu: Option<u16>) -> Result<(Self, OwnedFd)> {
        user.publish.iter().try_for_each(ensure_free)?;
        let (ours, its) = UnixStream::pair()?;
        fcntl_setfd(&its, FdFlags::empty())?; // inherited
        // Others than root get as much as net.core.wmem_max allows, which is less, and no error: socket(7).
        set_socket_send_buffer_size_force(&its, ON_THE_WAY)
            .or_else(|_| set_socket_send_buffer_size(&its, ON_THE_WAY))?;
        let mut command = Command::new("passt");
        command.args(["--quiet", "--fd", &its.as_raw_fd().to_string()]);
        command.args(["--mtu", &mtu.unwrap_or(MTU).to_string()]);
        if !user.host {
            command.arg("--no-map-gw");
        }
        for port in &user.publish {
            let address = port.address.map_or(String::new(), |address| format!("{address}/"));
            let flag = if port.udp { "--udp-ports" } else { "--tcp-ports" };
            command.args([flag, &format!("{address}{}:{}", port.host, port.guest)]);
        }
        let (input, output) = (Stdio::null(), Stdio::null());
        let started = command.stdin(input).stdout(output).stderr(Stdio::piped()).spawn();
        match started {
            Ok(child) => Ok((Self(child), ours.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("passt is not installed: install the package passt, or say tap=NAME")
            }
            Err(error) => Err(anyhow!(error).context("cannot start passt")),
        }
    }

    /// Waits until it serves: it goes on in the background then, and what was started ends.
    pub fn wait(self) -> Result<()> {
        let output = self.0.wait_with_output().context("cannot wait for passt")?;
        ensure!(output.status.success(), "{}", reason(&String::from_utf8_lossy(&output.stderr)));
        Ok(())
    }
}

/// Why passt could not start, in its words but for what has a remedy.
fn reason(output: &str) -> String {
    // What it says of the log that it does not have, and of its change of user.
    let noise = ["Failed to send", "Don't run as root"];
    let is_noise = |line: &&str| noise.iter().any(|start| line.starts_with(start));
    let lines: Vec<_> = output.lines().filter(|line| !is_noise(line) && !line.is_empty()).collect();
    match lines.iter().any(|line| line.contains("No external routable interface")) {
        true => {
            "passt needs a default route, which this host has not: add one, or say tap=NAME".into()
        }
        false if lines.is_empty() => "passt has not started, and does not say why".into(),
        false => format!("passt: {}", lines.join(", ")),
    }
}

/// Refuses a port that passt could not have: it takes what it gets of several addresses.
fn ensure_free(port: &Publish) -> Result<()> {
    let all = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    let one = port.address.map(|address| [address]);
    for address in one.as_ref().map_or(&all[..], |one| one) {
        let place = (*address, port.host);
        let bound = match port.udp {
            true => UdpSocket::bind(place).map(drop),
            false => TcpListener::bind(place).map(drop),
        };
        match bound {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!(
                    "port {} is taken on this host: name another, as in {}:{}",
                    port.host,
                    free_port(),
                    port.guest
                )
            }
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && port.address.is_some() => {
                bail!("publish={port}: this host has no such address")
            }
            // Another reason is passt's to find: it may have rights of its own.
            _ => {}
        }
    }
    Ok(())
}

/// A port that is free now.
fn free_port() -> u16 {
    let any = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|any| any.local_addr());
    any.map_or(8080, |address| address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_without_noise() {
        let no_route = "Failed to send 46 bytes to syslog\nNo external routable interface for IPv4\nExternal interface not usable\n";
        assert!(reason(no_route).contains("needs a default route"));
        let taken = "Don't run as root. Changing to nobody...\nFailed to send 64 bytes to syslog\nFailed to bind any port for '-t 99:80', exiting\n";
        assert_eq!(reason(taken), "passt: Failed to bind any port for '-t 99:80', exiting");
        assert!(reason("Failed to send 1 bytes to syslog\n").contains("does not say why"));
    }

    #[test]
    fn a_port_that_is_taken_is_refused_with_a_free_one() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        for text in [format!("{port}:80"), format!("127.0.0.1:{port}:80")] {
            let error = ensure_free(&text.parse().unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("port {port} is taken")), "{error}");
        }
        ensure_free(&format!("{port}:80/udp").parse().unwrap()).unwrap();
        let error = ensure_free(&"192.0.2.77:81:81".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no such address"), "{error}");
    }
}
