//! ACPI tables: RSDP, XSDT, hardware-reduced FADT, MADT and DSDT (ACPI 6.5, chapters 5 and 18).

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use anyhow::{Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use super::apic;
use crate::config::{Cpus, Uart};
use crate::devices::power::{RESET_VALUE, SLEEP_TYPE_S5};
use crate::layout;
use crate::memory::GuestRam;

const OEM: [u8; 6] = *b"TINYVM";
const OEM_TABLE: [u8; 8] = *b"TINYVMM ";
const OEM_REVISION: u32 = 1;
/// FADT IAPC_BOOT_ARCH: no VGA to probe.
const NO_VGA: u16 = 1 << 2;
/// FADT IAPC_BOOT_ARCH: no CMOS clock. Without the flag Linux would poll its ports for long.
const NO_RTC: u16 = 1 << 5;

/// What the tables describe.
#[derive(Clone, Copy)]
pub struct Hardware {
    /// The processors.
    pub cpus: Cpus,
    /// How many virtio-mmio devices there are.
    pub virtio_devices: usize,
    /// Whether there is a CMOS clock.
    pub rtc: bool,
    /// Where the serial port is.
    pub uart: Uart,
}

/// Writes the tables of a machine with this `hardware`. The RSDP is at the start of [`layout::ACPI`].
pub fn write(ram: &GuestRam, hardware: Hardware) -> Result<()> {
    let mut next = layout::ACPI.start + 64; // past the RSDP
    let mut place = |bytes: &[u8]| -> Result<u64> {
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        ensure!(next <= layout::ACPI.end, "the ACPI tables are too large");
        ram.write_slice(bytes, GuestAddress(at))?;
        Ok(at)
    };
    let dsdt = place(dsdt(hardware).as_slice())?;
    let fadt = place(&bytes(&fadt(dsdt, hardware.rtc)))?;
    let madt = place(&bytes(&madt(hardware.cpus)))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let rsdp = Rsdp::new(OEM, place(&bytes(&xsdt))?);
    ram.write_slice(&bytes(&rsdp), GuestAddress(layout::ACPI.start))?;
    Ok(())
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64, rtc: bool) -> impl Aml {
    let register = |port| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port);
    let power = layout::POWER_PORTS.start;
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton) // the button is a control method device, not a fixed one
        .flag(Flags::SlpButton) // and there is no sleep button
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = if rtc { NO_VGA } else { NO_VGA | NO_RTC }.into();
    fadt.sleep_control_reg = register(power);
    fadt.sleep_status_reg = register(power + 1);
    fadt.reset_reg = register(power + 2);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

fn madt(cpus: Cpus) -> MADT {
    let mut madt =
        MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(layout::LAPIC));
    for index in 0..cpus.count() {
        // Ids stay below 255: `capabilities::check` saw to it.
        let (uid, id) = (index as u8, apic::id(cpus, index) as u8);
        madt.add_structure(ProcessorLocalApic::new(uid, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn dsdt(hardware: Hardware) -> Sdt {
    let mut aml = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5])).to_aml_bytes(&mut aml);
    add_port_devices(&mut aml, hardware);
    add_events(&mut aml);
    for index in 0..hardware.virtio_devices {
        add_virtio(&mut aml, index);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&aml);
    table
}

/// Adds device `name` with hardware id `hid`, unit `uid`, its `resources` and what else it has.
fn add_device(
    aml: &mut Vec<u8>,
    name: &str,
    (hid, uid): (&dyn Aml, u8),
    resources: Vec<&dyn Aml>,
    more: Vec<&dyn Aml>,
) {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &uid);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &resources];
    children.extend(more);
    let device = Device::new(name.into(), children);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// An edge-triggered, active-high interrupt of its own.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn ports(range: Range<u64>) -> IO {
    let first = range.start as u16;
    IO::new(first, first, 1, (range.end - range.start) as u8)
}

/// Serial port, clock and pvpanic.
fn add_port_devices(aml: &mut Vec<u8>, hardware: Hardware) {
    let irq = interrupt(layout::SERIAL_GSI);
    let base = layout::SERIAL_MMIO.start as u32;
    let (at_ports, in_memory) = (ports(layout::SERIAL_PORTS), Memory32Fixed::new(true, base, 8));
    let registers: &dyn Aml = match hardware.uart {
        Uart::Ports => &at_ports,
        Uart::Memory => &in_memory,
    };
    add_device(aml, "COM1", (&EISAName::new("PNP0501"), 0), vec![registers, &irq], vec![]);
    if hardware.rtc {
        let rtc = ports(layout::RTC_PORTS);
        add_device(aml, "RTC_", (&EISAName::new("PNP0B00"), 0), vec![&rtc], vec![]);
    }
    let pvpanic = ports(layout::PVPANIC_PORTS);
    add_device(aml, "PEVT", (&"QEMU0001", 0), vec![&pvpanic], vec![]);
}

/// The power button and the generation of the machine's identity. On hardware-reduced ACPI an event is an interrupt of
/// the generic event device (5.6.9), whose method finds out by its number whose event it was.
fn add_events(aml: &mut Vec<u8>) {
    add_device(aml, "PWRB", (&EISAName::new("PNP0C0C"), 0), vec![], vec![]);
    let (low, high) = (layout::GENERATION.start as u32, 0u32);
    let place = Name::new("ADDR".into(), &Package::new(vec![&low, &high]));
    let compatible = Name::new("_CID".into(), &"VM_Gen_Counter");
    let name = Name::new("_DDN".into(), &"VM_Gen_Counter");
    add_device(aml, "VGEN", (&"VMGENCTR", 0), vec![], vec![&compatible, &name, &place]);
    let [pressed, is_new] = [Path::new("\\_SB_.PWRB"), Path::new("\\_SB_.VGEN")];
    let [pressed, is_new] = [Notify::new(&pressed, &0x80u8), Notify::new(&is_new, &0x80u8)];
    let events = [(layout::EVENT_GSI as u8, pressed), (layout::GENERATION_GSI as u8, is_new)];
    let is = events.each_ref().map(|(gsi, _)| Equal::new(&Arg(0), gsi));
    let [one, other] = [0, 1].map(|event| If::new(&is[event], vec![&events[event].1]));
    let event = Method::new("_EVT".into(), 1, true, vec![&one, &other]);
    let [button, generation] = [layout::EVENT_GSI, layout::GENERATION_GSI].map(interrupt);
    add_device(aml, "GED_", (&"ACPI0013", 0), vec![&button, &generation], vec![&event]);
}

fn add_virtio(aml: &mut Vec<u8>, index: usize) {
    let base = layout::virtio_mmio(index) as u32;
    let window = Memory32Fixed::new(true, base, layout::VIRTIO_MMIO_SIZE as u32);
    let irq = interrupt(layout::virtio_gsi(index));
    let coherent = Name::new("_CCA".into(), &1u8);
    let (name, hid) = (format!("VR{index:02X}"), "LNRO0005");
    add_device(aml, &name, (&hid, index as u8), vec![&window, &irq], vec![&coherent]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryBackend;

    #[test]
    fn the_tables_of_the_largest_machine_fit_and_sum_to_zero() {
        let ram = crate::memory::of_ranges(&[(0, 1 << 20)]);
        assert_eq!(ram.num_regions(), 1);
        let cpus = "255".parse().unwrap();
        write(
            &ram,
            Hardware { cpus, virtio_devices: layout::MAX_VIRTIO, rtc: true, uart: Uart::Memory },
        )
        .unwrap();
        let bytes = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
        let table = |at: u64| {
            let len = u32::from_le_bytes(bytes(at + 4, 4).try_into().unwrap());
            bytes(at, len as usize)
        };
        let rsdp = bytes(layout::ACPI.start, 36);
        assert!(rsdp.starts_with(b"RSD PTR ") && sum(&rsdp) == 0 && sum(&rsdp[..20]) == 0);
        let xsdt = table(u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        assert!(xsdt.starts_with(b"XSDT") && sum(&xsdt) == 0);
        let entries: Vec<u64> =
            xsdt[36..].chunks(8).map(|e| u64::from_le_bytes(e.try_into().unwrap())).collect();
        let (fadt, madt) = (table(entries[0]), table(entries[1]));
        assert!(fadt.starts_with(b"FACP") && sum(&fadt) == 0);
        assert!(madt.starts_with(b"APIC") && sum(&madt) == 0);
        assert_eq!(madt.len(), 44 + 255 * 8 + 12);
        let dsdt = table(u64::from_le_bytes(fadt[140..148].try_into().unwrap()));
        assert!(dsdt.starts_with(b"DSDT") && sum(&dsdt) == 0);
    }
}
