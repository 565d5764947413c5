# A root file system to install tinyvmm's packages in (tests/release.rs): Debian's shells with their completions, man
# and dpkg, unpacked and never configured; everything else is busybox.

packages() {
    printf '%s\n' busybox-static libc6 libc-bin \
        bash bash-completion zsh zsh-common fish fish-common man-db groff-base bsdextrautils dpkg tar \
        libacl1 libbz2-1.0 libcap2 libgcc-s1 libgdbm6 liblzma5 libmd0 libpcre2-8-0 libpcre2-32-0 libpipeline1 \
        libseccomp2 libselinux1 libstdc++6 libtinfo6 libuchardet0 libzstd1 zlib1g
}

make() {
    local root=$1
    mkdir -p "$root"/{dev,proc,root,tmp,usr/local,var/lib/dpkg/{info,updates}}
    unpack_packages "$root"
    mv "$root/bin/busybox" "$work/"
    add_busybox "$work/busybox" "$root"
    echo root:x:0:0:root:/root:/bin/bash >"$root/etc/passwd"
    echo root:x:0: >"$root/etc/group"
    touch "$root/var/lib/dpkg/status"
    rm -rf "$root"/usr/share/{doc,locale,info,lintian}
}
