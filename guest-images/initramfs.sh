# An initramfs for kernel-FLAVOUR: busybox, drivers for virtual machines, and `init`.

. "$here/with-agent.sh"

packages() { echo busybox-static; }
base_recipes() { echo "kernel-$flavour" && agent_recipe; }
source_files() { echo with-agent.sh init lease power-button tell.s; }
tools() { printf '%s\n' as:binutils cpio:cpio depmod:kmod xz:xz-utils; }

make() {
    local out=$1 kernel=$2 agent=${3:-} root=$work/root
    mkdir -p "$root"/{dev,proc,sys,run,tmp,mnt,etc/acpi/PWRF,etc/udhcpc}
    unpack_packages "$work/packages"
    add_busybox "$work/packages/bin/busybox" "$root"
    ln -s bin "$root/sbin"
    [ ! -d "$kernel/modules" ] || add_modules "$kernel" "$root" virtio_mmio virtio_pci virtio_blk virtio_net af_packet virtio_console virtio_rng \
        virtio_balloon virtio_mem virtiofs vmw_vsock_virtio_transport ext4 crc32c_generic crc32c_intel button evdev pvpanic_mmio
    cp "$here/init" "$root/init"
    as -msyntax=intel -mnaked-reg -o "$work/tell.o" "$here/tell.s"
    objcopy -O binary -j .rodata.tell "$work/tell.o" "$root/bin/tell"
    chmod +x "$root/bin/tell"
    add_agent "$agent" "$root"
    cp "$here/lease" "$root/etc/udhcpc/default.script"
    cp "$here/power-button" "$root/etc/acpi/PWRF/00000080"
    pack_initramfs "$root" "$out"
}
