# The agent for guests that tinyvmm does not give one: agent/, built with the Rust that is installed, and a unit for systemd.

source_files() { (cd "$here" && echo agent.service agent/Cargo.toml agent/build.rs agent/src/* ../vmm/agent-wire/{Cargo.toml,src/*} ../Cargo.{toml,lock}); }
tools() { echo cargo:cargo; }
# No packages of Debian's, but the compiler counts.
resolve_packages() { versions[rustc]=$(rustc --version); }
download_packages() { :; }

make() {
    (cd "$here/.." && unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS && cargo build --release --locked --quiet \
        --package agent --target x86_64-unknown-linux-gnu --target-dir "$work/target")
    install -D "$work/target/x86_64-unknown-linux-gnu/release/tinyvmm-agent" "$1/tinyvmm-agent"
    cp "$here/agent.service" "$1/tinyvmm-agent.service"
}
