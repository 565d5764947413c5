# What scripts/compare runs as a process, in a container and in a machine: one root file system, twice.
#   root/            as a folder
#   image            the same as an ext4 disk of 512 MiB, sparse
#   seccomp.json, containers.conf    what Podman allows a container by default

. "$here/disk.sh" # make_ext4

base_recipes() { :; }
source_files() { echo disk.sh compare-workload compare-init; }
tools() { printf '%s\n' mke2fs:e2fsprogs debugfs:e2fsprogs readelf:binutils; }

# The programs, and all libraries that they depend on: fio brings those of every storage that it knows.
packages() {
    local recurse=(--recurse --no-{pre-depends,recommends,suggests,conflicts,breaks,replaces,enhances})
    printf '%s\n' busybox-static golang-github-containers-common
    LC_ALL=C apt-cache depends "${recurse[@]}" fio mbw openssl 2>/dev/null |
        grep -xE 'fio|mbw|openssl|zlib1g|lib[^:]*' | grep -v python | sort -u
}

make() {
    local out=$1 root=$1/root all=$work/packages folder
    mkdir -p "$root"/{compare,dev,etc/acpi/PWRF,proc,root,run,sys,tmp,var/www} "$root/usr"/{bin,sbin,lib,lib64}
    unpack_packages "$all"
    for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done
    cp "$all"/usr/bin/{fio,mbw,openssl} "$root/usr/bin/"
    cp "$all"/lib64/ld-linux-x86-64.so.2 "$root/usr/lib64/"
    add_libraries "$all" "$root"
    add_busybox "$all/bin/busybox" "$root"
    cp "$here/compare-workload" "$root/compare/workload"
    cp "$here/compare-init" "$root/compare/init"
    printf '#!/bin/sh\nkill $(pidof -s workload); sync; poweroff -f\n' >"$root/etc/acpi/PWRF/00000080"
    chmod +x "$root/etc/acpi/PWRF/00000080"
    echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
    echo root:x:0: >"$root/etc/group"
    echo "the answer" >"$root/var/www/index.html"
    make_ext4 "$root" "$out/image" 512M
    cp "$all"/usr/share/containers/{seccomp.json,containers.conf} "$out/"
}

# Copies the libraries in $1 that the programs in $2 need, and those that these need.
add_libraries() {
    local to=$2/usr/lib/x86_64-linux-gnu name file found=1
    mkdir -p "$to"
    while [ $found = 1 ]; do
        found=0
        for name in $(readelf -d "$2"/usr/bin/* "$to"/* 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u); do
            [ ! -e "$to/$name" ] && [ ! -e "$2/usr/lib64/$name" ] || continue
            file=$(find "$1"/{usr/,}lib -name "$name" | head -n 1)
            [ -n "$file" ] || die "no package has $name"
            cp -L "$file" "$to/$name"
            found=1
        done
    done
}
