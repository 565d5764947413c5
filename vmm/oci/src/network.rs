//! A container's network. In a namespace that the engine has made, the guest takes over its card: what arrives there goes
//! to a tap of the machine's and back (tc(8), mirred), and the guest has the card's addresses and routes. So ports that an
//! engine publishes lead to the guest, and what it forbids is forbidden. Without a namespace it has passt's network, in which
//! a guest has the addresses and the gateway of the host.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use serde_json::Value;

use crate::steps::step;

/// The machine's tap in the namespace.
const TAP: &str = "tinyvmm0";
/// The guest's only card.
const CARD: &str = "eth0";
/// Not of a global scope, so made by each kernel itself.
const LINK_LOCAL: &str = "link";

/// What the guest's network is.
pub enum Network {
    /// None but its loopback.
    None,
    /// passt's.
    User { steps: Vec<String> },
    /// A card's of this process's namespace.
    Tap { mac: String, steps: Vec<String> },
}

/// Where the description wants the network to be.
pub enum Wanted {
    /// Where we are.
    Host,
    /// A namespace of its own, into which the engine may put a card before the start.
    Own,
    /// One that the engine has made.
    Given(PathBuf),
}

fn wanted(spec: &Spec) -> Wanted {
    let all = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let network = all.into_iter().flatten().find(|one| one.typ() == LinuxNamespaceType::Network);
    match network.map(|network| network.path().clone()) {
        None => Wanted::Host,
        Some(None) => Wanted::Own,
        Some(Some(path)) => Wanted::Given(path),
    }
}

/// Enters the namespace of the container's network, if it has one; returns where that is.
pub fn enter(spec: &Spec) -> Result<Wanted> {
    let wanted = wanted(spec);
    match &wanted {
        Wanted::Host => {}
        // SAFETY: this process has one thread.
        Wanted::Own => unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .context("cannot make a namespace of networks")?,
        Wanted::Given(path) => {
            let named = || format!("network namespace {}", path.display());
            let file = File::open(path).with_context(named)?;
            let (given, ours) = (file.metadata()?, fs::metadata("/proc/self/ns/net")?);
            // Engines may name the host's, whose card is not a container's to take.
            if (given.dev(), given.ino()) == (ours.dev(), ours.ino()) {
                return Ok(Wanted::Host);
            }
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), kind).with_context(named)?;
        }
    }
    Ok(wanted)
}

/// Whether this namespace has more than its loopback.
fn has_cards() -> bool {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    // Two lines are titles.
    table.lines().skip(2).any(|line| !line.trim_start().starts_with("lo:"))
}

/// Makes the network, once the engine has done its part.
pub fn connect(wanted: &Wanted) -> Result<Network> {
    match wanted {
        Wanted::Host => {
            let routes = json(&["-4", "route", "show", "default"])?;
            let card = routes.iter().find_map(|route| route["dev"].as_str());
            let card =
                card.context("network host: passt needs a default route, this host has none")?;
            Ok(Network::User { steps: steps(card, "0")? })
        }
        Wanted::Own | Wanted::Given(_) if !has_cards() => Ok(Network::None),
        Wanted::Own | Wanted::Given(_) => {
            let cards = json(&["addr", "show"])?;
            let card = cards.iter().find(|card| card["link_type"] == "ether" && is_up(card));
            let Some(card) = card else { return Ok(Network::None) };
            let name = card["ifname"].as_str().context("ip: a card without a name")?;
            let mac = card["address"].as_str().context("ip: a card without an address")?.to_owned();
            let mtu = card["mtu"].to_string();
            take_over(name, &mtu)?;
            Ok(Network::Tap { mac, steps: steps(name, &mtu)? })
        }
    }
}

/// What gives the guest's card the addresses and gateways of `card`.
fn steps(card: &str, mtu: &str) -> Result<Vec<String>> {
    let mut steps = vec![step("card", &[CARD, mtu])?];
    for found in json(&["addr", "show", "dev", card])? {
        for address in found["addr_info"].as_array().into_iter().flatten() {
            steps.extend(address_step(address)?);
        }
    }
    for version in ["-4", "-6"] {
        for route in json(&[version, "route", "show", "dev", card])? {
            steps.extend(route_step(&route, version)?);
        }
    }
    Ok(steps)
}

fn is_up(card: &Value) -> bool {
    let has = |flag| card["flags"].as_array().is_some_and(|flags| flags.iter().any(|f| f == flag));
    has("UP") && !has("LOOPBACK") && card["addr_info"].as_array().is_some_and(|a| !a.is_empty())
}

fn address_step(address: &Value) -> Result<Option<String>> {
    let (Some(own), Some(bits)) = (address["local"].as_str(), address["prefixlen"].as_u64()) else {
        return Ok(None);
    };
    if address["scope"] == LINK_LOCAL {
        return Ok(None);
    }
    step("address", &[CARD, own, &bits.to_string()]).map(Some)
}

/// Routes to a gateway; the kernel adds those to neighbours with an address.
fn route_step(route: &Value, version: &str) -> Result<Option<String>> {
    let Some(gateway) = route["gateway"].as_str() else { return Ok(None) };
    let to = match route["dst"].as_str() {
        Some("default") | None if version == "-4" => "0.0.0.0/0",
        Some("default") | None => "::/0",
        Some(to) => to,
    };
    let whole = if version == "-4" { "32" } else { "128" };
    let (to, bits) = to.split_once('/').unwrap_or((to, whole));
    step("route", &[CARD, to, bits, gateway]).map(Some)
}

/// What `ip -json` prints.
fn json(words: &[&str]) -> Result<Vec<Value>> {
    let text = run("ip", &[&["-json"], words].concat())?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).context("ip: not JSON: iproute2 is too old")
}

/// Makes the tap, and has all that one of the two receives sent by the other.
fn take_over(card: &str, mtu: &str) -> Result<()> {
    // Of a container that had this namespace before. /sys may show another's cards.
    if run("ip", &["link", "show", TAP]).is_ok() {
        run("ip", &["link", "delete", TAP])?;
    }
    run("ip", &["tuntap", "add", TAP, "mode", "tap", "vnet_hdr"])?;
    run("ip", &["link", "set", TAP, "mtu", mtu, "up"])?;
    for (from, to) in [(card, TAP), (TAP, card)] {
        run("tc", &["qdisc", "replace", "dev", from, "ingress"])?;
        let rule =
            ["filter", "replace", "dev", from, "parent", "ffff:", "protocol", "all", "prio", "1"];
        let all = ["handle", "800::800", "u32", "match", "u32", "0", "0"];
        let action = ["action", "mirred", "egress", "redirect", "dev", to];
        run("tc", &[&rule[..], &all, &action].concat())?;
    }
    Ok(())
}

fn run(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{program}: install the package iproute2"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().next().unwrap_or_default();
    ensure!(output.status.success(), "{program} {}: {line}", words.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The machine's flags.
pub fn flags(network: &Network) -> Vec<String> {
    match network {
        Network::None => vec![],
        Network::User { .. } => vec!["--net".into(), "user".into()],
        Network::Tap { mac, .. } => vec!["--net".into(), format!("tap={TAP},mac={mac}")],
    }
}

/// The steps that the guest takes.
pub fn steps_of(network: &Network) -> &[String] {
    match network {
        Network::None => &[],
        Network::User { steps } | Network::Tap { steps, .. } => steps,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cards_addresses_and_gateways_become_steps() {
        let address = |scope| json!({"local": "10.88.0.5", "prefixlen": 16, "scope": scope});
        assert_eq!(
            address_step(&address("global")).unwrap().unwrap(),
            "address\neth0\n10.88.0.5\n16"
        );
        assert_eq!(address_step(&address("link")).unwrap(), None);
        let route = |dst| json!({"dst": dst, "gateway": "10.88.0.1"});
        assert_eq!(
            route_step(&route("default"), "-4").unwrap().unwrap(),
            "route\neth0\n0.0.0.0\n0\n10.88.0.1"
        );
        assert_eq!(
            route_step(&route("1.2.3.4"), "-4").unwrap().unwrap(),
            "route\neth0\n1.2.3.4\n32\n10.88.0.1"
        );
        assert_eq!(route_step(&json!({"dst": "10.88.0.0/16"}), "-4").unwrap(), None);
        let six = json!({"dst": "default", "gateway": "fe80::1"});
        assert_eq!(route_step(&six, "-6").unwrap().unwrap(), "route\neth0\n::\n0\nfe80::1");
    }
}
