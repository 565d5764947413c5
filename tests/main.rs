//! End-to-end tests of the `tinyvmm` command, in one binary.
//!
//! `linux::` boots stock kernels and runs in the KVM box; the rest runs on any /dev/kvm, those
//! that interpret guest code included: its guests are the few instructions of `guests`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's way to fail")]

mod api;
mod boot_test;
mod bzimage;
mod cache;
mod cli;
mod cloud;
mod command;
mod config;
mod console;
mod dir;
mod disk;
mod elf;
mod exec;
mod files;
mod fixture;
mod guests;
mod host;
mod hostile;
mod hotplug;
mod image;
mod images;
mod jail;
mod kvm_box;
mod linux;
mod measure;
mod names;
mod net;
mod oci;
mod recipes;
mod release;
mod share;
mod shells;
mod small;
mod snapshot;
mod stop;
mod template;
mod terminal;
mod tidy;
mod vsock;
