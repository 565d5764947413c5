//! Archives as tar has them: POSIX's ustar (pax(1), "ustar Interchange Format") with GNU's long names, and of pax's
//! extended headers the names, the size, owners and extended attributes. What is read comes from a guest, or from an image
//! that somebody else has made: lengths are bounded, nothing is believed.

use std::io::{self, Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail, ensure};

const BLOCK: usize = 512;
/// Most bytes of a name, as Linux's PATH_MAX, and of what an extended header may have besides.
const MAX_NAME: usize = 4096;
const MAX_EXTENDED: u64 = 64 << 10;
/// What fits in seven octal digits.
const NUMBER: u32 = 0o7_777_777;

/// What an entry is; its byte in the header.
pub const FILE: u8 = b'0';
/// Another name for an earlier file.
pub const HARD_LINK: u8 = b'1';
/// A symbolic link.
pub const LINK: u8 = b'2';
/// A character device.
pub const CHARACTERS: u8 = b'3';
/// A block device.
pub const BLOCKS: u8 = b'4';
/// A folder.
pub const FOLDER: u8 = b'5';
/// A named pipe.
pub const PIPE: u8 = b'6';

/// An entry's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its kind: one of the constants, or another that POSIX has.
    pub kind: u8,
    /// Its path, as the archive has it.
    pub name: Vec<u8>,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// The time of its last change, in seconds since 1970.
    pub mtime: u64,
    /// Bytes of contents that follow.
    pub size: u64,
    /// Numbers of its user and group.
    pub owner: (u32, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Names and values of extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Writes the header of an entry; numbers of its owner have 21 bits, and extended attributes are left out.
pub fn write_header(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    for (kind, text) in [(b'L', &entry.name), (b'K', &entry.link)] {
        if text.len() > 100 {
            let size = text.len() as u64 + 1;
            let long = Entry { kind, name: b"././@LongLink".into(), size, ..Entry::default() };
            out.write_all(&header(&long))?;
            out.write_all(&[text, &[0][..]].concat())?;
            pad(out, size)?;
        }
    }
    out.write_all(&header(entry))
}

/// Writes what follows contents of `size` bytes, up to a whole block.
pub fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let len = size.next_multiple_of(BLOCK as u64) - size;
    out.write_all(&[0; BLOCK][..len as usize])
}

/// Writes the end of the archive.
pub fn write_end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

fn header(entry: &Entry) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &entry.name[..entry.name.len().min(100)]);
    put(100, format!("{:07o}", entry.mode & 0o7777).as_bytes());
    put(
        108,
        format!("{:07o}\0{:07o}\0", entry.owner.0 & NUMBER, entry.owner.1 & NUMBER).as_bytes(),
    );
    match entry.size {
        size if size >> 33 == 0 => put(124, format!("{size:011o}").as_bytes()),
        size => {
            put(124, &[0x80]);
            put(128, &size.to_be_bytes());
        }
    }
    put(136, format!("{:011o}", entry.mtime & 0o77_777_777_777).as_bytes());
    put(148, &[b' '; 8]);
    put(156, &[entry.kind]);
    put(157, &entry.link[..entry.link.len().min(100)]);
    put(257, b"ustar  \0"); // GNU's, which has long names
    put(265, b"root");
    put(297, b"root");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Reads an archive. The contents of the entry that was returned last are read with [`Read`].
pub struct Reader<R> {
    source: R,
    /// Bytes of contents that were not read yet, and of padding behind them.
    left: u64,
    padding: u64,
    /// It may end without the blocks that end it.
    is_summed: bool,
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let len = self.source.read(&mut bytes[..len])?;
        if len == 0 && self.left > 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= len as u64;
        Ok(len)
    }
}

impl<R: Read> Reader<R> {
    /// Reads from the start.
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0, is_summed: false }
    }

    /// The same for an archive that need not have its end, as tar itself takes it: its sum shows whether it is whole.
    pub fn of_summed(source: R) -> Self {
        Self { is_summed: true, ..Self::new(source) }
    }

    /// Where it reads from.
    pub fn into_source(self) -> R {
        self.source
    }

    /// The next entry; `None` at the end. What was not read of the last one's contents is skipped.
    ///
    /// # Errors
    ///
    /// The source fails, or this is no archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            io::copy(self, &mut io::sink()).context("the archive is cut off")?;
            let mut rest = self.source.by_ref().take(self.padding);
            io::copy(&mut rest, &mut io::sink())?;
            self.padding = 0;
            let Some(block) = self.block()? else { return Ok(None) };
            if block == [0; BLOCK] {
                // What follows the end fills tar's own blocks.
                io::copy(&mut self.source, &mut io::sink())?;
                return Ok(None);
            }
            let mut entry = parse(&block)?;
            self.expect(entry.size);
            match entry.kind {
                b'L' => extended.name = Some(self.text()?),
                b'K' => extended.link = Some(self.text()?),
                b'x' => self.extended(entry.size, &mut extended)?,
                // For all that follows: comments.
                b'g' => {}
                _ => {
                    if let Some(size) = extended.size.filter(|_| entry.kind == FILE) {
                        entry.size = size;
                        self.expect(size);
                    }
                    return Ok(Some(extended.apply(entry)));
                }
            }
        }
    }

    /// The next block; `None` if the archive ends before it, and may do so.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut bytes = Vec::with_capacity(BLOCK);
        self.source.by_ref().take(BLOCK as u64).read_to_end(&mut bytes)?;
        if bytes.is_empty() && self.is_summed {
            return Ok(None);
        }
        Ok(Some(bytes.try_into().ok().context("the archive is cut off")?))
    }

    fn expect(&mut self, size: u64) {
        (self.left, self.padding) = (size, size.wrapping_neg() % BLOCK as u64);
    }

    /// The contents as a text that may end in a zero byte.
    fn text(&mut self) -> Result<Vec<u8>> {
        ensure!(self.left <= MAX_NAME as u64 + 1, "the archive has a name that is too long");
        let mut text = Vec::new();
        self.read_to_end(&mut text)?;
        Ok(until_zero(&text).to_vec())
    }

    /// Takes an extended header: lines of a length, a key, `=` and a value (pax(1), "pax Extended Header").
    fn extended(&mut self, len: u64, extended: &mut Extended) -> Result<()> {
        ensure!(len <= MAX_EXTENDED, "the archive has an extended header that is too long");
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        // Of several such headers the last one counts.
        extended.attributes.clear();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let len: usize =
                str::from_utf8(&rest[..digits])?.parse().context("an extended header")?;
            let line = rest.get(digits + 1..len).context("an extended header that is cut off")?;
            rest = &rest[len..];
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let Some(at) = line.iter().position(|byte| *byte == b'=') else { continue };
            extended.take(&line[..at], &line[at + 1..])?;
        }
        Ok(())
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Goes past the contents of the entry that was returned last, without reading them. Returns where they begin.
    ///
    /// # Errors
    ///
    /// The source fails.
    pub fn skip(&mut self) -> Result<u64> {
        let start = self.source.stream_position()?;
        let end = start.checked_add(self.left).context("a size that is too large")?;
        self.source.seek(SeekFrom::Start(end))?;
        self.left = 0;
        Ok(start)
    }
}

/// What extended headers, and GNU's long names, say of the entry that follows them.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    user: Option<u32>,
    group: Option<u32>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extended {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        ensure!(value.len() <= MAX_NAME || !key.ends_with(b"path"), "a name is too long");
        let number = |what| str::from_utf8(value)?.parse::<u64>().context(what);
        match key {
            b"path" => self.name = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number("a size")?),
            b"uid" => self.user = Some(u32::try_from(number("a user")?)?),
            b"gid" => self.group = Some(u32::try_from(number("a group")?)?),
            _ if key.starts_with(b"GNU.sparse.") => bail!("a sparse file, which is not known here"),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn apply(self, mut entry: Entry) -> Entry {
        entry.name = self.name.unwrap_or(entry.name);
        entry.link = self.link.unwrap_or(entry.link);
        entry.owner = (self.user.unwrap_or(entry.owner.0), self.group.unwrap_or(entry.owner.1));
        entry.attributes = self.attributes;
        entry
    }
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn parse(block: &[u8; BLOCK]) -> Result<Entry> {
    let sum =
        |from: usize, to: usize| block[from..to].iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let sum = sum(0, 148) + 8 * u64::from(b' ') + sum(156, BLOCK);
    ensure!(
        number(&block[148..156]).ok() == Some(sum),
        "this is no archive of tar's, or it is damaged"
    );
    let mut name = until_zero(&block[..100]).to_vec();
    let prefix = until_zero(&block[345..500]);
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        name = [prefix, b"/", &name].concat();
    }
    // Before POSIX a file was a zero byte, and a folder's name ended in a slash.
    let kind = match block[156] {
        0 | b'7' | FILE if name.ends_with(b"/") => FOLDER,
        0 | b'7' => FILE,
        kind => kind,
    };
    let has_contents = ![HARD_LINK, LINK, CHARACTERS, BLOCKS, FOLDER, PIPE].contains(&kind);
    let is_device = [CHARACTERS, BLOCKS].contains(&kind);
    let small =
        |from: usize| Ok::<_, anyhow::Error>(u32::try_from(number(&block[from..from + 8])?)?);
    Ok(Entry {
        kind,
        name,
        link: until_zero(&block[157..257]).to_vec(),
        mode: number(&block[100..108])? as u32 & 0o7777,
        mtime: number(&block[136..148])?,
        size: if has_contents { number(&block[124..136])? } else { 0 },
        owner: (small(108)?, small(116)?),
        device: if is_device { (small(329)?, small(337)?) } else { (0, 0) },
        attributes: Vec::new(),
    })
}

/// A number in octal, or since GNU's in bytes after a bit.
fn number(field: &[u8]) -> Result<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let is_small = high.iter().skip(1).all(|byte| *byte == 0) && low[0] & 0x80 == 0;
        let low = <[u8; 8]>::try_from(low)?;
        return if is_small && field.len() > 8 {
            Ok(u64::from_be_bytes(low))
        } else {
            bail!("a number is too large")
        };
    }
    let text = str::from_utf8(until_zero(field))?.trim_matches(' ');
    if text.is_empty() {
        Ok(0)
    } else {
        u64::from_str_radix(text, 8).context("a number that is none")
    }
}

#[cfg(test)]
mod tests;
