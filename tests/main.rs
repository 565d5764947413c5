//! End-to-end tests of the `tinyvmm` command, in one binary.
//!
//! `linux::` boots stock kernels and runs in the KVM box; the rest runs anywhere.

mod cli;
mod fixture;
mod linux;
mod small;
mod terminal;
mod tidy;
