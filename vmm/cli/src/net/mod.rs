//! What network cards are connected to: a process of passt's, a tap, or what this process was given.

mod passt;
mod tap;

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use tinyvmm::config::{Mac, MachineConfig, NetConfig, NetEnd};
use tinyvmm::random;
use tinyvmm::wire::Wire;

use self::passt::Passt;

/// The network of a machine that is being put together.
#[derive(Default)]
pub struct Network {
    /// In the order of the cards.
    pub wires: Vec<Wire>,
    /// What starts, and for which card.
    starting: Vec<(Passt, String)>,
}

impl Network {
    /// Connects `cards`.
    pub fn open(cards: &[NetConfig]) -> Result<Self> {
        let mut network = Self::default();
        for card in cards {
            let wire = network.connect(card).with_context(|| format!("--net {card}"))?;
            network.wires.push(wire);
        }
        Ok(network)
    }

    fn connect(&mut self, card: &NetConfig) -> Result<Wire> {
        Ok(match &card.end {
            NetEnd::User(user) => {
                let (passt, end) = Passt::start(user, card.mtu)?;
                self.starting.push((passt, card.to_string()));
                Wire::stream(end)?
            }
            NetEnd::Tap(name) => Wire::tap(tap::open(name)?)?,
            NetEnd::Fd(number) => given(*number)?,
        })
    }

    /// Waits until all that was started serves, or has failed.
    pub fn ready(mut self) -> Result<Self> {
        for (passt, card) in self.starting.drain(..) {
            passt.wait().with_context(|| format!("--net {card}"))?;
        }
        Ok(self)
    }
}

/// Connects `card` for a moment: whether it can be.
pub fn probe(card: &NetConfig) -> Result<()> {
    Network::default().connect(card).map(drop)
}

/// A wire at a descriptor that the parent process has left open.
fn given(number: i32) -> Result<Wire> {
    let end: OwnedFd = tap::duplicate(number)?;
    Ok(if tap::is_socket(&end)? { Wire::stream(end)? } else { Wire::tap(tap::check(end)?)? })
}

/// Settles what is left to chance, and to the other end: it stays the same when the guest reboots. A machine with a
/// `name` has the same addresses each time.
pub fn settle(machine: &mut MachineConfig, name: Option<&str>) -> Result<()> {
    for (index, card) in machine.net.iter_mut().enumerate() {
        if card.mac.is_none() {
            card.mac = Some(Mac::local(match name {
                Some(name) => named(name, index),
                None => random::bytes()?,
            }));
        }
        if let NetEnd::User(_) = card.end {
            card.mtu.get_or_insert(passt::MTU);
        }
    }
    Ok(())
}

/// The bytes of an address that the machine `name` has at each start.
fn named(name: &str, index: usize) -> [u8; 6] {
    let hash = blake3::hash(format!("{index} {name}").as_bytes());
    std::array::from_fn(|at| hash.as_bytes()[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_a_name_keeps_its_addresses() {
        let cards = |name: Option<&str>| {
            let net = vec!["user".parse().unwrap(), "tap=a".parse().unwrap()];
            let mut machine = MachineConfig { net, ..MachineConfig::default() };
            settle(&mut machine, name).unwrap();
            machine.net.iter().map(|card| card.mac.unwrap().0).collect::<Vec<_>>()
        };
        assert_eq!(cards(Some("web")), cards(Some("web")));
        let mut all = [cards(Some("web")), cards(Some("db")), cards(None), cards(None)].concat();
        assert!(all.iter().all(|mac| mac[0] & 3 == 2));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8, "two are the same");
    }
}
