//! The configuration of devices that other processes serve: folders of the host, and what speaks vhost-user.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::text::{ensure_once, part, parts};

/// Most bytes of a tag (virtio 1.2, 5.11.4).
pub const MAX_TAG: usize = 36;

/// A folder of the host that the guest can mount, by virtio-fs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareConfig {
    /// The folder.
    pub folder: PathBuf,
    /// The name by which the guest mounts it, of 1 to [`MAX_TAG`] bytes.
    pub tag: String,
    /// Nobody in the guest can change it.
    pub readonly: bool,
}

/// A device that a process serves which listens at a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VhostUserConfig {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The device.
    pub kind: VhostUserKind,
}

/// What a process serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VhostUserKind {
    /// A disk.
    Block,
    /// A file system with this tag.
    Files(String),
}

impl ShareConfig {
    /// What can follow the folder.
    pub const OPTIONS: [&str; 2] = ["tag=", "readonly"];
}

impl VhostUserConfig {
    /// Its options.
    pub const OPTIONS: [&str; 4] = ["socket=", "kind=blk", "kind=fs", "tag="];
}

/// Refuses two file systems with one tag.
pub fn ensure_tags_apart(shares: &[ShareConfig], others: &[VhostUserConfig]) -> Result<()> {
    let of_others = others.iter().filter_map(|other| match &other.kind {
        VhostUserKind::Files(tag) => Some(tag),
        VhostUserKind::Block => None,
    });
    let tags: Vec<_> = shares.iter().map(|share| &share.tag).chain(of_others).collect();
    for (index, tag) in tags.iter().enumerate() {
        ensure!(!tags[..index].contains(tag), "--share: two have the tag {tag}: say tag=NAME");
    }
    Ok(())
}

/// Refuses what is no tag.
fn tag(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_TAG if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(format!("the tag '{}' is not one of 1 to {MAX_TAG} bytes", text.escape_debug())),
    }
}

/// The tag of a folder without one: its name.
fn tag_of(folder: &Path) -> Result<String, String> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let own = name.map(tag).and_then(Result::ok);
    own.ok_or_else(|| format!("{}: its name is no tag, say tag=NAME", folder.display()))
}

impl FromStr for ShareConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = parts(text);
        let (folder, options) = parts.split_first().ok_or("say DIR")?;
        if folder.is_empty() {
            return Err("say DIR[,tag=NAME][,readonly]".into());
        }
        ensure_once(options.iter().map(String::as_str))?;
        let (mut own_tag, mut readonly) = (None, false);
        for option in options {
            match option.split_once('=') {
                Some(("tag", name)) => own_tag = Some(tag(name)?),
                None if option == "readonly" => readonly = true,
                _ => return Err(format!("'{option}': those are tag=NAME and readonly")),
            }
        }
        let folder = PathBuf::from(folder);
        let tag = own_tag.map_or_else(|| tag_of(&folder), Ok)?;
        Ok(Self { folder, tag, readonly })
    }
}

impl fmt::Display for ShareConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", part(self.folder.display()))?;
        if tag_of(&self.folder).as_ref() != Ok(&self.tag) {
            write!(f, ",tag={}", part(&self.tag))?;
        }
        if self.readonly { f.write_str(",readonly") } else { Ok(()) }
    }
}

impl FromStr for VhostUserConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = parts(text);
        ensure_once(parts.iter().map(String::as_str))?;
        let usage = "say socket=PATH,kind=blk or socket=PATH,kind=fs,tag=NAME";
        let (mut socket, mut kind, mut own_tag) = (None, None, None);
        for option in &parts {
            match option.split_once('=') {
                Some(("socket", path)) if !path.is_empty() => socket = Some(PathBuf::from(path)),
                Some(("kind", name @ ("blk" | "fs"))) => kind = Some(name),
                Some(("tag", name)) => own_tag = Some(tag(name)?),
                _ => return Err(format!("'{option}': {usage}")),
            }
        }
        let kind = match (kind, own_tag) {
            (Some("blk"), None) => VhostUserKind::Block,
            (Some("fs"), Some(tag)) => VhostUserKind::Files(tag),
            _ => return Err(usage.into()),
        };
        Ok(Self { socket: socket.ok_or(usage)?, kind })
    }
}

impl fmt::Display for VhostUserConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "socket={},", part(self.socket.display()))?;
        match &self.kind {
            VhostUserKind::Block => f.write_str("kind=blk"),
            VhostUserKind::Files(tag) => write!(f, "kind=fs,tag={}", part(tag)),
        }
    }
}

impl TryFrom<String> for ShareConfig {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ShareConfig> for String {
    fn from(config: ShareConfig) -> Self {
        config.to_string()
    }
}

impl TryFrom<String> for VhostUserConfig {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<VhostUserConfig> for String {
    fn from(config: VhostUserConfig) -> Self {
        config.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_folder_with_a_tag() {
        for (text, folder, tag, readonly) in [
            ("src", "src", "src", false),
            ("/home/a,,b,readonly", "/home/a,b", "a,b", true),
            ("/,tag=root,readonly", "/", "root", true),
            ("x,tag=y", "x", "y", false),
        ] {
            let config: ShareConfig = text.parse().unwrap();
            let expected = ShareConfig { folder: folder.into(), tag: tag.into(), readonly };
            assert_eq!(config, expected, "{text}");
            assert_eq!(config.to_string(), text, "{text}");
        }
    }

    #[test]
    fn a_back_end_is_a_socket_and_a_kind() {
        for text in ["socket=a,,b,kind=blk", "socket=s,kind=fs,tag=home"] {
            let config: VhostUserConfig = text.parse().unwrap();
            assert_eq!(config.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_has_a_remedy() {
        let long = format!("x,tag={}", "y".repeat(MAX_TAG + 1));
        for (text, remedy) in [
            ("", "say DIR"),
            (",tag=x", "say DIR"),
            ("/", "say tag=NAME"),
            ("..", "say tag=NAME"),
            ("x,tag=", "1 to 36"),
            ("x,tag=a\nb", "1 to 36"),
            (&long, "1 to 36"),
            ("x,ro", "readonly"),
            ("x,tag=a,tag=b", "twice"),
        ] {
            let error = text.parse::<ShareConfig>().unwrap_err();
            assert!(error.contains(remedy), "{text}: {error}");
        }
        for text in ["", "s", "socket=s", "kind=blk", "socket=s,kind=fs", "socket=,kind=blk"]
            .into_iter()
            .chain(["socket=s,kind=blk,tag=x", "socket=s,kind=net"])
        {
            let error = text.parse::<VhostUserConfig>().unwrap_err();
            assert!(error.contains("say socket=PATH"), "{text}: {error}");
        }
    }

    #[test]
    fn two_file_systems_have_two_tags() {
        let share = |text: &str| text.parse::<ShareConfig>().unwrap();
        let other: VhostUserConfig = "socket=s,kind=fs,tag=a".parse().unwrap();
        ensure_tags_apart(&[share("a"), share("b")], &[]).unwrap();
        ensure_tags_apart(&[share("a"), share("x,tag=a")], &[]).unwrap_err();
        ensure_tags_apart(&[share("a")], &[other]).unwrap_err();
    }
}
