# A guest that attacks tinyvmm's devices, an ELF: hostile/, built with the Rust that is installed.

source_files() { (cd "$here" && echo hostile/Cargo.toml hostile/Cargo.lock hostile/src/*); }
tools() { echo cargo:cargo; }
# No packages of Debian's, but the compiler counts.
resolve_packages() { versions[rustc]=$(rustc --version); }
download_packages() { :; }

make() {
    # Static and at an address of its own, as kernels are; without what a C library starts with.
    local flags=(relocation-model=static link-arg={-nostartfiles,-nostdlib,-static,-no-pie}
        link-arg=-Wl,--image-base=0x200000,--build-id=none,-z,norelro)
    (cd "$here/hostile" && RUSTFLAGS="-C target-feature=+crt-static ${flags[*]/#/-C }" \
        cargo build --release --locked --quiet --target x86_64-unknown-linux-gnu --target-dir "$work/target")
    mv "$work/target/x86_64-unknown-linux-gnu/release/hostile" "$1"
}
