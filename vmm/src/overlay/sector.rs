//! A sector of a layer's metadata: 508 bytes and their CRC-32. Disks write a sector completely or not at all.

/// Bytes of a sector.
pub const SIZE: usize = 512;
/// Bytes in it before the CRC.
pub const ROOM: usize = SIZE - 4;

/// Writes the CRC of the rest to the end of `sector`.
pub fn seal(sector: &mut [u8]) {
    let crc = crc32fast::hash(&sector[..ROOM]);
    sector[ROOM..].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the CRC of `sector` is correct.
pub fn is_sound(sector: &[u8]) -> bool {
    sector[ROOM..] == crc32fast::hash(&sector[..ROOM]).to_le_bytes()
}
