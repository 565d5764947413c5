//! A container's state: a folder, named after it, in the root folder of all.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::Spec;
use rustix::process::{Pid, geteuid};
use serde::{Deserialize, Serialize};

/// Files of the folder: what the container is, what its process waits at until the start, and what says that the machine
/// stands still.
const STATE: &str = "state.json";
const START: &str = "start";
const PAUSED: &str = "paused";

/// What is kept of a container.
#[derive(Debug, Deserialize, Serialize)]
pub struct Saved {
    /// Its bundle, an absolute path.
    pub bundle: PathBuf,
    /// Its process, once it is there, and when that started, in ticks since the host's boot (proc_pid_stat(5)).
    pub process: Option<(i32, u64)>,
    /// The value of XDG_RUNTIME_DIR, by which `tinyvmm` finds machines.
    pub runtime_dir: Option<PathBuf>,
    /// Its control group's folders.
    pub cgroups: Vec<PathBuf>,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub folder: PathBuf,
    pub saved: Saved,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// As the specification has it (runtime.md, "State"), and runc.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container's ID, which is also the name of a folder.
pub fn id(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    let is_name = !text.is_empty() && text.len() <= 128 && text.chars().all(fits);
    if is_name && !text.starts_with(['.', '-']) {
        Ok(text.to_owned())
    } else {
        Err("say 1 to 128 letters, digits, _, +, - and ., not . or - first".into())
    }
}

/// The folder of all containers, which is made if it is not there.
pub fn root(given: Option<&Path>) -> Result<PathBuf> {
    let own = || match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if !geteuid().is_root() => Path::new(&folder).join("tinyvmm-oci"),
        _ if geteuid().is_root() => "/run/tinyvmm-oci".into(),
        _ => format!("/tmp/tinyvmm-oci-{}", geteuid().as_raw()).into(),
    };
    let root = given.map_or_else(own, Path::to_owned);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root)
        .with_context(|| format!("folder {}", root.display()))?;
    let found = fs::symlink_metadata(&root)?;
    let is_ours = found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0;
    // Where another user could make it first.
    ensure!(
        given.is_some() || is_ours,
        "folder {}: not ours alone, say --root DIR",
        root.display()
    );
    Ok(fs::canonicalize(root)?)
}

impl Container {
    /// A new one.
    ///
    /// # Errors
    ///
    /// There is one of this ID.
    pub fn new(root: &Path, id: &str, saved: Saved) -> Result<Self> {
        let folder = root.join(id);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("container {id} exists: take another ID, or delete it")
            }
            made => made.with_context(|| format!("folder {}", folder.display()))?,
        }
        let this = Self { id: id.to_owned(), folder, saved };
        this.save()?;
        Ok(this)
    }

    /// The one of this ID.
    pub fn find(root: &Path, id: &str) -> Result<Self> {
        let folder = root.join(id);
        // Engines compare these words with runc's.
        let text = match fs::read(folder.join(STATE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("container does not exist: {id}")
            }
            text => text.with_context(|| format!("container {id}"))?,
        };
        let saved = serde_json::from_slice(&text);
        let saved = saved.with_context(|| format!("{}: damaged", folder.join(STATE).display()))?;
        Ok(Self { id: id.to_owned(), folder, saved })
    }

    /// Writes its state anew: readers see the old one or the new.
    pub fn save(&self) -> Result<()> {
        let (path, new) = (self.folder.join(STATE), self.folder.join("state.json.new"));
        fs::write(&new, serde_json::to_vec(&self.saved)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| path.display().to_string())
    }

    /// Removes what is kept of it.
    pub fn forget(&self) -> Result<()> {
        let removed = fs::remove_dir_all(&self.folder);
        removed.with_context(|| format!("folder {}", self.folder.display()))
    }

    /// Its description. Read anew each time: the engine's file is the one truth.
    pub fn spec(&self) -> Result<Spec> {
        spec(&self.saved.bundle)
    }

    pub fn start_file(&self) -> PathBuf {
        self.folder.join(START)
    }

    pub fn paused_file(&self) -> PathBuf {
        self.folder.join(PAUSED)
    }

    pub fn status(&self) -> Status {
        match (self.saved.process, self.pid()) {
            (None, _) => Status::Creating,
            (_, None) => Status::Stopped,
            _ if self.start_file().exists() => Status::Created,
            _ if self.paused_file().exists() => Status::Paused,
            _ => Status::Running,
        }
    }

    /// Its process, while that lives.
    pub fn pid(&self) -> Option<Pid> {
        let (pid, started) = self.saved.process?;
        Pid::from_raw(pid).filter(|_| started_at(pid) == Some(started))
    }

    /// Fails unless the container's machine runs.
    pub fn ensure_runs(&self) -> Result<()> {
        let status = self.status();
        let runs = status == Status::Running;
        ensure!(runs, "container {} is {}: it has to be running", self.id, status.name());
        Ok(())
    }

    /// The name of its machine: letters, digits and `-` of the ID, others as their code. At most 64 are passed on.
    pub fn machine(&self) -> String {
        let letters = self.id.chars().map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' => c.to_string(),
            c => format!("-{:x}", u32::from(c)),
        });
        letters.collect::<String>().chars().take(64).collect()
    }
}

/// The description in a bundle.
pub fn spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    Spec::load(&path).with_context(|| path.display().to_string())
}

/// When a process that lives started; `None` of one that has ended, though nobody has waited for it.
pub fn started_at(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, a program's name, may have any characters.
    let fields: Vec<_> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let lives = !["Z", "X"].contains(fields.first()?);
    fields.get(19)?.parse().ok().filter(|_| lives)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn saved(process: Option<(i32, u64)>) -> Saved {
        Saved { bundle: "/b".into(), process, runtime_dir: None, cgroups: vec![] }
    }

    #[test]
    fn a_container_is_what_its_process_is() {
        let root = TempDir::new().unwrap();
        let root = root.as_path();
        let mut container = Container::new(root, "a_b.c", saved(None)).unwrap();
        assert!(
            Container::new(root, "a_b.c", saved(None)).unwrap_err().to_string().contains("exists")
        );
        assert_eq!(
            (container.status(), container.machine()),
            (Status::Creating, "a-5fb-2ec".into())
        );
        let own = std::process::id() as i32;
        container.saved.process = Some((own, started_at(own).unwrap()));
        container.save().unwrap();
        let mut found = Container::find(root, "a_b.c").unwrap();
        assert_eq!(found.status(), Status::Running);
        fs::write(found.start_file(), "").unwrap();
        assert_eq!(found.status(), Status::Created);
        fs::remove_file(found.start_file()).unwrap();
        fs::write(found.paused_file(), "").unwrap();
        assert_eq!(found.status(), Status::Paused);
        assert!(found.ensure_runs().unwrap_err().to_string().contains("is paused"));
        // Another process that has its number.
        found.saved.process = Some((own, 1));
        assert_eq!(found.status(), Status::Stopped);
        fs::write(root.join("a_b.c").join(STATE), "{").unwrap();
        assert!(format!("{:#}", Container::find(root, "a_b.c").unwrap_err()).contains("damaged"));
        found.forget().unwrap();
        let error = Container::find(root, "a_b.c").unwrap_err();
        assert_eq!(error.to_string(), "container does not exist: a_b.c");
    }

    #[test]
    fn an_id_is_no_path() {
        for text in ["", ".", "..", "a/b", "-a", "a b", "a\n", &"a".repeat(129)] {
            assert!(id(text).is_err(), "{text}");
        }
        assert_eq!(id("web_1.a+b-c").as_deref(), Ok("web_1.a+b-c"));
    }
}
