//! The bodies of requests for network interfaces.

use anyhow::{Context, Error, Result, ensure};
use serde::{Deserialize, Serialize};

use super::shown::limit;
use tinyvmm::config::{NetConfig, NetEnd, RateLimit};

/// PUT /network-interfaces/{iface_id}
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// The interface's name, as in the path.
    pub iface_id: String,
    /// A tap of the host.
    pub host_dev_name: String,
    guest_mac: Option<String>,
    mtu: Option<u16>,
    #[serde(serialize_with = "limit")]
    rx_rate_limiter: Option<RateLimit>,
    #[serde(serialize_with = "limit")]
    tx_rate_limiter: Option<RateLimit>,
}

impl NetworkInterface {
    /// What describes `card`.
    pub fn of(iface_id: String, card: &NetConfig) -> Self {
        Self {
            iface_id,
            host_dev_name: match &card.end {
                NetEnd::Tap(name) => name.clone(),
                // Only flags can name these.
                NetEnd::User(_) => "user".into(),
                NetEnd::Fd(number) => format!("fd={number}"),
            },
            guest_mac: card.mac.map(|mac| mac.to_string()),
            mtu: card.mtu,
            rx_rate_limiter: Some(card.rx_limit),
            tx_rate_limiter: Some(card.tx_limit),
        }
    }

    /// The card that it describes.
    pub fn card(&self) -> Result<NetConfig> {
        let flag = format!("tap={}", self.host_dev_name.replace(',', ",,"));
        let mut card: NetConfig = flag.parse().map_err(Error::msg).context("host_dev_name")?;
        let mac = self.guest_mac.as_deref().map(str::parse).transpose();
        card.mac = mac.map_err(Error::msg).context("guest_mac")?;
        let least = NetConfig::MIN_MTU;
        ensure!(self.mtu.is_none_or(|mtu| mtu >= least), "mtu: say {least} to 65535 bytes");
        card.mtu = self.mtu;
        card.rx_limit = self.rx_rate_limiter.unwrap_or_default();
        card.tx_limit = self.tx_rate_limiter.unwrap_or_default();
        Ok(card)
    }
}

/// PATCH /network-interfaces/{iface_id}
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialNetworkInterface {
    /// The interface's name, as in the path.
    pub iface_id: String,
    /// Changes of the limits of what the guest receives.
    pub rx_rate_limiter: Option<RateLimit>,
    /// Those of what it sends.
    pub tx_rate_limiter: Option<RateLimit>,
}
