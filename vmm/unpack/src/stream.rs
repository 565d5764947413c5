//! Unpacks as it is read, what consists of several packed parts as well: layers of images are such streams.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read, Take};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::BUFFER;

type Packed<'a> = Take<BufReader<&'a mut dyn Read>>;

/// A frame of zstd that is to be skipped has one of 16 magic numbers from here, then its length (RFC 8878, 3.1.2).
const SKIPPABLE: u32 = 0x184d_2a50;

/// What [`Unpacker`] is in.
enum Part<'a> {
    Gzip(Box<GzDecoder<Packed<'a>>>),
    Zstd(Box<StreamingDecoder<Packed<'a>, ruzstd::decoding::FrameDecoder>>),
    Plain(Packed<'a>),
    /// Nothing: an error ended it.
    Failed,
}

/// Reads what is packed with gzip or zstd, or not at all.
pub struct Unpacker<'a>(Part<'a>);

impl<'a> Unpacker<'a> {
    /// Unpacks `packed`, whose first bytes say how.
    ///
    /// # Errors
    ///
    /// `packed` cannot be read, or its start is damaged.
    pub fn new(packed: &'a mut dyn Read) -> io::Result<Self> {
        let packed = BufReader::with_capacity(BUFFER, packed).take(u64::MAX);
        Ok(Self(begin(packed)?.unwrap_or_else(Part::Plain)))
    }

    /// Goes on with the next packed part, if one follows.
    fn go_on(&mut self) -> io::Result<bool> {
        let packed = match std::mem::replace(&mut self.0, Part::Failed) {
            Part::Gzip(decoder) => decoder.into_inner(),
            Part::Zstd(decoder) => decoder.into_inner(),
            plain => {
                self.0 = plain;
                return Ok(false);
            }
        };
        match begin(packed)? {
            Ok(part) => {
                self.0 = part;
                Ok(true)
            }
            Err(mut rest) => {
                let is_end = rest.fill_buf()?.is_empty();
                self.0 = Part::Plain(rest);
                match is_end {
                    true => Ok(false),
                    false => Err(Error::other("something else follows what is packed")),
                }
            }
        }
    }
}

/// Begins the packed part that `packed` starts with; `packed` itself if none does.
fn begin(mut packed: Packed<'_>) -> io::Result<Result<Part<'_>, Packed<'_>>> {
    loop {
        let magic = match packed.fill_buf()? {
            [a, b, c, d, ..] => u32::from_le_bytes([*a, *b, *c, *d]),
            _ => return Ok(Err(packed)),
        };
        if magic & 0xffff == 0x8b1f {
            return Ok(Ok(Part::Gzip(Box::new(GzDecoder::new(packed)))));
        }
        if magic == 0xfd2f_b528 {
            let decoder = StreamingDecoder::new(packed).map_err(Error::other)?;
            return Ok(Ok(Part::Zstd(Box::new(decoder))));
        }
        if magic & !0xf != SKIPPABLE {
            return Ok(Err(packed));
        }
        let mut header = [0; 8];
        packed.read_exact(&mut header)?;
        let [.., a, b, c, d] = header;
        let mut skipped = packed.by_ref().take(u32::from_le_bytes([a, b, c, d]).into());
        io::copy(&mut skipped, &mut io::sink())?;
        packed.set_limit(u64::MAX);
    }
}

impl Read for Unpacker<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let len = match &mut self.0 {
                Part::Gzip(decoder) => decoder.read(bytes)?,
                Part::Zstd(decoder) => decoder.read(bytes)?,
                Part::Plain(plain) => plain.read(bytes)?,
                Part::Failed => return Err(ErrorKind::InvalidData.into()),
            };
            if len > 0 || bytes.is_empty() || !self.go_on()? {
                return Ok(len);
            }
        }
    }
}
