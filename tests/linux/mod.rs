//! linux/mod
