//! What a guest's cloud-init is told.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueHint};
use serde::Serialize;
use tinyvmm::config::text::{ensure_once, part, parts};

use super::opt_as_text;

/// The flags of an image that takes its first configuration from cloud-init.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Machine")]
pub struct CloudFlags {
    /// Give the guest's cloud-init its first configuration
    ///
    /// The files are on a read-only disk, the guest's last, that cloud-init finds by itself (its data source NoCloud).
    /// Without `meta-data` the host name is the machine's name, and cloud-init does its work again when the name or what it
    /// is told has changed.
    #[arg(long, value_name = "user-data=FILE[,meta-data=FILE][,network-config=FILE]")]
    #[serde(serialize_with = "opt_as_text")]
    pub cloud_init: Option<CloudInit>,

    /// A public key of SSH's, as ~/.ssh/id_ed25519.pub: the guest's cloud-init lets its first user in with it
    ///
    /// May be given several times. The user is the image's: `debian`, `ubuntu`, `fedora`, `alpine` and so on.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_key: Vec<PathBuf>,
}

/// The files of `--cloud-init`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudInit {
    /// What is to be done: a `#cloud-config`, a script, or another of cloud-init's formats.
    pub user_data: PathBuf,
    /// Who the guest is; made up of the machine's name if it is not there.
    pub meta_data: Option<PathBuf>,
    /// How its cards are set up; without it cloud-init asks for an address by DHCP.
    pub network_config: Option<PathBuf>,
}

impl FromStr for CloudInit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = parts(text);
        ensure_once(parts.iter().map(String::as_str))?;
        let (mut user_data, mut meta_data, mut network_config) = (None, None, None);
        for part in &parts {
            let (place, file) = match part.split_once('=') {
                Some(("user-data", file)) => (&mut user_data, file),
                Some(("meta-data", file)) => (&mut meta_data, file),
                Some(("network-config", file)) => (&mut network_config, file),
                _ => {
                    return Err(format!(
                        "'{part}' is not one of user-data=FILE, meta-data=FILE, network-config=FILE"
                    ));
                }
            };
            *place = Some(PathBuf::from(file));
        }
        let user_data = user_data.ok_or("say user-data=FILE: a #cloud-config or a script")?;
        Ok(Self { user_data, meta_data, network_config })
    }
}

impl fmt::Display for CloudInit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "user-data={}", part(self.user_data.display()))?;
        for (name, file) in
            [("meta-data", &self.meta_data), ("network-config", &self.network_config)]
        {
            if let Some(file) = file {
                write!(f, ",{name}={}", part(file.display()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_needed_and_each_file_named_once() {
        for text in ["user-data=a", "user-data=a,,b,meta-data=m,network-config=n"] {
            assert_eq!(text.parse::<CloudInit>().unwrap().to_string(), text);
        }
        let cases = [
            ("meta-data=m", "say user-data=FILE"),
            ("user-data=a,user-data=b", "twice"),
            ("a.yaml", "'a.yaml' is not one of"),
        ];
        for (text, why) in cases {
            assert!(text.parse::<CloudInit>().unwrap_err().contains(why), "{text}");
        }
    }
}
