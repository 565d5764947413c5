//! Checksums by which parts of an image name each other, and readers that make them.

use std::fmt;
use std::io::{self, ErrorKind, Read};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// A SHA-256 sum, in hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct Sum(String);

impl Sum {
    /// Reads `sha256:` and 64 digits.
    pub fn parse(text: &str) -> Result<Self> {
        let shown = || format!("the digest '{}'", text.escape_debug().take(80).collect::<String>());
        let hex = text.strip_prefix("sha256:").with_context(shown);
        Self::of_hex(hex.context("it has no SHA-256 sum, which alone is known here")?)
            .with_context(shown)
    }

    /// Reads 64 digits.
    pub fn of_hex(hex: &str) -> Result<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        ensure!(hex.len() == 64 && hex.bytes().all(is_digit), "it is no SHA-256 sum");
        Ok(Self(hex.into()))
    }

    /// The sum of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::new_with_prefix(bytes))
    }

    fn from_hash(hash: Sha256) -> Self {
        Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Its digits.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// Refuses anything but `found`.
    pub fn ensure(&self, found: &Self) -> Result<()> {
        ensure!(
            self == found,
            "it is damaged or was changed: its SHA-256 sum is {}",
            &found.0[..12]
        );
        Ok(())
    }
}

/// As people know it, and short.
impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "sha256:{}", &self.0[..12])
    }
}

/// Passes on what `source` has, up to `left` bytes, and sums it up.
pub struct Summed<'a> {
    source: &'a mut dyn Read,
    hash: Option<Sha256>,
    left: u64,
}

impl<'a> Summed<'a> {
    /// With or without a sum; more than `most` bytes are an error.
    pub fn new(source: &'a mut dyn Read, sums: bool, most: u64) -> Self {
        Self { source, hash: sums.then(Sha256::new), left: most }
    }

    /// How many more bytes it may have.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The sum of all that was read, if one was asked for.
    pub fn sum(self) -> Option<Sum> {
        self.hash.map(Sum::from_hash)
    }
}

impl Read for Summed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.source.read(bytes)?;
        self.left = self.left.checked_sub(len as u64).ok_or(ErrorKind::FileTooLarge)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&bytes[..len]);
        }
        Ok(len)
    }
}
