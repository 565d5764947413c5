//! The agent is static and at an address of its own, and has no C library: what one starts with is left out.

fn main() {
    for flag in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--gc-sections,--build-id=none,-z,norelro",
    ] {
        println!("cargo::rustc-link-arg-bins={flag}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
