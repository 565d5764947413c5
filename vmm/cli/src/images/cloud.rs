//! Images of whole systems: the kernel that one has itself, and the disk that tells its cloud-init what it is to be.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::{Bootable, sum};
use serde_json::json;
use tinyvmm::config::{DiskConfig, MachineConfig};

use super::keep;
use crate::config::{CloudFlags, Config};

/// In place of a kernel: that of the first disk.
const AUTO: &str = "auto";
/// The serial number of cloud-init's disk; it is found by its file system's label.
const ID: &str = "cidata";
/// Most bytes of a file for cloud-init.
const MOST: u64 = 16 << 20;
/// A machine without a name.
const NAME: &str = "tinyvmm";
/// Digits of the hash that tells one instance from another.
const DIGITS: usize = 8;

/// Finds the kernel of the first disk if it is asked for, and adds cloud-init's disk.
pub fn settle(config: &mut Config) -> Result<()> {
    let machine = &mut config.machine.0;
    if machine.kernel.as_deref() == Some(Path::new(AUTO)) {
        ensure!(
            config.process.image.is_none(),
            "--image and --kernel auto: an image has no kernel, name one"
        );
        take_kernel(machine)?;
    }
    let flags = &config.process.cloud;
    if flags.cloud_init.is_none() && flags.ssh_key.is_empty() {
        return Ok(());
    }
    ensure!(
        machine.kernel.is_some(),
        "--cloud-init and --ssh-key: they need --kernel FILE, or --kernel auto"
    );
    let files = seed(flags, config.process.name.as_deref().unwrap_or(NAME))?;
    let write = |disk: &File| Ok(image::write_seed(disk, &files)?);
    let path = keep(Path::new(ID), |_| true, write).context("--cloud-init")?;
    machine.disk.push(DiskConfig { readonly: true, id: Some(ID.into()), ..DiskConfig::new(path) });
    DiskConfig::ensure_named_apart(&machine.disk)
}

/// Puts the kernel of the first disk, and the initrd and root that go with it, where they are not given.
fn take_kernel(machine: &mut MachineConfig) -> Result<()> {
    let disk =
        machine.disk.first().context("--kernel auto: it is that of the first --disk: name one")?;
    let path = disk.path.clone();
    let named = || format!("--kernel auto: {}", path.display());
    let found = File::open(&path)
        .context("cannot open it")
        .and_then(|disk| Bootable::find(&disk))
        .with_context(named)?;
    machine.kernel =
        Some(keep(&path, |_| true, |out| found.write_kernel(out)).with_context(named)?);
    if machine.initrd.is_none() && found.has_initrd() {
        machine.initrd =
            Some(keep(&path, |_| true, |out| found.write_initrd(out)).with_context(named)?);
    }
    let given = machine.cmdline.clone().unwrap_or_default();
    if machine.cmdline_only || given.split_ascii_whitespace().any(|word| word.starts_with("root="))
    {
        return Ok(());
    }
    let root = found
        .root
        .context("it has no ext4 file system with a root folder: say --cmdline root=")
        .with_context(named)?;
    let number = if root == 0 { String::new() } else { root.to_string() };
    machine.cmdline = Some(format!("root=/dev/vda{number} {given}").trim_end().into());
    Ok(())
}

/// The files of cloud-init's disk.
fn seed(flags: &CloudFlags, name: &str) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let given = flags.cloud_init.as_ref();
    let user_data = match given {
        Some(given) => read(&given.user_data)?,
        None => b"#cloud-config\n{}\n".to_vec(),
    };
    let keys = flags.ssh_key.iter().map(|path| keys(path)).collect::<Result<Vec<_>>>()?.concat();
    let meta_data = match given.and_then(|given| given.meta_data.as_deref()) {
        Some(_) if !keys.is_empty() => {
            bail!("--ssh-key and meta-data=: put the keys under public-keys there")
        }
        Some(path) => read(path)?,
        None => {
            let told = json!([String::from_utf8_lossy(&user_data), keys]).to_string();
            let instance = format!("{name}-{}", &sum(told.as_bytes())[..DIGITS]);
            // YAML has JSON within it.
            json!({"instance-id": instance, "local-hostname": name, "public-keys": keys})
                .to_string()
                .into()
        }
    };
    let mut files = vec![("meta-data", meta_data), ("user-data", user_data)];
    if let Some(path) = given.and_then(|given| given.network_config.as_deref()) {
        files.push(("network-config", read(path)?));
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let named = || path.display().to_string();
    let found = fs::metadata(path).with_context(named)?;
    ensure!(
        found.is_file() && found.len() <= MOST,
        "{}: say a file of {} MiB at most",
        named(),
        MOST >> 20
    );
    fs::read(path).with_context(named)
}

/// The public keys in a file, one a line.
fn keys(path: &Path) -> Result<Vec<String>> {
    let text = String::from_utf8(read(path)?).ok();
    let named = || format!("--ssh-key {}", path.display());
    let text = text.with_context(|| format!("{}: it is no public key", named()))?;
    ensure!(
        !text.contains("PRIVATE KEY"),
        "{}: a private key stays here: name the .pub file beside it",
        named()
    );
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<_> = lines.map(String::from).collect();
    let is_key = |key: &String| ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| key.starts_with(kind));
    ensure!(!keys.is_empty() && keys.iter().all(is_key), "{}: it is no public key", named());
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    /// What is told about a machine of this name, with this file of keys.
    fn told(name: &str, key: &str) -> Result<serde_json::Value> {
        let folder = TempDir::new()?;
        let path = folder.as_path().join("key.pub");
        fs::write(&path, key)?;
        let flags = CloudFlags { ssh_key: vec![path], ..CloudFlags::default() };
        Ok(serde_json::from_slice(&seed(&flags, name)?[0].1)?)
    }

    #[test]
    fn an_instance_is_another_one_with_another_name_or_key() {
        let [one, same, named, keyed] = [
            ("a", "ssh-ed25519 A"),
            ("a", "ssh-ed25519 A"),
            ("b", "ssh-ed25519 A"),
            ("a", "ssh-rsa B"),
        ]
        .map(|(name, key)| told(name, key).unwrap());
        assert_eq!(one["local-hostname"], "a");
        assert_eq!(one["public-keys"][0], "ssh-ed25519 A");
        assert_eq!(one, same);
        assert!(
            one["instance-id"] != named["instance-id"]
                && one["instance-id"] != keyed["instance-id"]
        );
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n";
        for (key, why) in
            [(private, "name the .pub file"), ("hello", "no public key"), ("", "no public key")]
        {
            let error = format!("{:#}", told("a", key).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
