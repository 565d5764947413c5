//! The `tinyvmm` command: flags, files opened by name, the loop of the machine's owner, the jail, and doors to a
//! machine. ARCHITECTURE.md has the map.

#[cfg(feature = "api")]
pub mod api;
#[cfg(not(feature = "api"))]
#[path = "no_api.rs"]
pub mod api;
pub mod cli;
#[cfg(feature = "api")]
pub mod clones;
pub mod command;
pub mod config;
pub mod console;
#[cfg(feature = "api")]
pub mod ctl;
pub mod disks;
#[cfg(feature = "doctor")]
pub mod doctor;
#[cfg(feature = "agent")]
pub mod exec;
#[cfg(not(feature = "agent"))]
#[path = "no_exec.rs"]
pub mod exec;
pub mod files;
#[cfg(feature = "api")]
pub mod firecracker;
pub mod guard;
pub mod host;
#[cfg(feature = "agent")]
mod identity;
#[cfg(not(feature = "agent"))]
#[path = "no_identity.rs"]
mod identity;
#[cfg(feature = "image")]
pub mod images;
pub mod inbox;
pub mod jail;
pub mod kernel_cache;
mod last_words;
pub mod logger;
#[cfg(feature = "api")]
pub mod machines;
pub mod measure;
#[cfg(feature = "api")]
pub mod names;
#[cfg(not(feature = "api"))]
#[path = "no_names.rs"]
pub mod names;
pub mod net;
pub mod outside;
pub mod print_config;
pub mod process;
pub mod report;
pub mod root_dir;
pub mod run;
pub mod share;
pub mod signals;
pub mod snapshot;
pub mod socket;
#[cfg(feature = "agent")]
pub mod template;
#[cfg(not(feature = "agent"))]
#[path = "no_template.rs"]
pub mod template;
pub mod terminal;
pub mod vsock;
