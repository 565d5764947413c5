//! A bus: the devices by their addresses. Ports and MMIO use the same type.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};

use crate::sync::lock;

/// The accesses of a vCPU to a device.
///
/// `read` and `write` are called on a vCPU's thread, one at a time for each device, and may not block for long.
/// `offset` is from the start of the device's range, and an access never leaves the range; `data` has 1, 2, 4 or 8
/// bytes.
pub trait BusDevice: Send {
    /// Fills `data` with the value that the guest reads. `data` is all ones before the call.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes the value that the guest writes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that several buses or threads share.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Devices by address. Does not change once the machine is built.
#[derive(Default)]
pub struct Bus {
    /// Sorted by address, without overlaps.
    devices: Vec<(Range<u64>, SharedDevice)>,
}

impl Bus {
    /// Puts `device` at `range`. Fails if another device is at a part of it.
    pub fn insert(&mut self, range: Range<u64>, device: SharedDevice) -> Result<()> {
        let index = self.devices.partition_point(|(other, _)| other.start < range.start);
        let overlaps = |other: Option<&(Range<u64>, SharedDevice)>| {
            other.is_some_and(|(other, _)| other.start < range.end && range.start < other.end)
        };
        ensure!(
            !overlaps(index.checked_sub(1).and_then(|before| self.devices.get(before)))
                && !overlaps(self.devices.get(index)),
            "two devices at {range:#x?}"
        );
        self.devices.insert(index, (range, device));
        Ok(())
    }

    /// Reads from the device at `address`. Without one, `data` becomes all ones, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).read(offset, data);
        }
    }

    /// Writes to the device at `address`. Without one, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &SharedDevice)> {
        let after = self.devices.partition_point(|(range, _)| range.start <= address);
        let (range, device) = self.devices.get(after.checked_sub(1)?)?;
        let fits = address.checked_add(len as u64)? <= range.end;
        fits.then(|| (address - range.start, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    #[test]
    fn accesses_reach_the_device_whose_range_holds_all_of_them() {
        let mut bus = Bus::default();
        bus.insert(0x20..0x28, Arc::new(Mutex::new(Echo(1)))).unwrap();
        bus.insert(0x10..0x14, Arc::new(Mutex::new(Echo(0)))).unwrap();
        bus.insert(0x13..0x15, Arc::new(Mutex::new(Echo(0)))).unwrap_err();
        bus.insert(0x1f..0x21, Arc::new(Mutex::new(Echo(0)))).unwrap_err();
        let read = |address, len| {
            let mut data = vec![0; len];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x22, 2), [3, 3]);
        assert_eq!(read(0x12, 4), [0xff; 4], "leaves the range");
        assert_eq!(read(0x0f, 1), [0xff], "nobody there");
        assert_eq!(read(u64::MAX, 8), [0xff; 8]);
        bus.write(0x10, &[9]);
        assert_eq!(read(0x10, 1), [9]);
    }
}
