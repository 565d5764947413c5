//! CMOS real-time clock, MC146818: the registers that Linux reads, with the host's time in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Divider on, slowest rate; no update is in progress.
const A_RUNNING: u8 = 0x26;
/// 24-hour mode; numbers are BCD.
const B_24_HOURS: u8 = 1 << 1;
/// The battery is good.
const D_VALID: u8 = 1 << 7;

/// Index port (offset 0) and data port (offset 1).
#[derive(Default)]
pub struct Rtc {
    /// The register that the guest has selected.
    pub index: u8,
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (1, [value]) = (offset, data) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            *value = register(self.index, now.as_secs());
        }
    }

    /// Writes to the time are ignored: the guest cannot set the host's clock.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, [index]) = (offset, data) {
            self.index = index & 0x7f; // bit 7 masks NMIs
        }
    }
}

fn register(index: u8, seconds: u64) -> u8 {
    let (days, of_day) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil_date(days);
    let value = match index {
        0 => of_day % 60,
        2 => of_day / 60 % 60,
        4 => of_day / 3600,
        6 => (days + 4) % 7 + 1, // 1970-01-01 was a Thursday; Sunday is 1
        7 => day,
        8 => month,
        9 => year % 100,
        STATUS_A => return A_RUNNING,
        STATUS_B => return B_24_HOURS,
        STATUS_D => return D_VALID,
        CENTURY => year / 100,
        _ => 0,
    };
    ((value / 10 * 16) + value % 10) as u8
}

/// Year, month and day of the Gregorian calendar for a number of days since 1970-01-01: Hinnant's civil_from_days. Its
/// years start in March, so that the leap day is the last of a year, and its eras of 400 years in the year 0.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468; // since 0000-03-01
    let of_era = days % ERA;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153; // 0 is March
    let day = of_year - (153 * month + 2) / 5 + 1;
    (days / ERA * 400 + year + month / 10, (month + 2) % 12 + 1, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_date_in_bcd() {
        // 2024-02-29 23:59:58 UTC, a Thursday
        let read = |index| register(index, 1_709_251_198);
        assert_eq!([4, 2, 0].map(read), [0x23, 0x59, 0x58]);
        assert_eq!([CENTURY, 9, 8, 7, 6].map(read), [0x20, 0x24, 0x02, 0x29, 5]);
        assert_eq!(civil_date(1_709_251_198 / 86400 + 1), (2024, 3, 1));
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(20_819), (2027, 1, 1));
        assert_eq!(civil_date(47_540), (2100, 2, 28));
        assert_eq!(civil_date(47_541), (2100, 3, 1), "no leap year");
    }
}
