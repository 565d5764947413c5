# An image as distributions make them for clouds: Debian with systemd, its own kernel, cloud-init and sshd, on ext4 in a GPT.

packages() {
    printf '%s\n' systemd-sysv systemd-resolved dbus udev linux-image-cloud-amd64 initramfs-tools cloud-init locales netplan.io \
        openssh-server sudo iproute2 python3 ca-certificates
}
tools() { printf '%s\n' mmdebstrap:mmdebstrap mke2fs:e2fsprogs sfdisk:fdisk; }

# Fills the root folder $1 further, in the namespace of mmdebstrap, and makes it the file system $2.
finish_root() {
    export MKE2FS_CONFIG=/nonexistent PATH=$PATH:/usr/sbin:/sbin
    echo '/dev/vda1 / ext4 errors=remount-ro 0 1' >"$1/etc/fstab"
    chroot "$1" systemctl enable systemd-networkd systemd-resolved
    ln -sf /run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
    # Each machine makes its own.
    rm -f "$1"/etc/ssh/ssh_host_* && : >"$1/etc/machine-id" && rm -f "$1/etc/hostname"
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/usr/share/{doc,locale,man}
    # Without what is mounted in it.
    mkdir "$1.alone" && mount --bind "$1" "$1.alone"
    mke2fs -q -F -t ext4 -b 4096 -L root -U "$3" -E hash_seed="$3",lazy_itable_init=0 -d "$1.alone" "$2" 1900M
    umount "$1.alone" && rmdir "$1.alone"
}

make() {
    local out=$1 id=74696e79-766d-6d20-6469-736b00000002 sources=() file
    export SOURCE_DATE_EPOCH=1 E2FSPROGS_FAKE_TIME=1
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do [ ! -s "$file" ] || sources+=("$file"); done
    chmod 711 "$images" "$work" # of a namespace's root
    : >"$work/root" && chmod 666 "$work/root"
    printf '%s\n' '#!/bin/bash' 'set -euo pipefail' "$(declare -f finish_root)" "finish_root \"\$1\" '$work/root' $id" \
        >"$work/finish" && chmod 755 "$work/finish"
    mmdebstrap --quiet --variant=minbase --include="$(packages | paste -sd,)" --customize-hook="$work/finish" \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" /dev/null "${sources[@]}" >&2
    truncate -s 1904M "$out"
    PATH=$PATH:/usr/sbin:/sbin sfdisk -q "$out" <<END
label: gpt
label-id: $id
start=2MiB, size=1900MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=$id
END
    dd if="$work/root" of="$out" bs=1M seek=2 conv=notrunc,sparse status=none
}
