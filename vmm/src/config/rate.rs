//! Rate limits of a device.

use serde::{Deserialize, Serialize};

/// A token bucket: `size` tokens per `refill_time` in the mean; unused tokens are kept until the bucket is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Tokens in a full bucket: operations or bytes. 0: no limit.
    pub size: u64,
    /// Tokens that are used up first and do not come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills. 0: no limit.
    pub refill_time: u64,
}

/// The limits of a device; by default none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// A limit of bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bucket>,
    /// A limit of operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<Bucket>,
}

impl Bucket {
    /// Whether the bucket limits anything.
    pub fn is_limit(&self) -> bool {
        self.size > 0 && self.refill_time > 0
    }
}

impl RateLimit {
    /// Whether a bucket limits anything.
    pub fn is_limit(&self) -> bool {
        [self.bandwidth, self.ops].iter().flatten().any(Bucket::is_limit)
    }

    /// These limits with the buckets of `update` where it has them.
    pub fn updated(self, update: Self) -> Self {
        Self { bandwidth: update.bandwidth.or(self.bandwidth), ops: update.ops.or(self.ops) }
    }
}
