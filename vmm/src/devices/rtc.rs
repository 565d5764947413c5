//! CMOS real-time clock, MC146818: the registers that Linux reads, with the host's time in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Divider on, slowest rate; no update is ever in progress.
const A_RUNNING: u8 = 0x26;
/// 24-hour mode; numbers are BCD.
const B_24_HOURS: u8 = 1 << 1;
/// The battery is good.
const D_VALID: u8 = 1 << 7;

/// Index port (offset 0) and data port (offset 1).
#[derive(Default)]
pub struct Rtc {
    index: u8,
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (1, [value]) = (offset, data) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            *value = register(self.index, now.as_secs());
        }
    }

    /// Setting the time is ignored: the host's clock is not the guest's to set.
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

/// Year, month and day of the Gregorian calendar for a number of days since 1970-01-01.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let (mut year, mut left) = (1970, days);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in lengths.iter().enumerate() {
        if left < *length {
            return (year, month as u64 + 1, left + 1);
        }
        left -= *length;
    }
    (year, 12, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_tell_the_date_in_bcd() {
        // 2024-02-29 23:59:58 UTC, a Thursday
        let read = |index| register(index, 1_709_251_198);
        assert_eq!([4, 2, 0].map(read), [0x23, 0x59, 0x58]);
        assert_eq!([CENTURY, 9, 8, 7, 6].map(read), [0x20, 0x24, 0x02, 0x29, 5]);
        assert_eq!(civil_date(1_709_251_198 / 86400 + 1), (2024, 3, 1));
        assert_eq!(civil_date(0), (1970, 1, 1));
    }
}
