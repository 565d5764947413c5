//! Fuzzing without KVM, with libFuzzer: one program, whose target is named by `FUZZ_TARGET`. scripts/fuzz
//! builds and runs it.
//!
//! With `FUZZ_SEEDS=DIR` and `-runs=0` it only writes the inputs to start from, DIR/TARGET/NUMBER.
#![no_main]

mod agent;
mod backend;
mod disks;
mod files;
mod input;
mod kernels;
#[path = "../../vmm/unpack/src/pack.rs"]
mod pack;
mod ports;
mod saved;
mod texts;
mod virtio;

use std::path::Path;
use std::sync::LazyLock;
use std::{env, fs};

use tinyvmm::virtio::contract::DEVICE_CASES;

/// A piece of code that takes input from a guest or a file.
struct Target {
    name: String,
    run: Box<dyn Fn(&[u8]) + Send + Sync>,
    /// Valid inputs to start from.
    seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    fn new(
        name: &str,
        run: impl Fn(&[u8]) + Send + Sync + 'static,
        seeds: fn() -> Vec<Vec<u8>>,
    ) -> Self {
        Self { name: name.replace(' ', "-"), run: Box::new(run), seeds }
    }
}

fn targets() -> Vec<Target> {
    let mut targets = vec![
        Target::new("bzimage", kernels::boot, kernels::bzimages),
        Target::new("elf", kernels::boot, kernels::elfs),
        Target::new("unpack", kernels::unpack, kernels::payloads),
        Target::new("config", texts::config, texts::configs),
        Target::new("spec", texts::spec, texts::specs),
        Target::new("api", texts::api, texts::requests),
        Target::new("setup", texts::setup, texts::conversations),
        Target::new("agent", agent::frames, agent::conversations),
        Target::new("archive", agent::archive, agent::archives),
        Target::new("vhost-user", backend::messages, backend::conversations),
        Target::new("disk-kernel", disks::kernel, disks::changes),
        Target::new("snapshot", saved::snapshot, saved::snapshots),
        Target::new("saved-device", saved::device, saved::devices),
        Target::new("serial", ports::serial, ports::seeds),
        Target::new("rtc", ports::rtc, ports::seeds),
        Target::new("mmio", virtio::mmio, virtio::mmio_seeds),
    ];
    // Each virtio device is a target.
    targets.extend(
        DEVICE_CASES
            .iter()
            .map(|case| Target::new(case.name, |data| virtio::device(case, data), virtio::seeds)),
    );
    targets
}

/// Writes the seeds of every target and prints the targets' names.
fn write_seeds(folder: &Path) {
    for target in targets() {
        println!("{}", target.name);
        let folder = folder.join(&target.name);
        fs::create_dir_all(&folder).unwrap();
        for (index, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(index.to_string()), seed).unwrap();
        }
    }
}

/// The target that `FUZZ_TARGET` names.
static TARGET: LazyLock<Target> = LazyLock::new(|| {
    if let Some(folder) = env::var_os("FUZZ_SEEDS") {
        write_seeds(Path::new(&folder));
        return Target::new("nothing", |_| {}, Vec::new);
    }
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    let found = targets().into_iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("there is no target '{name}'"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
