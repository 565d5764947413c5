# A stock Debian kernel, not installed but unpacked:
#   vmlinuz    as shipped
#   vmlinux    the ELF inside it, followed by its relocation table, which ELF loaders ignore
#   config, version, modules/lib/modules/VERSION

packages() {
    case $flavour in
        *cloud) meta_target "linux-image-$flavour-amd64" ;;
        *) meta_target "linux-image-$flavour" ;;
    esac
}

tools() { printf '%s\n' lz4:lz4 xz:xz-utils zstd:zstd depmod:kmod; }

make() {
    local out=$1 tree=$work/packages
    unpack_packages "$tree"
    mkdir -p "$out/modules/lib"
    mv "$tree"/lib/modules "$out/modules/lib/"
    mv "$tree"/boot/vmlinuz-* "$out/vmlinuz"
    mv "$tree"/boot/config-* "$out/config"
    basename "$out"/modules/lib/modules/* >"$out/version"
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$out/modules" "$(cat "$out/version")"
    unpack_vmlinux "$out/vmlinuz" "$out/vmlinux"
}

# Number of $3 bytes at offset $2 of bzImage $1.
header_field() { od -An -v -tu"$3" -j "$(($2))" -N "$3" "$1" | tr -d ' '; }

# Names from Documentation/arch/x86/boot.rst.
unpack_vmlinux() {
    local setup_sects payload_offset payload_length payload=$work/payload
    setup_sects=$(header_field "$1" 0x1f1 1)
    payload_offset=$(header_field "$1" 0x248 4)
    payload_length=$(header_field "$1" 0x24c 4)
    # The last 4 bytes are the unpacked size, not part of the compressed stream.
    tail -c +$(((setup_sects + 1) * 512 + payload_offset + 1)) "$1" | head -c $((payload_length - 4)) >"$payload" || true
    case $(od -An -tx1 -N 4 "$payload" | tr -d ' ') in
        02214c18) lz4 -dcq "$payload" >"$2" ;;
        fd377a58) xz -dc "$payload" >"$2" ;;
        28b52ffd) zstd -dcq "$payload" >"$2" ;;
        *) die "the kernel in ${!versions[*]} is compressed in a way that guest-images/kernel.sh does not know" ;;
    esac
}
