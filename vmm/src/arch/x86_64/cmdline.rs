//! The kernel's command line.

use crate::config::{MachineConfig, Uart};
use crate::layout;

/// What the kernel gets unless the configuration says `cmdline-only`.
pub const DEFAULT: &str = "console=ttyS0 panic=-1 pci=noearly 8250.nr_uarts=1 cryptomgr.notests";

/// The command line of `config`: the defaults and what the user added to them.
pub fn of(config: &MachineConfig) -> String {
    let given = config.cmdline.as_deref().unwrap_or_default();
    if config.cmdline_only {
        return given.to_owned();
    }
    let mut line = match config.uart {
        Uart::Ports => DEFAULT.to_owned(),
        // The first four are the ports of a PC, whether they are there or not.
        Uart::Memory => DEFAULT.replace("ttyS0", "ttyS4").replace("nr_uarts=1", "nr_uarts=5"),
    };
    if config.mem.room().is_some() {
        // What is plugged is used at once, and can be unplugged again.
        line += " memhp_default_state=online_movable";
    }
    if let (Some(disk), None) = (config.disk.first(), &config.initrd) {
        line += if disk.readonly { " root=/dev/vda ro" } else { " root=/dev/vda rw" };
    }
    if !given.is_empty() {
        line = line + " " + given;
    }
    line
}

/// The kernel's part of `line`, and init's, which begins with ` -- `.
pub fn split(line: &str) -> (&str, &str) {
    line.split_at(line.find(" -- ").unwrap_or(line.len()))
}

/// Whether `line` turns ACPI off.
pub fn turns_acpi_off(line: &str) -> bool {
    split(line).0.split_ascii_whitespace().any(|word| word == "acpi=off")
}

/// `line` with the parameters by which a kernel without ACPI finds the virtio devices of `config`
/// (drivers/virtio/virtio_mmio.c). A kernel with ACPI would find each device twice, or warn of unknown parameters.
pub fn with_devices(config: &MachineConfig, line: String) -> String {
    if config.cmdline_only && !config.cmdline_devices {
        return line;
    }
    let device = |index| {
        let (size, base) = (layout::VIRTIO_MMIO_SIZE, layout::virtio_mmio(index));
        format!(" virtio_mmio.device={size}@{base:#x}:{}", layout::virtio_gsi(index))
    };
    let devices: String = (0..config.virtio_devices()).map(device).collect();
    let (kernel, init) = split(&line);
    format!("{kernel}{devices}{init}")
}

/// A guest that does without kvmclock measures its TSC against the PIT and asks the CMOS clock for the
/// time. To others that have ACPI they would only cost exits.
pub fn without_kvmclock(config: &MachineConfig) -> bool {
    of(config).split_ascii_whitespace().any(|word| ["no-kvmclock", "nopv"].contains(&word))
}
