//! How fields are shown that Firecracker keeps in other terms (its src/vmm/src/vmm_config/mod.rs).

use serde::de::IgnoredAny;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::IoEngine;
use tinyvmm::config::{Bucket, RateLimit};

/// A bucket that limits nothing is not there.
pub(super) fn limit<S: Serializer>(limit: &Option<RateLimit>, to: S) -> Result<S::Ok, S::Error> {
    let limit = limit
        .filter(RateLimit::is_limit)
        .map(|limit| json!({ "bandwidth": bucket(limit.bandwidth), "ops": bucket(limit.ops) }));
    limit.serialize(to)
}

fn bucket(bucket: Option<Bucket>) -> Value {
    let bucket = bucket.filter(Bucket::is_limit);
    json!(bucket.map(|Bucket { size, one_time_burst, refill_time }| {
        let burst = one_time_burst.filter(|burst| *burst > 0);
        json!({ "size": size, "one_time_burst": burst, "refill_time": refill_time })
    }))
}

/// Firecracker's default for an engine that is left out.
pub(super) fn engine<S: Serializer>(engine: &Option<IoEngine>, to: S) -> Result<S::Ok, S::Error> {
    engine.unwrap_or(IoEngine::Sync).serialize(to)
}

/// A field that is refused has no value.
pub(super) fn null<S: Serializer>(_: &Option<IgnoredAny>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_none()
}
