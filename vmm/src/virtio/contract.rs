//! One contract for every virtio device.
