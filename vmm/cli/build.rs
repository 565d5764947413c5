//! Leaves out of a release what unwinds its stack: a panic aborts there, and without symbols a backtrace has no names.
//! Not the compiler's flag for it: that would hold for tests as well, where a panic unwinds.

fn main() {
    println!("cargo::rerun-if-changed=no-unwinding.ld");
    let folder = env!("CARGO_MANIFEST_DIR");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bin=tinyvmm=-Wl,-T,{folder}/no-unwinding.ld");
    }
}
