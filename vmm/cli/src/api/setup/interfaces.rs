//! The network interfaces of a description: those of flags, then those of clients.

use anyhow::{Context, Result, bail, ensure};

use super::Setup;
use crate::api::bodies::{NetworkInterface, PartialNetworkInterface};
use crate::net;
use tinyvmm::config::NetConfig;

impl Setup {
    /// PUT /network-interfaces/{id}.
    pub(super) fn set_interface(&mut self, interface: &NetworkInterface) -> Result<()> {
        let (card, name) = (interface.card()?, &interface.host_dev_name);
        let known = self.interface_ids().position(|id| id == interface.iface_id);
        let cards = &mut self.config.machine.0.net;
        let of_flags = cards.len() - self.interfaces.len();
        ensure!(known.is_none_or(|at| at >= of_flags), "iface_id: a card of flags has it");
        for (_, other) in cards.iter().enumerate().filter(|(at, _)| Some(*at) != known) {
            ensure!(
                card.end != other.end,
                "Could not create the network device: host_dev_name {name}: another interface has it, name another tap"
            );
            if let Some(mac) = card.mac.filter(|_| card.mac == other.mac) {
                bail!("The MAC address is already in use: {mac}. Change guest_mac or leave it out");
            }
        }
        // Opened and closed, so that an error is reported now.
        net::probe(&card).with_context(|| format!("host_dev_name {name}"))?;
        match known {
            Some(index) => cards[index] = card,
            None => {
                cards.push(card);
                self.interfaces.push(interface.iface_id.clone());
            }
        }
        Ok(())
    }

    /// The names of all interfaces, in the order of the machine's cards.
    pub(in crate::api) fn interface_ids(&self) -> impl Iterator<Item = String> {
        let of_flags = self.config.machine.0.net.len() - self.interfaces.len();
        (0..of_flags).map(|index| format!("net{index}")).chain(self.interfaces.iter().cloned())
    }

    /// A part of GET /vm/config.
    pub(super) fn interfaces(&self) -> Vec<NetworkInterface> {
        let cards = self.interface_ids().zip(&self.config.machine.0.net);
        cards.map(|(id, card)| NetworkInterface::of(id, card)).collect()
    }

    /// PATCH /network-interfaces/{id}: changes limits; returns the card that has them, and its index.
    pub(in crate::api) fn update_interface(
        &mut self,
        update: &PartialNetworkInterface,
    ) -> Result<(usize, &NetConfig)> {
        let index = self.interface_ids().position(|id| id == update.iface_id);
        let index = index.context("there is no such interface")?;
        let card = &mut self.config.machine.0.net[index];
        card.rx_limit = card.rx_limit.updated(update.rx_rate_limiter.unwrap_or_default());
        card.tx_limit = card.tx_limit.updated(update.tx_rate_limiter.unwrap_or_default());
        Ok((index, card))
    }
}
