# A root file system on ext4, for any kernel: busybox, what Debian's tools say about the machine,
# and the same `init` as in the initramfs.

. "$here/with-agent.sh"

packages() {
    printf '%s\n' busybox-static util-linux dmidecode \
        libc6 libblkid1 libmount1 libsmartcols1 libudev1 libuuid1 libselinux1 libpcre2-8-0
}
base_recipes() { agent_recipe; }
source_files() { echo with-agent.sh init power-button; }
tools() { printf '%s\n' mke2fs:e2fsprogs debugfs:e2fsprogs; }

make() {
    local out=$1 agent=${2:-} root=$work/root all=$work/packages libraries=lib/x86_64-linux-gnu folder
    mkdir -p "$root"/{dev,proc,sys,run,tmp,mnt,root,etc/acpi/PWRF} "$root/usr"/{bin,sbin,$libraries,lib64}
    unpack_packages "$all"
    for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done
    cp -P "$all"/{usr/,}$libraries/*.so* "$root/usr/$libraries/"
    cp -P "$all"/lib64/* "$root/usr/lib64/"
    cp "$all"/{bin/lsblk,bin/findmnt,usr/bin/lscpu} "$root/usr/bin/"
    cp "$all"/{sbin/blkdiscard,sbin/fstrim,usr/sbin/dmidecode} "$root/usr/sbin/"
    add_busybox "$all/bin/busybox" "$root"
    add_agent "$agent" "$root"
    rm "$root/bin/init"
    cp "$here/init" "$root/sbin/init"
    cp "$here/power-button" "$root/etc/acpi/PWRF/00000080"
    make_ext4 "$root" "$out"
}

# Writes folder $1 as a sparse ext4 image of size $3 (64M) to $2: the same bytes wherever and whoever builds it.
make_ext4() {
    local id=74696e79-766d-6d20-6469-736b00000001
    export E2FSPROGS_FAKE_TIME=1 MKE2FS_CONFIG=/nonexistent PATH=$PATH:/usr/sbin:/sbin
    find "$1" -exec touch -h -d @1 {} +
    truncate -s "${3:-64M}" "$2"
    mke2fs -q -F -t ext4 -b 4096 -I 256 -L tinyvmm -U $id -E hash_seed=$id,root_owner=0:0,lazy_itable_init=0 \
        -d "$1" "$2"
    # mke2fs takes owner and times from the files here.
    (cd "$1" && find . -print | LC_ALL=C sort) | while read -r file; do
        for field in uid:0 gid:0 atime:@1 ctime:@1 crtime:@1; do
            echo "set_inode_field \"${file#.}\" ${field%:*} ${field#*:}"
        done
    done | sed 's/""/\//' | debugfs -w -f - "$2" >"$work/debugfs" 2>&1
    ! grep -v -e '^debugfs' "$work/debugfs" || die "cannot set owners in the disk image"
}
