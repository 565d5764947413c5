//! Users and groups, as /etc/passwd and /etc/group have them.

use alloc::vec::Vec;

use rustix::fs::{Mode, OFlags, open};

/// Most bytes of such a file that are looked at.
const MAX_BYTES: usize = 256 << 10;

/// Who runs a program.
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub name: Vec<u8>,
    pub home: Vec<u8>,
    pub shell: Vec<u8>,
}

/// The start of a file; nothing if it is not there.
fn contents(path: &str) -> Vec<u8> {
    let Ok(file) = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return Vec::new();
    };
    let mut bytes = alloc::vec![0; MAX_BYTES];
    let mut len = 0;
    while let Ok(more @ 1..) = rustix::io::read(&file, &mut bytes[len..]) {
        len += more;
    }
    bytes.truncate(len);
    bytes
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

fn number(text: &[u8]) -> Option<u32> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

impl User {
    /// The user `text`, a name or a number, with the group after a colon; without text root. A number need not be in
    /// the files, and then has the group 0. `None` if there is no such user or group.
    pub fn find(text: Option<&[u8]>) -> Option<Self> {
        let text = text.unwrap_or(b"0");
        let mut parts = text.splitn(2, |byte| *byte == b':');
        let (user, group) = (parts.next()?, parts.next());
        let file = contents("/etc/passwd");
        let found = lines(&file).filter(|fields| fields.len() >= 7).find(|fields| {
            fields[0] == user || number(fields[2]).is_some_and(|uid| number(user) == Some(uid))
        });
        let mut this = match found {
            Some(fields) => Self {
                uid: number(fields[2])?,
                gid: number(fields[3])?,
                groups: Vec::new(),
                name: fields[0].into(),
                home: fields[5].into(),
                shell: fields[6].into(),
            },
            None => Self {
                uid: number(user)?,
                gid: 0,
                groups: Vec::new(),
                name: user.into(),
                home: if number(user) == Some(0) { b"/root".into() } else { b"/".into() },
                shell: Vec::new(),
            },
        };
        if this.shell.is_empty() {
            this.shell = b"/bin/sh".into();
        }
        this.join(group)?;
        Some(this)
    }

    /// Makes the user a member of `group` alone, or of all groups that have the user's name.
    fn join(&mut self, group: Option<&[u8]>) -> Option<()> {
        let file = contents("/etc/group");
        let mut lines = lines(&file).filter(|fields| fields.len() >= 4);
        if let Some(group) = group {
            let named = lines.find(|fields| fields[0] == group);
            self.gid = named.map_or(number(group), |fields| number(fields[2]))?;
        } else {
            let has = |fields: &Vec<&[u8]>| {
                fields[3].split(|byte| *byte == b',').any(|name| name == self.name)
            };
            self.groups =
                lines.filter(has).filter_map(|fields| number(fields[2])).take(1024).collect();
        }
        self.groups.push(self.gid);
        Some(())
    }
}
