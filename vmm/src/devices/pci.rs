//! Configuration mechanism #1 of a PCI bus with nothing on it (PCI Local Bus 3.0, 3.2.2.3.2).
//!
//! Its address register says that there is PCI, without which Linux complains ("PCI: Fatal: No config space access
//! function found"). The data register is nobody's: it reads as all ones, as of a device that is not there.

use crate::bus::BusDevice;

/// The bits of the address register that are not reserved.
const ADDRESS: u32 = 0x80ff_fffc;

/// The address register.
#[derive(Default)]
pub struct ConfigAddress(pub u32);

impl BusDevice for ConfigAddress {
    /// Smaller accesses are not to this register.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, 4) = (offset, data.len()) {
            data.copy_from_slice(&self.0.to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(address)) = (offset, data.try_into()) {
            self.0 = u32::from_le_bytes(address) & ADDRESS;
        }
    }
}
