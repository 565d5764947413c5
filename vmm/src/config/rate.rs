//! How fast a device may be, as clients of the API say it.

use serde::{Deserialize, Serialize};

/// At most so much in a time, in the mean; what was not used is kept for later, up to a bucket full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Operations, or bytes, in a full bucket. 0: no limit.
    pub size: u64,
    /// As much again, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket is full again. 0: no limit.
    pub refill_time: u64,
}

/// What limits a device; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bucket>,
    /// Operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<Bucket>,
}

impl Bucket {
    /// Whether it limits anything.
    pub fn is_limit(&self) -> bool {
        self.size > 0 && self.refill_time > 0
    }
}

impl RateLimit {
    /// Whether it limits anything.
    pub fn is_limit(&self) -> bool {
        [self.bandwidth, self.ops].iter().flatten().any(Bucket::is_limit)
    }

    /// With what `update` says of it; a bucket that it does not name stays as it is.
    pub fn updated(self, update: Self) -> Self {
        Self { bandwidth: update.bandwidth.or(self.bandwidth), ops: update.ops.or(self.ops) }
    }
}
