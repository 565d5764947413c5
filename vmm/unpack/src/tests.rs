//! Round trips, and damaged payloads.

use std::io::Cursor;

use super::pack::FORMATS;
use super::*;

/// Compressible data; longer than a block of LZ4.
fn contents(len: u32) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(at >> 7) >> 11) as u8 & 0x1f).collect()
}

/// Unpacks `payload`, followed by other parts of the file.
fn unpacked(payload: &[u8], size: u64) -> Result<Vec<u8>> {
    let file = [payload, b"\x5d\0\0 and more"].concat();
    let mut out = Vec::new();
    unpack(&mut Cursor::new(file), payload.len() as u64, &mut out, size).map(|()| out)
}

#[test]
fn every_format_unpacks_to_what_was_packed() {
    let data = contents((8 << 20) + 5000);
    for (index, pack) in FORMATS.iter().enumerate() {
        let found = unpacked(&pack(&data), data.len() as u64).unwrap();
        assert!(found == data, "format {index}");
    }
}

#[test]
fn a_payload_of_another_size_than_it_says_is_refused() {
    let data = &contents(100_000);
    for pack in FORMATS {
        for size in [1, 99_999, 100_001, u64::from(u32::MAX)] {
            assert!(unpacked(&pack(data), size).is_err(), "{size}");
        }
    }
}

#[test]
fn a_truncated_payload_is_refused() {
    let data = &contents(100_000);
    for (index, pack) in FORMATS.iter().enumerate() {
        let whole = pack(data);
        for len in (0..20).chain((20..whole.len() - 40).step_by(whole.len() / 20)) {
            assert!(unpacked(&whole[..len], 100_000).is_err(), "format {index}, {len} bytes");
        }
    }
}

/// Reads `packed` with [`Unpacker`], a few bytes at a time.
fn streamed(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut source = Cursor::new(packed);
    let mut unpacker = Unpacker::new(&mut source)?;
    let (mut all, mut piece) = (Vec::new(), [0; 777]);
    loop {
        match unpacker.read(&mut piece)? {
            0 => return Ok(all),
            len => all.extend(&piece[..len]),
        }
    }
}

#[test]
fn a_stream_has_any_number_of_packed_parts() {
    let data = &contents(100_000);
    let [gzip, .., zstd] = FORMATS.map(|pack| pack(data));
    let zstd = &zstd[..zstd.len() - 4]; // without the size
    let skipped = [&(0x184d_2a57u32.to_le_bytes())[..], &5u32.to_le_bytes(), b"index"].concat();
    let twice = [&data[..], data].concat();
    assert!(streamed(&gzip).unwrap() == *data);
    assert!(streamed(zstd).unwrap() == *data);
    assert!(streamed(&[&gzip[..], &gzip].concat()).unwrap() == twice);
    assert!(streamed(&[&skipped, zstd, &skipped, zstd, &skipped].concat()).unwrap() == twice);
    // What is not packed is as it is.
    for plain in [&b""[..], b"abc", &data[..5000]] {
        assert!(streamed(plain).unwrap() == plain);
    }
    for damaged in
        [&[&gzip[..], b"more"].concat(), &gzip[..gzip.len() - 9], &zstd[..zstd.len() - 9]]
    {
        assert!(streamed(damaged).is_err());
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Formats without a checksum may not detect damage, but the output is never longer than `size`, and nothing
    /// panics.
    #[test]
    fn damage_is_survived(format in 0usize..6, at: proptest::sample::Index, byte: u8) {
        let data = &contents(5000);
        let mut payload = FORMATS[format](data);
        let at = at.index(payload.len());
        payload[at] = byte;
        if let Ok(found) = unpacked(&payload, 5000) {
            assert_eq!(found.len(), 5000);
        }
    }

    #[test]
    fn noise_is_survived(format in 0usize..6, noise: Vec<u8>) {
        let magic: [&[u8]; 6] =
            [b"\x1f\x8b\x08\0", b"BZh9", &LZ4_MAGIC, b"\xfd7zXZ\0", b"\x5d\0\0", b"\x28\xb5\x2f\xfd"];
        let _ = unpacked(&[magic[format], &noise].concat(), 5000);
    }
}
