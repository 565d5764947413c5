//! Builds the agent that a guest gets, and leaves out of a release what unwinds its stack: a panic aborts there, and
//! without symbols a backtrace has no names. Not the compiler's flag for it: that would hold for tests as well, where a
//! panic unwinds.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=no-unwinding.ld");
    // Not as of the script's build: a checkout may be moved, or its target folder copied.
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bin=tinyvmm=-Wl,-T,{folder}/no-unwinding.ld");
    }
    if env::var_os("CARGO_FEATURE_AGENT").is_some() {
        build_agent(&Path::new(&folder).join("../.."));
    }
}

/// Builds the agent with its own flags, whatever those of this build are; of crates that this build has, too, so that
/// nothing is fetched.
fn build_agent(root: &Path) {
    for input in ["Cargo.lock", "Cargo.toml", ".cargo", "guest-images/agent", "vmm/agent-wire"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let target = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("agent");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let triple = "x86_64-unknown-linux-gnu";
    cargo.args(["build", "--release", "--quiet", "--locked", "--offline", "--package", "agent"]);
    cargo.args(["--target", triple, "--target-dir"]).arg(&target).current_dir(root);
    let theirs = |name: &str| {
        let is_flags = name.ends_with("RUSTFLAGS");
        is_flags || name == "RUSTC_WORKSPACE_WRAPPER" || name.starts_with("CARGO_PROFILE_")
    };
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(theirs)) {
        cargo.env_remove(name);
    }
    let done = cargo.status();
    assert!(done.is_ok_and(|status| status.success()), "cannot build guest-images/agent");
    let program = target.join(triple).join("release/tinyvmm-agent");
    println!("cargo::rustc-env=TINYVMM_AGENT={}", program.display());
}
