# Shared by `build` and the recipes. A recipe defines
#   packages        the Debian packages it unpacks, one a line
#   make OUT [BASE...]
# and may override the three below, or what gets the packages.

base_recipes() { :; } # artefacts it starts from, handed to make as BASE
source_files() { :; } # further files of this folder that go into it
tools() { :; }        # commands it runs, or files it needs, that may be missing, as COMMAND:PACKAGE

say() { echo "guest-images: $*" >&2; }
die() { say "$@"; exit 1; }
hash() { sha256sum | cut -c1-16; }

# The artefact that an earlier build noted in file $1, if it still exists.
remembered() {
    local artefact
    artefact=$(cat "$1" 2>/dev/null) && [ -e "$artefact" ] && echo "$artefact"
}

# Installs the commands that the recipe lacks, or says how to.
need_commands() {
    # shellcheck disable=SC2046 # one word for each
    "$here/../scripts/need" $(tools)
}

# Unpacks the packages into folder $1 without installing them.
unpack_packages() {
    local package
    mkdir -p "$1"
    for package in "$work"/download/*.deb; do dpkg-deb -x "$package" "$1"; done
}

# Puts busybox $1 into root folder $2, with links for all its commands that are not there yet.
add_busybox() {
    local root=$2 name
    mkdir -p "$root/bin"
    cp "$1" "$root/bin/busybox"
    for name in $("$1" --list); do
        [ -n "$(find -H "$root"/{,usr/}{,s}bin -name "$name" 2>/dev/null)" ] || ln -s busybox "$root/bin/$name"
    done
}

# Copies modules $3... of kernel artefact $1, and those they depend on, into root folder $2.
# A module that the kernel has built in, or does not have at all, is left out.
add_modules() {
    local kernel=$1 root=$2 version module name path
    shift 2
    version=$(cat "$kernel/version")
    local from=$kernel/modules/lib/modules/$version to=$root/lib/modules/$version
    for name; do
        # A line of modules.dep is a module and everything it depends on.
        for module in $(grep -E "^[^:]*/${name//[-_]/[-_]}\.ko(\.xz)?:" "$from/modules.dep" | tr -d :); do
            path=$to/${module%.xz}
            mkdir -p "$(dirname "$path")"
            case $module in
                *.xz) xz -dc "$from/$module" >"$path" ;;
                *) cp "$from/$module" "$path" ;;
            esac
        done
    done
    touch "$to"/modules.{order,builtin,builtin.modinfo}
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$root" "$version"
    # busybox reads the text forms.
    find "$to" -maxdepth 1 -type f ! -name modules.dep ! -name modules.alias -delete
}

# Writes folder $1 as an initramfs to file $2: the same bytes wherever and whoever builds it.
# Not compressed: unpacking costs a boot more than reading these few megabytes does.
pack_initramfs() {
    (
        cd "$1"
        find . -exec touch -h -d @0 {} +
        find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible
    ) >"$2"
}
