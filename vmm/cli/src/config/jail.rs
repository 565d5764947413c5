//! The value of `--jail`: the user, root and namespaces of a process that root starts.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use tinyvmm::config::text::ensure_once;

/// The user that the process becomes, its root and its network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailConfig {
    /// User id, not 0.
    pub user: u32,
    /// Group id, not 0; the same number as `user` unless given.
    pub group: u32,
    /// The folder that becomes the root of all paths once everything is open.
    pub chroot: Option<PathBuf>,
    /// A network namespace that `ip netns` has made; `None`: a new and empty one.
    pub netns: Option<String>,
}

impl FromStr for JailConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut user, mut group, mut chroot, mut netns) = (None, None, None, None);
        ensure_once(text.split(','))?;
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("user", id)) => user = Some(number(id)?),
                Some(("group", id)) => group = Some(number(id)?),
                Some(("chroot", folder)) if folder.starts_with('/') => chroot = Some(folder.into()),
                Some(("chroot", folder)) => {
                    return Err(format!("chroot '{folder}': say all of its path, from / on"));
                }
                // The name becomes part of a path.
                Some(("netns", name)) if is_name(name) => netns = Some(name.to_owned()),
                Some(("netns", name)) => {
                    return Err(format!("netns '{name}' is not a name: ip netns prints them"));
                }
                _ => {
                    return Err(format!(
                        "'{part}' is not one of user=UID, group=GID, chroot=DIR, netns=NAME"
                    ));
                }
            }
        }
        let user = user.ok_or("say user=UID: the user that the process becomes")?;
        Ok(Self { user, group: group.unwrap_or(user), chroot, netns })
    }
}

fn number(id: &str) -> Result<u32, String> {
    // The largest means "no change" to the kernel (setresuid(2)).
    match id.parse() {
        Ok(number) if ![0, u32::MAX].contains(&number) => Ok(number),
        Ok(0) => Err("0 is root, which the process is to give up: say another number".into()),
        _ if id == "root" => {
            Err("root is the user that the process gives up: say another user's number".into())
        }
        Err(_) if is_name(id) && !id.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
            Err(format!("'{id}' is a name: say its number, which getent passwd or group prints"))
        }
        _ => Err(format!("'{id}' is not the number of a user or group")),
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

impl fmt::Display for JailConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "user={},group={}", self.user, self.group)?;
        if let Some(folder) = &self.chroot {
            write!(f, ",chroot={}", folder.display())?;
        }
        match &self.netns {
            Some(name) => write!(f, ",netns={name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jail_has_a_user_who_is_not_root() {
        let jail: JailConfig = "chroot=/a b,user=1000,netns=n".parse().unwrap();
        assert_eq!((jail.user, jail.group), (1000, 1000));
        assert_eq!(jail.to_string(), "user=1000,group=1000,chroot=/a b,netns=n");
        assert_eq!(jail.to_string().parse(), Ok(jail));
        for (text, why) in [
            ("", "''"),
            ("group=1", "say user=UID"),
            ("user=0", "0 is root"),
            ("user=1,group=0", "0 is root"),
            ("user=root", "say another user's number"),
            ("user=nobody", "'nobody' is a name"),
            ("user=-1", "'-1' is not the number"),
            ("user=", "'' is not the number"),
            ("user=4294967295", "is not the number"),
            ("user=1,chroot=a", "from / on"),
            ("user=1,chroot=", "from / on"),
            ("user=1,netns=", "netns ''"),
            ("user=1,netns=../x", "netns '../x'"),
            ("user=1,netns=..", "netns '..'"),
            ("user=1,uid=2", "'uid=2' is not one of"),
        ] {
            let error = text.parse::<JailConfig>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
