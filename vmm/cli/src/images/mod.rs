//! `--image`: a guest whose root is a container's image, which is made a disk once; folders that become disks; and images of
//! whole systems.

mod cloud;
mod shares;

use std::fs::File;
use std::path::{Path, PathBuf};

use agent_wire::Exec;
use anyhow::{Context, Result, ensure};
use image::{Image, Reference, Run};
use tinyvmm::config::DiskConfig;

use crate::config::{Config, ProcessConfig};
use crate::kernel_cache::Cache;
use crate::process;

/// The disk's serial number.
const ID: &str = "image";

/// Makes the disks that `config` needs.
pub fn settle(config: &mut Config) -> Result<()> {
    cloud::settle(config)?;
    settle_image(config)?;
    shares::settle(config)
}

/// The path of a file that `write` fills, in the cache of disks. Its name is what it has, so that the same contents are there
/// once. `from` is what it was made of.
fn keep(
    from: &Path,
    is_whole: impl Fn(&File) -> bool,
    write: impl FnOnce(&File) -> Result<()>,
) -> Result<PathBuf> {
    let cache = Cache::open_disks().context("no place for its disk: set XDG_CACHE_HOME")?;
    let unfinished = cache.begin()?;
    write(unfinished.file())?;
    let key = cache.insert_by_contents(unfinished)?;
    cache.note_path(&key, from);
    cache.find_disk(&key, is_whole).context("its disk is gone again")
}

/// Checks what goes with `--image`, makes its disk the machine's first, and its command the machine's.
fn settle_image(config: &mut Config) -> Result<()> {
    let (machine, process) = (&mut config.machine.0, &mut config.process);
    let Some(reference) = process.image.clone() else { return Ok(()) };
    ensure!(machine.initrd.is_none(), "--image and --initrd: leave one out");
    ensure!(process.config_file.is_none(), "--image and --config-file: leave one out");
    ensure!(process.snapshot.restore.is_none(), "--image and --restore: leave one out");
    ensure!(!process.snapshot.template, "--image and --template: leave one out");
    ensure!(!machine.cmdline_only, "--cmdline-only leaves no room for --image: leave one out");
    ensure!(
        machine.kernel.is_some(),
        "--image: an image has no kernel: say --kernel FILE, as guest-images/build kernel-small makes one"
    );
    let given = machine.cmdline.as_deref().unwrap_or_default();
    let has_init = given.split_ascii_whitespace().any(|word| word.starts_with("init="));
    ensure!(
        !has_init || process.command.is_empty(),
        "--cmdline init= and -- COMMAND: leave one out"
    );
    let named = || format!("--image {reference}");
    let image = Image::open(&reference).with_context(named)?;
    let exec = exec(&image.run, &process.command);
    if !has_init {
        let word = exec.args.first().filter(|word| !word.is_empty());
        word.context("it names no command: say one, as in -- sh").with_context(named)?;
        process.command = texts(&exec.args);
    }
    let payload = exec.encode();
    let long = "its command and environment are longer than 128 KiB";
    process.root_program = Some(payload.context(long).with_context(named)?);
    let path = disk(&image, &reference, process).with_context(named)?;
    let disk = DiskConfig { readonly: true, id: Some(ID.into()), ..DiskConfig::new(path) };
    machine.disk.insert(0, disk);
    DiskConfig::ensure_named_apart(&machine.disk)
}

/// What is run: the image's entry point, and `command` or the image's own.
fn exec(run: &Run, command: &[String]) -> Exec {
    let own = run.cmd.as_deref().unwrap_or_default();
    let command = if command.is_empty() { own } else { command };
    let words = run.entrypoint.iter().flatten().chain(command);
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Exec {
        args: words.map(|word| word.clone().into()).collect(),
        env: run.env.iter().flatten().map(|text| text.clone().into()).collect(),
        folder: Some(text(&run.working_dir).unwrap_or_else(|| "/".into()).into()),
        user: text(&run.user).map(Into::into),
        terminal: None,
    }
}

fn texts(args: &[Vec<u8>]) -> Vec<String> {
    args.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The path of the image's disk, which is made unless it is there.
fn disk(image: &Image, reference: &Reference, process: &ProcessConfig) -> Result<PathBuf> {
    let cache = Cache::open_disks().context("no place for its disk: set XDG_CACHE_HOME")?;
    let find = || cache.find_disk(&image.key, image::is_whole);
    let path = find().map_or_else(
        || {
            let _lock = cache.lock();
            // Another process may have made it first.
            if let Some(path) = find() {
                return Ok(path);
            }
            log::info!("--image {reference}: making its disk");
            let unfinished = cache.begin()?;
            image.write(unfinished.file(), process.image_limit.bytes())?;
            process::trim_heap();
            cache.insert_disk(unfinished, &image.key)?;
            find().context("its disk is gone again")
        },
        Ok,
    )?;
    cache.note_path(&image.key, &reference.path);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_takes_the_place_of_the_images_own_behind_its_entry_point() {
        let words = |text: &str| Some(text.split(' ').map(String::from).collect::<Vec<_>>());
        let of = |entrypoint, cmd, given: &[&str]| {
            let run = Run { entrypoint, cmd, ..Run::default() };
            let given: Vec<_> = given.iter().map(|word| String::from(*word)).collect();
            texts(&exec(&run, &given).args).join(" ")
        };
        assert_eq!(of(words("/e -x"), words("c d"), &[]), "/e -x c d");
        assert_eq!(of(words("/e -x"), words("c d"), &["f"]), "/e -x f");
        assert_eq!(of(None, words("c d"), &[]), "c d");
        assert_eq!(of(None, words("c d"), &["f", "g"]), "f g");
        assert_eq!(of(None, None, &[]), "");
        let empty = Run { working_dir: Some("".into()), user: Some("".into()), ..Run::default() };
        let found = exec(&empty, &[]);
        assert_eq!((found.folder, found.user), (Some(b"/".to_vec()), None));
    }
}
