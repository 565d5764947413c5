//! A request's payload: fields of a tag (1 byte), a length (4 bytes, little-endian), and bytes.

use alloc::vec::Vec;

pub(crate) fn put(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

/// The fields of a payload; an error is one that is cut off.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let [tag, a, b, c, d, rest @ ..] = self.0 else {
            let cut_off = !core::mem::take(&mut self.0).is_empty();
            return cut_off.then_some(None);
        };
        let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let Some((bytes, rest)) = rest.split_at_checked(len) else {
            self.0 = &[];
            return Some(None);
        };
        self.0 = rest;
        Some(Some((*tag, bytes)))
    }
}
