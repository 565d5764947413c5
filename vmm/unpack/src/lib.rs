//! Unpacks the payload of a bzImage, in all formats of the kernel's build but LZO (scripts/Makefile.lib); and streams.

mod stream;

use std::io::{BufRead, BufReader, BufWriter, Read, Take, Write, copy};

use anyhow::{Context, Result, bail, ensure};
use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::StreamingDecoder;

pub use stream::Unpacker;

/// Bytes that are read and written at a time.
const BUFFER: usize = 256 << 10;
/// The most memory for an LZMA window, in KiB; the kernel's build asks for 32 MiB.
const LZMA_KIB: u32 = 160 << 10;
const LZ4_MAGIC: [u8; 4] = 0x184c_2102u32.to_le_bytes();
/// The unpacked size of every block but the last (legacy frame, lz4's doc/lz4_Frame_format.md).
const LZ4_BLOCK: u64 = 8 << 20;
/// The largest packed block, of incompressible data (`LZ4_compressBound`).
const LZ4_PACKED: u64 = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;

/// Unpacks `payload`, `len` bytes of which the last four are the unpacked `size`, to `out`. Fails if it is damaged, has
/// another size, or an unknown format.
pub fn unpack(payload: &mut dyn Read, len: u64, out: &mut dyn Write, size: u64) -> Result<()> {
    let packed_len = len.checked_sub(4).context("no payload")?;
    let mut packed = BufReader::with_capacity(BUFFER, payload).take(len);
    let magic = packed.fill_buf()?.get(..6).context("no payload")?;
    let gzip = magic.starts_with(&[0x1f, 0x8b]);
    let format: [u8; 6] = magic.try_into()?;
    // gzip has the size in its format; the kernel's build appends it to the others.
    packed.set_limit(if gzip { len } else { packed_len });
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let done = unpack_format(format, packed, &mut out, size)?;
    ensure!(done == size, "a payload that does not unpack to the {size} bytes that it says");
    Ok(out.flush()?)
}

/// Unpacks all of `packed`, in a format that says where it ends: gzip, xz or zstd. Fails beyond `most` bytes.
pub fn unpack_file(packed: &mut dyn Read, most: u64) -> Result<Vec<u8>> {
    let mut packed = BufReader::with_capacity(BUFFER, packed).take(u64::MAX);
    let format = packed.fill_buf()?.get(..6).context("no contents")?.try_into()?;
    let mut unpacked = Vec::new();
    let mut out = BufWriter::new(&mut unpacked as &mut dyn Write);
    let done = unpack_format(format, packed, &mut out, most)?;
    ensure!(done <= most, "it unpacks to more than {} MiB", most >> 20);
    out.flush()?;
    drop(out);
    Ok(unpacked)
}

/// Unpacks `packed`, whose first bytes are `format`; ends after `size` bytes and one more. Not for any reader and writer:
/// each kind would have decompressors of its own.
fn unpack_format(
    format: [u8; 6],
    packed: Take<BufReader<&mut dyn Read>>,
    out: &mut BufWriter<&mut dyn Write>,
    size: u64,
) -> Result<u64> {
    match format {
        [0x1f, 0x8b, ..] => copy_some(GzDecoder::new(packed), out, size),
        [b'B', b'Z', b'h', ..] => copy_some(BzDecoder::new(packed), out, size),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            copy_some(XzReader::new_mem_limit(packed, false, LZMA_KIB), out, size)
        }
        [0x5d, 0, 0, ..] => {
            copy_some(LzmaReader::new_mem_limit(packed, LZMA_KIB, None)?, out, size)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            copy_some(StreamingDecoder::new(packed).context("zstd")?, out, size)
        }
        _ if format.starts_with(&LZ4_MAGIC) => unpack_lz4(packed, out, size),
        _ => bail!("a payload that starts with {format:02x?}, which is no format known here"),
    }
}

/// Copies all of `from`, or one byte more than `size` if it is longer.
fn copy_some(from: impl Read, out: &mut impl Write, size: u64) -> Result<u64> {
    copy(&mut from.take(size + 1), out).context("cannot unpack it")
}

/// The magic number, then blocks: length of the packed block in four bytes, packed block.
fn unpack_lz4(mut from: impl Read, out: &mut impl Write, size: u64) -> Result<u64> {
    from.read_exact(&mut [0; 4])?;
    let mut unpacked = vec![0; size.min(LZ4_BLOCK) as usize];
    let mut packed = Vec::new();
    let mut done = 0;
    while done < size {
        let mut len = [0; 4];
        from.read_exact(&mut len).context("an LZ4 payload that ends early")?;
        let len = u64::from(u32::from_le_bytes(len));
        ensure!((1..=LZ4_PACKED).contains(&len), "an LZ4 block of {len} bytes");
        packed.clear();
        from.by_ref().take(len).read_to_end(&mut packed)?;
        let room = (size - done).min(LZ4_BLOCK) as usize;
        let count = lz4_flex::block::decompress_into(&packed, &mut unpacked[..room])
            .context("a damaged LZ4 block")?;
        ensure!(count > 0, "an empty LZ4 block");
        out.write_all(&unpacked[..count])?;
        done += count as u64;
    }
    Ok(done)
}

#[cfg(test)]
mod pack;
#[cfg(test)]
mod tests;
