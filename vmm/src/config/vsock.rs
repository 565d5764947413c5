//! The configuration of a machine's vsock device.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text::{ensure_once, part, parts};

/// A vsock device: stream sockets between programs of the guest and of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VsockConfig {
    /// The Unix socket at which the host connects to the guest; with `_PORT` added, where the guest connects to the
    /// host. `None`: one that the program finds, or nobody.
    pub path: Option<PathBuf>,
    /// The guest's address, one of [`VsockConfig::CIDS`].
    pub cid: u32,
}

impl VsockConfig {
    /// Addresses that a guest can have: those below are the host's, the one above is none (virtio 1.2, 5.10.4).
    pub const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;
    /// Its options; a value follows.
    pub const OPTIONS: [&str; 2] = ["path=", "cid="];

    /// A device at `path` whose guest has the first address.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, cid: *Self::CIDS.start() }
    }
}

impl FromStr for VsockConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = parts(text);
        ensure_once(parts.iter().map(String::as_str))?;
        let (mut path, mut cid) = (None, None);
        for option in &parts {
            match option.split_once('=') {
                Some(("path", file)) if !file.is_empty() => path = Some(PathBuf::from(file)),
                Some(("cid", number)) => cid = Some(address(number)?),
                _ => return Err(format!("'{option}': say path=FILE[,cid=NUMBER]")),
            }
        }
        let cid = cid.unwrap_or(*Self::CIDS.start());
        Ok(Self { path, cid })
    }
}

fn address(number: &str) -> Result<u32, String> {
    let cid = number.parse().ok().filter(|cid| VsockConfig::CIDS.contains(cid));
    let (first, last) = VsockConfig::CIDS.into_inner();
    cid.ok_or_else(|| format!("cid {number}: say {first} to {last}"))
}

impl fmt::Display for VsockConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.path {
            None => write!(f, "cid={}", self.cid),
            Some(path) if self.cid == *Self::CIDS.start() => {
                write!(f, "path={}", part(path.display()))
            }
            Some(path) => write!(f, "path={},cid={}", part(path.display()), self.cid),
        }
    }
}

impl TryFrom<String> for VsockConfig {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<VsockConfig> for String {
    fn from(config: VsockConfig) -> Self {
        config.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_path_and_an_address() {
        for (text, path, cid) in [
            ("path=v", Some("v"), 3),
            ("path=/run/a,,b=c,cid=7", Some("/run/a,b=c"), 7),
            ("cid=4294967294,path=v", Some("v"), u32::MAX - 1),
            ("cid=3", None, 3),
        ] {
            let config: VsockConfig = text.parse().unwrap();
            assert_eq!(config, VsockConfig { path: path.map(PathBuf::from), cid }, "{text}");
            assert_eq!(config.to_string().parse(), Ok(config), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_has_a_remedy() {
        for (text, remedy) in [
            ("", "say path=FILE"),
            ("v.sock", "say path=FILE"),
            ("path=", "say path=FILE"),
            ("path=v,cid=2", "say 3 to 4294967294"),
            ("path=v,cid=4294967295", "say 3 to"),
            ("path=v,cids=3", "cid=NUMBER"),
            ("path=v,path=w", "twice"),
        ] {
            let error = text.parse::<VsockConfig>().unwrap_err();
            assert!(error.contains(remedy), "{text}: {error}");
        }
    }
}
