//! A disk, as the command line describes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A raw disk image or block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image file or block device.
    pub path: PathBuf,
    /// Refuse the guest's writes.
    pub readonly: bool,
    /// Go around the host's page cache.
    pub direct: bool,
    /// Serial number that the guest sees, at most [`DiskConfig::MAX_ID`] bytes.
    pub id: Option<String>,
}

impl DiskConfig {
    /// Longest serial number, in bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID).
    pub const MAX_ID: usize = 20;
}

impl FromStr for DiskConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err("say the disk's file first, then its options".into());
        }
        let mut disk = Self { path: path.into(), readonly: false, direct: false, id: None };
        for part in parts {
            match part.split_once('=') {
                None if part == "readonly" => disk.readonly = true,
                None if part == "direct" => disk.direct = true,
                Some(("id", id)) if id.is_empty() || id.len() > Self::MAX_ID => {
                    return Err(format!("id '{id}' is not 1 to {} bytes long", Self::MAX_ID));
                }
                Some(("id", id)) => disk.id = Some(id.to_owned()),
                _ => return Err(format!("'{part}' is not one of readonly, direct, id=NAME")),
            }
        }
        Ok(disk)
    }
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.readonly {
            f.write_str(",readonly")?;
        }
        if self.direct {
            f.write_str(",direct")?;
        }
        match &self.id {
            Some(id) => write!(f, ",id={id}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_file() {
        let disk: DiskConfig = "a b.img,direct,id=root,readonly".parse().unwrap();
        assert!(disk.readonly && disk.direct);
        assert_eq!(disk.id.as_deref(), Some("root"));
        assert_eq!(disk.to_string().parse(), Ok(disk));
        for text in ["", ",readonly", "a,ro", "a,id=", "a,id=123456789012345678901", "a,readonly=1"]
        {
            text.parse::<DiskConfig>().unwrap_err();
        }
    }
}
