# A small kernel made for tinyvmm: Debian's kernel source with `small.config`.
#   vmlinuz    bzImage, LZ4
#   vmlinux    the ELF inside it, stripped, followed by its relocation table, which ELF loaders ignore
#   config, version

. "$here/kernel.sh" # unpack_vmlinux

source=linux-source-6.12

packages() { echo $source; }
source_files() { echo kernel.sh small.config; }
# The source is built with the compiler that is installed: another one makes another kernel.
tools() {
    printf '%s\n' gcc:gcc /usr/bin/make:make flex:flex bison:bison bc:bc perl:perl lz4:lz4 xz:xz-utils \
        /usr/include/stdio.h:libc6-dev /usr/include/gelf.h:libelf-dev
}

make() {
    local out=$1 tree=$work/$source
    unpack_packages "$work/packages"
    # Without most of what only readers and other machines need: their Kconfig files are read here, too.
    tar -xf "$work/packages/usr/src/$source.tar.xz" -C "$work" --anchored --exclude "$source/Documentation/*/*" \
        --exclude "$source/arch/[!x]*.[chS]" --exclude "$source/arch/[!x]*.dts*" --exclude "$source/tools/testing/*"
    patch_acpi "$tree/drivers/acpi/acpica/evhandler.c"
    configure "$tree"
    say "compiling the kernel, which takes minutes"
    # The same bytes whoever builds it, and when: its age is that of its source.
    kernel_make "$tree" -j"$(nproc)" KBUILD_BUILD_USER=tinyvmm KBUILD_BUILD_HOST=tinyvmm \
        KBUILD_BUILD_TIMESTAMP="$(date -u -r "$tree/Makefile")" bzImage >"$work/log" 2>&1 ||
        { tail -n 20 "$work/log"; die "the kernel does not compile"; }
    mkdir "$out"
    mv "$tree/arch/x86/boot/bzImage" "$out/vmlinuz"
    cp "$tree/.config" "$out/config"
    cat "$tree/include/config/kernel.release" >"$out/version"
    unpack_vmlinux "$out/vmlinuz" "$out/vmlinux"
}

kernel_make() { env -u MAKEFLAGS make -C "$@"; }

# What small.config names is on; all else is off, but for what that needs.
configure() {
    local lost
    kernel_make "$1" -s allnoconfig KCONFIG_ALLCONFIG="$here/small.config"
    lost=$(grep '^CONFIG_' "$here/small.config" | grep -vxFf "$1/.config") || true
    [ -z "$lost" ] || die "small.config names options that $source does not take:" $lost
}

# Without CONFIG_PCI, ACPI finds no handler for PCI's address space, and loads no tables at all.
patch_acpi() {
    grep -q '^\sACPI_ADR_SPACE_PCI_CONFIG,$' "$1" || die "$source has changed; is patch_acpi still needed?"
    sed -i '/^\sACPI_ADR_SPACE_PCI_CONFIG,$/d' "$1"
}
