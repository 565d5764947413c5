//! A set of pages of a region of guest RAM.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages by their index in a region: a bit for each, once there is one in the set. Pages are never removed.
#[derive(Debug)]
pub(super) struct PageSet {
    count: usize,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl PageSet {
    /// An empty set of the pages of a region that has `count` of them.
    pub(super) fn new(count: usize) -> Self {
        Self { count, words: OnceLock::new() }
    }

    /// Adds `pages`; those that the region does not have are left out.
    pub(super) fn insert(&self, pages: Range<usize>) {
        let words = self.words.get_or_init(|| {
            let words = 0..self.count.div_ceil(64);
            words.map(|_| AtomicU64::new(0)).collect()
        });
        let mut page = pages.start;
        let end = pages.end.min(self.count);
        while page < end {
            // All that are in the same word.
            let next = (page / 64 * 64 + 64).min(end);
            let bits = (u64::MAX >> (64 - (next - page))) << (page % 64);
            words[page / 64].fetch_or(bits, Ordering::Relaxed);
            page = next;
        }
    }

    /// Whether `page` is in the set.
    pub(super) fn contains(&self, page: usize) -> bool {
        let word = self.words.get().and_then(|words| words.get(page / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (page % 64) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_what_was_added_and_nothing_else() {
        for range in [0..0, 0..1, 63..65, 5..64, 64..128, 1..199, 190..300, 500..600] {
            let set = PageSet::new(200);
            set.insert(range.clone());
            for page in 0..700 {
                let expected = range.contains(&page) && page < 200;
                assert_eq!(set.contains(page), expected, "{page} of {range:?}");
            }
        }
    }
}
