//! What clients get to see of the description: the same as of Firecracker, after the same requests.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Setup;
use crate::api::bodies::{
    self, BalloonBody, BootSource, Drive, HugePages, MemoryHotplug, VsockBody,
};
use crate::names;
use tinyvmm::arch::cmdline;
use tinyvmm::layout;

impl Setup {
    /// GET /machine-config.
    pub(in crate::api) fn machine(&self) -> bodies::MachineConfiguration {
        bodies::MachineConfiguration {
            vcpu_count: self.config.machine.0.cpus.count(),
            mem_size_mib: self.config.machine.0.mem.bytes() / layout::MIB,
            smt: self.config.machine.0.cpus.threads > 1,
            track_dirty_pages: self.track_dirty_pages,
            huge_pages: if self.config.machine.0.hugepages {
                HugePages::TwoMib
            } else {
                HugePages::None
            },
            cpu_template: None,
        }
    }

    /// GET /balloon.
    pub(in crate::api) fn balloon(&self) -> Result<BalloonBody> {
        let target =
            self.config.machine.0.balloon_target().context("the machine has no balloon")?;
        let features = self.config.machine.0.balloon_features;
        Ok(BalloonBody {
            amount_mib: target / layout::MIB,
            deflate_on_oom: features.deflate_on_oom,
            stats_polling_interval_s: self.interval,
            free_page_hinting: features.hinting,
            free_page_reporting: features.reporting,
        })
    }

    /// The memory that can be plugged: GET /hotplug/memory, and a part of GET /vm/config.
    pub(in crate::api) fn memory(&self) -> Option<MemoryHotplug> {
        let mem = self.config.machine.0.mem;
        let block = mem.block() / layout::MIB;
        mem.room().map(|_| MemoryHotplug {
            total_size_mib: mem.more.bytes() / layout::MIB,
            block_size_mib: Some(block),
            slot_size_mib: Some(self.slot.unwrap_or(block)),
        })
    }

    /// GET /vm/config.
    pub(in crate::api) fn all(&self) -> Result<Value> {
        let machine = &self.config.machine.0;
        let (roots, others): (Vec<Drive>, Vec<Drive>) =
            self.drives.iter().cloned().partition(|drive| drive.is_root_device);
        let of_flags = self.ids_of_flags().zip(&machine.disk);
        let of_flags = of_flags.map(|(id, disk)| Drive::of_flags(id, disk));
        let drives: Vec<Drive> = roots.into_iter().chain(of_flags).chain(others).collect();
        let of_flags = machine.kernel.as_ref().map(|kernel| BootSource {
            kernel_image_path: kernel.clone(),
            initrd_path: machine.initrd.clone(),
            boot_args: Some(cmdline::of(machine)),
        });
        let boot_source = self.boot_source.clone().or(of_flags).unwrap_or_default();
        // What nobody has asked for is not shown.
        let balloon = self.balloon().ok().filter(|_| self.has_balloon || machine.kernel.is_some());
        let place = names::vsock(&self.config.process);
        let vsock = machine.vsock.as_ref().map(|vsock| VsockBody::of(vsock, place));
        Ok(json!({
            "balloon": balloon,
            "boot-source": boot_source,
            "cpu-config": null,
            "drives": drives,
            "entropy": self.entropy,
            "logger": null,
            "machine-config": self.machine(),
            "memory-hotplug": self.memory(),
            "metrics": null,
            "mmds-config": null,
            "network-interfaces": self.interfaces(),
            "pmem": [],
            "vsock": vsock,
        }))
    }
}
