# Kernel, initrd and modules of scripts/kvm-box. Debian's cloud kernels lack 9p, so the amd64 one.

packages() { echo busybox-static; }
base_recipes() { echo kernel-amd64; }
source_files() { echo box-init box-main box-system; }
tools() { printf '%s\n' cpio:cpio depmod:kmod; }

make() {
    local out=$1 kernel=$2 root=$work/root
    mkdir -p "$out" "$root"/{dev,proc,sys,run,job,lower,upper,new,box}
    unpack_packages "$work/packages"
    add_busybox "$work/packages/bin/busybox" "$root"
    ln -s bin "$root/sbin"
    add_modules "$kernel" "$root" virtio_pci virtio_console 9p 9pnet_virtio overlay kvm_amd irqbypass
    cp "$here/box-init" "$root/init"
    cp "$here"/box-{main,system} "$root/bin/busybox" "$root/box/"
    pack_initramfs "$root" "$out/initrd"
    # QEMU enters an ELF directly, which saves unpacking it in the emulated machine.
    cp -l "$kernel/vmlinux" "$out/kernel"
    cp -rl "$kernel/modules/lib/modules" "$out/modules"
}
