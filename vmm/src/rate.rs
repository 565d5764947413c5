//! Token buckets, which limit the rate of a device.

use std::time::{Duration, Instant};

use crate::config::{Bucket, RateLimit};

/// A token bucket. Its contents are counted in tokens times nanoseconds of its refill time, so that rounding loses
/// nothing.
struct TokenBucket {
    /// Contents when full.
    size: i128,
    /// Present contents; negative after a request that was larger than the bucket.
    filled: i128,
    /// The rest of the one-time burst.
    burst: i128,
    /// Nanoseconds from empty to full, which is the weight of a token.
    refill: i128,
    /// Tokens in a full bucket, which is the gain in each nanosecond.
    rate: i128,
    /// The time of `filled`.
    at: Instant,
}

impl TokenBucket {
    fn new(bucket: &Bucket, now: Instant) -> Self {
        // Both below 2^63, so that their product, and twice that, is within an i128.
        let max = i64::MAX as u128;
        let refill = Duration::from_millis(bucket.refill_time).as_nanos().min(max) as i128;
        let tokens = |count: u64| u128::from(count).min(max) as i128;
        let size = tokens(bucket.size) * refill;
        let burst = tokens(bucket.one_time_burst.unwrap_or(0)) * refill;
        Self { size, filled: size, burst, refill, rate: tokens(bucket.size), at: now }
    }

    /// The weight of `tokens`.
    fn weight(&self, tokens: u64) -> i128 {
        i128::from(tokens).saturating_mul(self.refill)
    }

    /// The time from `now` until `tokens` can be taken. More than a full bucket are lent.
    fn wait(&mut self, tokens: u64, now: Instant) -> Duration {
        let passed =
            now.saturating_duration_since(self.at).as_nanos().min(i64::MAX as u128) as i128;
        // The bucket fills only once the burst is used up.
        if self.burst == 0 {
            self.filled = self.size.min(self.filled.saturating_add(passed * self.rate));
        }
        self.at = self.at.max(now);
        let missing = self.weight(tokens).min(self.size) - self.filled - self.burst;
        let nanoseconds = (missing.max(0) as u128).div_ceil(self.rate.max(1) as u128);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        let weight = self.weight(tokens);
        let of_burst = weight.min(self.burst);
        self.burst -= of_burst;
        self.filled = self.filled.saturating_sub(weight - of_burst);
    }
}

/// The limits of a device: up to two buckets, both of which need enough tokens.
pub struct Limiter {
    ops: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
    /// When to serve again, after a request had to wait.
    resume_at: Option<Instant>,
}

impl Limiter {
    /// Limits with full buckets; `None` if `limit` limits nothing.
    pub fn new(limit: &RateLimit, now: Instant) -> Option<Self> {
        let bucket = |bucket: Option<Bucket>| {
            bucket.filter(Bucket::is_limit).map(|bucket| TokenBucket::new(&bucket, now))
        };
        let (ops, bytes) = (bucket(limit.ops), bucket(limit.bandwidth));
        limit.is_limit().then_some(Self { ops, bytes, resume_at: None })
    }

    /// Whether a request of `bytes` can be served `now`; its tokens are taken then. Otherwise [`Self::resume_at`] is
    /// set.
    pub fn admit(&mut self, bytes: u64, now: Instant) -> bool {
        let of_ops = self.ops.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(1, now));
        let of_bytes = self.bytes.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(bytes, now));
        let wait = of_ops.max(of_bytes);
        if !wait.is_zero() {
            // A time that cannot be represented is replaced by an hour.
            let at = now.checked_add(wait).or_else(|| now.checked_add(Duration::from_secs(3600)));
            self.resume_at = at;
            return false;
        }
        self.ops.iter_mut().for_each(|bucket| bucket.take(1));
        self.bytes.iter_mut().for_each(|bucket| bucket.take(bytes));
        true
    }

    /// Takes the tokens of `bytes` of a request that was admitted when they were not known.
    pub fn charge(&mut self, bytes: u64) {
        self.bytes.iter_mut().for_each(|bucket| bucket.take(bytes));
    }

    /// When to try waiting requests again. Returned once.
    pub fn resume_at(&mut self) -> Option<Instant> {
        self.resume_at.take()
    }
}

/// A limit, and what it has admitted that has not passed yet.
#[derive(Default)]
pub struct Gate {
    /// The limit.
    pub limiter: Option<Limiter>,
    is_open: bool,
}

impl Gate {
    /// Whether the next one, of `bytes` bytes, may pass now; asked again, the limit has admitted it already.
    pub fn admits(&mut self, bytes: usize) -> bool {
        let admitted = |limiter: &mut Limiter| limiter.admit(bytes as u64, Instant::now());
        self.is_open = self.is_open || self.limiter.as_mut().is_none_or(admitted);
        self.is_open
    }

    /// What it was asked for has passed; `more` of its bytes were not known before.
    pub fn close(&mut self, more: usize) {
        self.is_open = false;
        if let Some(limiter) = &mut self.limiter {
            limiter.charge(more as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(ops: Option<(u64, u64, u64)>, bytes: Option<(u64, u64, u64)>) -> RateLimit {
        let bucket =
            |(size, burst, refill_time)| Bucket { size, one_time_burst: Some(burst), refill_time };
        RateLimit { ops: ops.map(bucket), bandwidth: bytes.map(bucket) }
    }

    /// The number of these requests that are served in each of some milliseconds.
    fn served(limit: &RateLimit, bytes: u64, at_ms: &[u64]) -> Vec<usize> {
        let start = Instant::now();
        let mut limiter = Limiter::new(limit, start).unwrap();
        let mut in_ms = |ms| {
            let now = start + Duration::from_millis(ms);
            (0..1000).take_while(|_| limiter.admit(bytes, now)).count()
        };
        at_ms.iter().map(|ms| in_ms(*ms)).collect()
    }

    #[test]
    fn operations_are_served_while_there_are_tokens() {
        let ten = limit(Some((10, 0, 1000)), None);
        assert_eq!(
            served(&ten, 1 << 30, &[0, 99, 100, 150, 400, 401, 5000]),
            [10, 0, 1, 0, 3, 0, 10]
        );
        let burst = limit(Some((10, 5, 1000)), None);
        assert_eq!(served(&burst, 1, &[0, 100, 5000, 10_000]), [15, 1, 10, 10]);
    }

    #[test]
    fn bytes_count_and_one_request_may_be_larger_than_the_bucket() {
        let bytes = limit(None, Some((1000, 0, 1000)));
        assert_eq!(served(&bytes, 250, &[0, 249, 250, 1250]), [4, 0, 1, 4]);
        assert_eq!(served(&bytes, 3000, &[0, 2000, 2999, 3000, 6000]), [1, 0, 0, 1, 1]);
        let both = limit(Some((2, 0, 1000)), Some((1000, 0, 1000)));
        assert_eq!(served(&both, 600, &[0, 199, 200, 800]), [1, 0, 1, 1]);
    }

    #[test]
    fn it_says_when_to_try_again_and_that_is_the_time() {
        let start = Instant::now();
        let mut limiter = Limiter::new(&limit(Some((3, 0, 1000)), None), start).unwrap();
        assert!((0..3).all(|_| limiter.admit(1, start)));
        assert_eq!(limiter.resume_at(), None);
        assert!(!limiter.admit(1, start));
        let then = limiter.resume_at().unwrap();
        assert_eq!(then - start, Duration::from_nanos(333_333_334));
        assert_eq!(limiter.resume_at(), None);
        assert!(!limiter.admit(1, then - Duration::from_nanos(2)));
        assert!(limiter.admit(1, then));
    }

    #[test]
    fn what_is_no_limit_is_none() {
        for (size, refill) in [(0, 0), (0, 100), (100, 0)] {
            let none = limit(Some((size, 0, refill)), Some((size, 9, refill)));
            assert!(Limiter::new(&none, Instant::now()).is_none());
        }
        assert!(Limiter::new(&RateLimit::default(), Instant::now()).is_none());
    }

    proptest! {
        /// At most a bucket, a burst and the gain since are served, and requests never stop being served, whatever the
        /// numbers.
        #[test]
        fn no_numbers_make_it_panic_or_stand_still(size: u64, burst: u64, refill: u64, bytes: u64, steps in prop::collection::vec(0u64..1 << 40, 1..20)) {
            let limit = limit(Some((size, burst, refill)), Some((size, burst, refill)));
            let mut now = Instant::now();
            if let Some(mut limiter) = Limiter::new(&limit, now) {
                for step in steps {
                    now += Duration::from_nanos(step);
                    if !limiter.admit(bytes, now) {
                        assert!(limiter.resume_at().is_some_and(|at| at > now));
                    }
                }
            }
        }

        #[test]
        fn in_the_mean_it_is_the_rate(size in 1u64..1000, refill in 1u64..10_000, gap in 1u64..5_000_000) {
            let start = Instant::now();
            let mut limiter = Limiter::new(&limit(Some((size, 0, refill)), None), start).unwrap();
            let (mut now, mut count) = (start, 0u64);
            for _ in 0..200 {
                count += (0..2000).take_while(|_| limiter.admit(1, now)).count() as u64;
                now += Duration::from_nanos(gap);
            }
            let max = size + (199 * gap * size).div_ceil(refill * 1_000_000);
            prop_assert!(count <= max, "{} of {}", count, max);
        }
    }
}
