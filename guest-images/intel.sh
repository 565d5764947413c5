# What Bochs boots for scripts/kvm-box --intel: the boot loader, kernel and initrd of a CD-ROM, in isolinux/, and modules.
# A cloud kernel, which is smaller and unpacks quicker than the amd64 one.

packages() { printf '%s\n' busybox-static isolinux syslinux-common; }
base_recipes() { echo kernel-cloud; }
source_files() { echo intel-init intel-main box-system; }
tools() { printf '%s\n' cpio:cpio depmod:kmod; }

make() {
    local out=$1/isolinux kernel=$2 root=$work/root
    mkdir -p "$out" "$root"/{dev,proc,sys,run,lower,upper,new,box}
    unpack_packages "$work/packages"
    add_busybox "$work/packages/bin/busybox" "$root"
    ln -s bin "$root/sbin"
    add_modules "$kernel" "$root" ata_piix sd_mod isofs overlay kvm_intel irqbypass
    install -m 755 "$here/intel-init" "$root/init"
    cp "$here/intel-main" "$here/box-system" "$root/bin/busybox" "$root/box/"
    pack_initramfs "$root" "$out/initrd"
    cp -l "$kernel/vmlinuz" "$out/kernel"
    cp "$work/packages/usr/lib/ISOLINUX/isolinux.bin" "$work/packages/usr/lib/syslinux/modules/bios/ldlinux.c32" "$out/"
    # All output takes its time at 115,200 baud, so the kernel's is little. A triple fault ends Bochs.
    cat >"$out/isolinux.cfg" <<-END
	DEFAULT box
	LABEL box
	KERNEL kernel
	INITRD initrd
	APPEND console=ttyS0,115200 quiet reboot=t panic=-1 mitigations=off tsc=reliable cryptomgr.notests
	END
}
