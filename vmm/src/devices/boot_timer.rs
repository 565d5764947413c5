//! Firecracker's boot timer: a byte in memory. When a guest writes 123 there, it has booted, and the time that this
//! took is logged (Firecracker's src/vmm/src/devices/pseudo/boot_timer.rs).

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::bus::BusDevice;

/// The value that reports a boot.
const BOOTED: u8 = 123;

/// The device.
pub struct BootTimer {
    start: Instant,
    /// Processor time of the process at `start`.
    cpu_start: Duration,
    /// Already logged: a guest must not fill the host's logs.
    logged: bool,
}

impl BootTimer {
    /// A timer that starts now; nothing is logged of a machine that `has_booted` before it was saved.
    pub fn start(has_booted: bool) -> Self {
        Self { start: Instant::now(), cpu_start: cpu_time(), logged: has_booted }
    }
}

fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) != (0, &[BOOTED]) || std::mem::replace(&mut self.logged, true) {
            return;
        }
        let us = self.start.elapsed().as_micros();
        let cpu_us = cpu_time().saturating_sub(self.cpu_start).as_micros();
        // Firecracker's format, to the space, which programs parse.
        log::info!(
            "Guest-boot-time = {us:>6} us {} ms, {cpu_us:>6} CPU us {} CPU ms",
            us / 1000,
            cpu_us / 1000
        );
    }
}
