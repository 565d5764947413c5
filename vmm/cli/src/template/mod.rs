//! `--template`: a machine with a command boots once, up to where its agent waits for the command, and is saved then.
//! Later runs go on from there. There is one way to build a machine and one to restore it; here is only who does what when.
//!
//! A process of its own boots the machine, which knows neither the command nor anything else of this run's.

mod key;
mod maker;
mod store;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tinyvmm::config::{MachineConfig, NetEnd, Overlay, VsockConfig};
use tinyvmm::layout;

pub use self::store::Store;
use crate::config::{Config, TemplateRole};
use crate::snapshot::Restored;
use crate::{command, net};

/// Makes `config` that of a machine which goes on from its template, which is made if there is none. `None`: the machine
/// has to boot, and a line says why. An error: such a machine has no templates.
pub fn adopt(config: &mut Config) -> Result<Option<Restored>> {
    refuse(config)?;
    let began = Instant::now();
    let adopted = find_or_make(config).unwrap_or_else(|error| {
        log::warn!("--template: {error:#}: the machine boots without one");
        None
    });
    if let Some(made) = adopted.as_ref().map_or(Some(began), |(_, made)| *made) {
        // As if the machine had booted here.
        let timeout = &mut config.process.timeout;
        *timeout = timeout.map(|timeout| timeout.saturating_sub(made.elapsed()));
    }
    Ok(adopted.map(|(restored, _)| restored))
}

/// Forgets the template of `config`, whose machine could not start: the next one boots.
pub fn blame(config: &Config) {
    let flags = &config.process.snapshot;
    let path = flags.restore.as_deref().filter(|_| flags.role == TemplateRole::Uses);
    if let (Some(path), Ok(store)) = (path, Store::open()) {
        store.remove(&path.file_name().unwrap_or_default().to_string_lossy());
    }
}

/// Refuses what a template cannot have.
fn refuse(config: &Config) -> Result<()> {
    let (machine, process) = (&config.machine.0, &config.process);
    let flags = &process.snapshot;
    ensure!(command::HAS_AGENT, "--template: this tinyvmm is built without the agent");
    ensure!(!process.command.is_empty(), "--template: it is for a command, say -- COMMAND");
    for (flag, is_there) in [
        ("restore", flags.restore.is_some()),
        ("hostname", flags.hostname.is_some()),
        ("jail", process.jail.is_some()),
        ("config-file", process.config_file.is_some()),
    ] {
        ensure!(!is_there, "--template and --{flag}: leave one out");
    }
    ensure!(
        process.root_dir.is_none() && !machine.is_served_by_others(),
        "--template: what serves --root-dir, --share and --vhost-user has a state of its own that cannot be saved, leave \
         them out"
    );
    for card in &machine.net {
        ensure!(
            matches!(card.end, NetEnd::User(_)),
            "--template: --net {card}: a template has cards in the user's network only, say --net user"
        );
    }
    for disk in &machine.disk {
        let path = disk.path.display();
        ensure!(
            disk.readonly || disk.overlay == Some(Overlay::Temporary),
            "--template: disk {path}: what a run writes would not be there in the next: say {path},readonly, or \
             {path},overlay to lose it"
        );
    }
    ensure!(
        machine.vsock.is_some() || machine.virtio_devices() < layout::MAX_VIRTIO,
        "--template: there is no room for a vsock device: leave another device out"
    );
    config.validate()
}

/// The machine of `config`'s template, and since when that was made if it is new.
fn find_or_make(config: &mut Config) -> Result<Option<(Restored, Option<Instant>)>> {
    let began = Instant::now();
    let made = maker::config_of(config)?;
    let Some(key) = key::of(&made)? else { return Ok(None) };
    let store = Store::open()?;
    if let Some(restored) = restore(config, &store, &key) {
        return Ok(Some((restored, None)));
    }
    let Some(new) = store.begin(&key)? else {
        log::info!("--template: another process makes it: the machine boots without");
        return Ok(None);
    };
    maker::make(&made, &new, config.process.timeout)?;
    new.keep(&made.machine.0)?;
    let restored = restore(config, &store, &key).context("it is gone already")?;
    Ok(Some((restored, Some(began))))
}

/// Goes on from the template `key`, if there is one. One that is damaged is removed.
fn restore(config: &mut Config, store: &Store, key: &str) -> Option<Restored> {
    let (path, lock) = match store.find(key) {
        Ok(found) => found?,
        Err(error) => {
            log::warn!("--template: it is made anew: {error:#}");
            store.remove(key);
            return None;
        }
    };
    let mut next = config.clone();
    let given = std::mem::take(&mut next.machine.0);
    let vsock = given.vsock.and_then(|vsock| vsock.path).map(|path| VsockConfig::new(Some(path)));
    // What is of this run: the rest is the template's.
    next.machine.0 = MachineConfig { net: given.net, vsock, ..MachineConfig::default() };
    (next.process.snapshot.restore, next.process.snapshot.role) = (Some(path), TemplateRole::Uses);
    match Restored::adopt(&mut next) {
        Ok(Some(restored)) => {
            // The jail closes what was open before, once it has opened all files of the machine.
            std::mem::forget(lock);
            next.machine.0.uuid = given.uuid;
            *config = next;
            Some(restored)
        }
        adopted => {
            let error = adopted.err().map(|error| format!("{error:#}")).unwrap_or_default();
            log::warn!("--template: it is made anew: {error}");
            drop(lock);
            store.remove(key);
            None
        }
    }
}

/// The machine of `config` as a template has it: without what is of one run.
fn plain(config: &mut MachineConfig) -> Result<()> {
    net::settle(config, None)?;
    for card in &mut config.net {
        card.mac = None;
        if let NetEnd::User(user) = &mut card.end {
            (user.publish, user.host) = (Vec::new(), false);
        }
    }
    for path in config.disk.iter_mut().map(|disk| &mut disk.path) {
        *path = std::path::absolute(&*path)?;
    }
    config.vsock.get_or_insert(VsockConfig::new(None)).path = None;
    config.uuid = None;
    Ok(())
}
