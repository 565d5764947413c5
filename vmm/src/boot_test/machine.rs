//! The keys of a spec that are a machine's: what a configuration file has, checked key by key.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::{CommandFactory, FromArgMatches};

use super::node::Node;
use crate::cli::{self, Cli};
use crate::config::Config;
use tinyvmm::config::{DiskConfig, Overlay};

/// Keys that the runner sets itself, and why nobody else can.
const RUNNERS_OWN: [(&str, &str); 2] = [
    ("console", "the runner reads the console: it cannot go elsewhere"),
    ("boot-report", "the runner has it written for itself"),
];

/// A machine, as flags for tinyvmm, and what the runner has to know of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub(super) flags: Vec<OsString>,
    pub(super) cpus: u32,
    /// In bytes.
    pub(super) memory: u64,
    /// Files of disks and overlays, and whether other machines may have them too.
    pub(super) disks: Vec<(PathBuf, bool)>,
    /// Where each key was set.
    places: Vec<(String, String)>,
}

/// Whether tinyvmm has a flag `name` that a machine can have.
pub(super) fn is_key(name: &str) -> bool {
    keys().iter().any(|key| key == name)
}

/// Every key that a machine can have.
pub(super) fn keys() -> Vec<String> {
    let command = Cli::command();
    let keys = command.get_arguments().filter(|arg| cli::is_key(arg));
    keys.filter_map(|arg| arg.get_long().map(Into::into)).collect()
}

impl Machine {
    /// Adds what the key `name` with the value `node` stands for, if it can be.
    pub(super) fn set(&mut self, name: &str, node: &Node) -> Result<()> {
        if let Some((_, why)) = RUNNERS_OWN.iter().find(|(key, _)| *key == name) {
            return Err(node.error(why));
        }
        let command = Cli::command();
        let mut args = command.get_arguments().filter(|arg| cli::is_key(arg));
        let Some(arg) = args.find(|arg| arg.get_long() == Some(name)) else {
            return Err(node.error(cli::no_such_key(name, keys().iter().map(String::as_str))));
        };
        let mut flags = Vec::new();
        cli::push_flags(&mut flags, name, &node.plain()?, arg).map_err(|e| node.error(e))?;
        parse(&flags).map_err(|error| node.error(error))?;
        self.flags.append(&mut flags);
        self.places.push((name.to_owned(), node.place()));
        Ok(())
    }

    /// Checks the machine as a whole, with `command` to run in it. `node` is where it is described,
    /// `folder` what its files' names are relative to.
    pub(super) fn finish(&mut self, node: &Node, command: &[String], folder: &Path) -> Result<()> {
        let mut config = parse(&self.flags).map_err(|error| node.error(error))?;
        config.process.command = command.to_vec();
        config.validate().map_err(|error| {
            // It names the flag that it is about.
            let text = error.to_string();
            let flag = text.strip_prefix("--").and_then(|text| text.split([' ', ':']).next());
            let place = self.places.iter().rev().find(|(name, _)| Some(&**name) == flag);
            place.map_or_else(|| node.error(&text), |(_, place)| anyhow!("{place}: {text}"))
        })?;
        let config = config.machine.0;
        self.cpus = config.cpus.count();
        self.memory = config.mem.bytes();
        let disks = config.disk.iter();
        let path = |path: &Path| {
            let path = folder.join(path);
            path.canonicalize().unwrap_or(path)
        };
        let files = |disk: &DiskConfig| {
            let base = (path(&disk.path), disk.is_shared());
            let layer = match &disk.overlay {
                Some(Overlay::Kept(layer)) => Some((path(layer), false)),
                _ => None,
            };
            std::iter::once(base).chain(layer)
        };
        self.disks = disks.flat_map(files).collect();
        Ok(())
    }
}

fn parse(flags: &[OsString]) -> Result<Config> {
    let name = OsString::from("tinyvmm");
    let matches = Cli::command().try_get_matches_from(std::iter::once(&name).chain(flags));
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    Ok(cli.map_err(|error| cli::one_line(&error))?.config)
}
