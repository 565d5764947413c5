//! Makes payloads of every format: input for tests and for fuzzing (tests/fuzz).

use std::io::{Read, Write};

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(data, flate2::Compression::fast())
        .read_to_end(&mut packed)
        .unwrap();
    packed
}

fn with_size(mut packed: Vec<u8>, data: &[u8]) -> Vec<u8> {
    packed.extend((data.len() as u32).to_le_bytes());
    packed
}

fn bzip2(data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let level = ::bzip2::Compression::fast();
    ::bzip2::read::BzEncoder::new(data, level).read_to_end(&mut packed).unwrap();
    with_size(packed, data)
}

fn lz4(data: &[u8]) -> Vec<u8> {
    let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
    for block in data.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    with_size(packed, data)
}

fn xz(data: &[u8]) -> Vec<u8> {
    use lzma_rust2::{CheckType, FilterType, XzOptions, XzWriter};
    let mut options = XzOptions::with_preset(1);
    options.set_check_sum_type(CheckType::Crc32);
    options.prepend_pre_filter(FilterType::BcjX86, 0);
    let mut writer = XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(data).unwrap();
    with_size(writer.finish().unwrap(), data)
}

fn lzma(data: &[u8]) -> Vec<u8> {
    use lzma_rust2::{LzmaOptions, LzmaWriter};
    let mut options = LzmaOptions::with_preset(1);
    options.dict_size = 1 << 20; // a file that starts with 5d 00 00
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
    writer.write_all(data).unwrap();
    with_size(writer.finish().unwrap(), data)
}

fn zstd(data: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    with_size(ruzstd::encoding::compress_to_vec(data, level), data)
}

/// Packs the contents of a kernel.
pub type Pack = fn(&[u8]) -> Vec<u8>;

/// Each format, as a kernel's build makes it.
pub const FORMATS: [Pack; 6] = [gzip, bzip2, lz4, xz, lzma, zstd];
