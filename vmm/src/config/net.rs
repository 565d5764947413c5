//! The configuration of a network card.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::text::{self, ensure_once};
use super::{RateLimit, is_default};

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct NetConfig {
    /// What it is connected to.
    pub end: NetEnd,
    /// Its address; `None` is a random one.
    pub mac: Option<Mac>,
    /// Most bytes of a packet, that the guest learns, from [`NetConfig::MIN_MTU`]; `None` is what the other end takes.
    pub mtu: Option<u16>,
    /// Limits of what the guest receives; only the API sets them.
    pub rx_limit: RateLimit,
    /// Limits of what it sends; only the API sets them.
    pub tx_limit: RateLimit,
}

/// What a network card is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEnd {
    /// The network of the user who runs the machine.
    User(User),
    /// The host's tap device of this name.
    Tap(String),
    /// A descriptor that the program has: a tap, or a stream of frames.
    Fd(i32),
}

/// What the guest and the host's network have of each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The guest's ports that are published.
    pub publish: Vec<Publish>,
    /// The guest reaches what listens on the host's loopback, at its gateway's address.
    pub host: bool,
}

/// A port of the host that leads to one of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The host's address; `None` is all.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// An Ethernet address of one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// An address of nobody's hardware: locally administered (IEEE 802), of these random bytes.
    pub fn local(bytes: [u8; 6]) -> Self {
        let [first, rest @ ..] = bytes;
        let [a, b, c, d, e] = rest;
        Self([first & !1 | 2, a, b, c, d, e])
    }
}

impl NetConfig {
    /// Least bytes of a packet (virtio 1.2, 5.1.4.1).
    pub const MIN_MTU: u16 = 68;
    /// What can follow the other end; a value that is not named follows a `=`.
    pub const OPTIONS: [&str; 4] = ["publish=", "host", "mac=", "mtu="];

    /// A card at `end`.
    pub fn new(end: NetEnd) -> Self {
        let (mac, mtu, rx_limit, tx_limit) = Default::default();
        Self { end, mac, mtu, rx_limit, tx_limit }
    }

    /// Refuses two of `cards` that have one address, one tap, one descriptor or one port of the host.
    pub fn ensure_apart(cards: &[Self]) -> Result<()> {
        for (index, card) in cards.iter().enumerate() {
            for other in &cards[..index] {
                ensure!(
                    card.mac.is_none() || card.mac != other.mac,
                    "--net {card}: another card has this address: leave mac out, or change it"
                );
                let same = match (&card.end, &other.end) {
                    (NetEnd::User(_), _) | (_, NetEnd::User(_)) => false,
                    (one, other) => one == other,
                };
                ensure!(!same, "--net {card}: it is there twice: leave one out");
            }
        }
        let published: Vec<_> = cards.iter().flat_map(NetConfig::published).collect();
        for (index, port) in published.iter().enumerate() {
            let taken = published[..index].iter().any(|other| port.collides_with(other));
            ensure!(!taken, "--publish {port}: the host's port is there twice: name another");
        }
        Ok(())
    }

    /// The ports that it publishes.
    pub fn published(&self) -> &[Publish] {
        match &self.end {
            NetEnd::User(user) => &user.publish,
            _ => &[],
        }
    }
}

impl Publish {
    fn collides_with(&self, other: &Self) -> bool {
        let same_address = match (self.address, other.address) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        same_address && (self.host, self.udp) == (other.host, other.udp)
    }
}

/// A serialized card: as its flag's value, with fields beside that for what only the API sets.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Flag(String),
    #[serde(rename_all = "kebab-case")]
    Limited {
        net: String,
        #[serde(default)]
        rx_limit: RateLimit,
        #[serde(default)]
        tx_limit: RateLimit,
    },
}

impl From<NetConfig> for Form {
    fn from(card: NetConfig) -> Self {
        match (card.to_string(), card.rx_limit, card.tx_limit) {
            (flag, rx, tx) if is_default(&rx) && is_default(&tx) => Self::Flag(flag),
            (net, rx_limit, tx_limit) => Self::Limited { net, rx_limit, tx_limit },
        }
    }
}

impl TryFrom<Form> for NetConfig {
    type Error = String;

    fn try_from(form: Form) -> Result<Self, String> {
        match form {
            Form::Flag(flag) => flag.parse(),
            Form::Limited { net, rx_limit, tx_limit } => {
                Ok(Self { rx_limit, tx_limit, ..net.parse()? })
            }
        }
    }
}

impl FromStr for NetConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text::parts(text);
        let (end, options) = parts.split_first().map_or(("", &[][..]), |(end, o)| (&**end, o));
        let mut end = match end.split_once('=') {
            None if end == "user" => NetEnd::User(User::default()),
            Some(("tap", name)) => NetEnd::Tap(tap_name(name)?),
            Some(("fd", number)) => NetEnd::Fd(descriptor(number)?),
            _ => return Err("say user, tap=NAME or fd=N first, then options".into()),
        };
        let (mut mac, mut mtu) = (None, None);
        let repeatable = |option: &&str| !option.starts_with("publish=");
        ensure_once(options.iter().map(String::as_str).filter(repeatable))?;
        for option in options {
            match (option.split_once('='), &mut end) {
                (Some(("publish", port)), NetEnd::User(user)) => user.publish.push(port.parse()?),
                (None, NetEnd::User(user)) if option == "host" => user.host = true,
                (Some(("publish", _)), _) => {
                    return Err("publish: only user has ports to publish, leave it out".into());
                }
                (Some(("mac", address)), _) => mac = Some(address.parse()?),
                (Some(("mtu", number)), _) => mtu = Some(packet(number)?),
                _ => {
                    return Err(format!(
                        "'{option}' is no option of a network card: {}",
                        remedy(option)
                    ));
                }
            }
        }
        Ok(Self { mac, mtu, ..Self::new(end) })
    }
}

fn remedy(option: &str) -> String {
    let name = option.split('=').next().unwrap_or_default().to_lowercase();
    let name = match &*name {
        "hostfwd" | "port" | "ports" | "forward" | "p" => "publish",
        "macaddr" | "address" | "ether" => "mac",
        name => name,
    };
    match text::nearest(name, ["publish", "host", "mac", "mtu"].into_iter()) {
        Some("publish") => "say publish=HOST:GUEST".into(),
        Some("host") => "say host, or leave it out".into(),
        Some("mac") => "say mac=ADDRESS".into(),
        Some(_) => "say mtu=BYTES".into(),
        None => "those are publish=HOST:GUEST, host, mac=ADDRESS and mtu=BYTES".into(),
    }
}

/// Linux's names are shorter than IFNAMSIZ (include/uapi/linux/if.h).
fn tap_name(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_graphic() && c != '/' && c != '%';
    match (1..16).contains(&name.len()) && name.chars().all(fits) {
        true => Ok(name.to_owned()),
        false => Err(format!("tap '{name}': say the name of a tap, 1 to 15 letters and digits")),
    }
}

fn descriptor(number: &str) -> Result<i32, String> {
    let number = number.parse().ok().filter(|number| *number > 2);
    number.ok_or_else(|| "fd: say the number of an open descriptor, from 3".into())
}

fn packet(number: &str) -> Result<u16, String> {
    let mtu = number.parse().ok().filter(|mtu| *mtu >= NetConfig::MIN_MTU);
    mtu.ok_or_else(|| format!("mtu {number}: say {} to 65535 bytes", NetConfig::MIN_MTU))
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("port '{text}': say [ADDRESS:]HOST:GUEST[/udp], as in 8080:80");
        let (ports, udp) = match text.split_once('/') {
            None => (text, false),
            Some((ports, "tcp")) => (ports, false),
            Some((ports, "udp")) => (ports, true),
            Some(_) => return Err(bad()),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(bad)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => {
                let inner = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                (Some(inner.unwrap_or(address).parse().map_err(|_| bad())?), host)
            }
        };
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0).ok_or_else(bad);
        Ok(Self { address, host: port(host)?, guest: port(guest)?, udp })
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("mac '{text}': say six bytes in hexadecimal, as in 02:00:5e:10:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(format!(
                "mac {text}: no card can have it: the first byte is even, not all are 0"
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(address) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}:{}{}", self.host, self.guest, if self.udp { "/udp" } else { "" })
    }
}

impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.end {
            NetEnd::User(User { publish, host }) => {
                f.write_str(if *host { "user,host" } else { "user" })?;
                publish.iter().try_for_each(|port| write!(f, ",publish={port}"))?;
            }
            NetEnd::Tap(name) => write!(f, "tap={}", text::part(name))?,
            NetEnd::Fd(number) => write!(f, "fd={number}")?,
        }
        self.mac.map_or(Ok(()), |mac| write!(f, ",mac={mac}"))?;
        self.mtu.map_or(Ok(()), |mtu| write!(f, ",mtu={mtu}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_written_as_it_was_read() {
        for text in [
            "user",
            "user,host,mac=02:00:00:00:00:00",
            "user,publish=8080:80,publish=127.0.0.1:53:5353/udp,publish=[::1]:22:22,mtu=1400",
            "tap=tap0,mac=02:00:5e:10:00:01",
            "tap=a,,b",
            "fd=3,mac=52:54:00:12:34:56,mtu=68",
        ] {
            assert_eq!(text.parse::<NetConfig>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_error_names_the_part_and_the_remedy() {
        for (text, part) in [
            ("", "say user, tap=NAME"),
            ("bridge", "say user, tap=NAME"),
            ("tap=", "say the name of a tap"),
            ("tap=sixteen_letters_", "1 to 15"),
            ("tap=a%d", "say the name"),
            ("fd=2", "from 3"),
            ("tap=a,publish=1:2", "only user has ports"),
            ("tap=a,host", "no option"),
            ("user,publish=80", "as in 8080:80"),
            ("user,publish=0:80", "as in 8080:80"),
            ("user,publish=1:2/sctp", "[/udp]"),
            ("user,publish=nowhere:1:2", "[ADDRESS:]"),
            ("user,hostfwd=1:2", "say publish=HOST:GUEST"),
            ("user,mac=01:00:5e:00:00:01", "no card can have it"),
            ("user,mac=02:00", "six bytes"),
            ("user,mac=+2:00:00:00:00:00:00", "six bytes"),
            ("user,mtu=67", "say 68 to 65535"),
            ("user,mtu=1400,mtu=1500", "twice"),
            ("user,queues=4", "those are"),
        ] {
            let error = text.parse::<NetConfig>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn two_cards_share_nothing() {
        let cards = |texts: &[&str]| -> Vec<NetConfig> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let fine = [
            &["user", "user"][..],
            &["user,publish=80:80,publish=80:80/udp"],
            &["user,publish=127.0.0.1:80:80", "user,publish=127.0.0.2:80:80"],
            &["tap=a", "tap=b"],
        ];
        fine.iter().for_each(|texts| NetConfig::ensure_apart(&cards(texts)).unwrap());
        for (texts, part) in [
            (&["tap=a", "tap=a,mtu=1400"][..], "--net tap=a,mtu=1400: it is there twice"),
            (&["fd=3", "fd=3"], "twice"),
            (&["user,mac=02:00:00:00:00:01", "tap=a,mac=02:00:00:00:00:01"], "this address"),
            (&["user,publish=80:80", "user,publish=127.0.0.1:80:81"], "--publish 127.0.0.1:80:81"),
        ] {
            let error = NetConfig::ensure_apart(&cards(texts)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_random_address_is_local_and_of_one_card() {
        assert_eq!(Mac::local([0xff; 6]).to_string(), "fe:ff:ff:ff:ff:ff");
        assert_eq!(Mac::local([0; 6]).to_string(), "02:00:00:00:00:00");
    }
}
