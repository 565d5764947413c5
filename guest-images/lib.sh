# Shared by `build` and the recipes. A recipe defines
#   packages        the Debian packages it unpacks, one a line
#   make OUT [BASE...]
# and may override the three below.

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

# Fills versions[PACKAGE] with what apt would install. Works offline.
declare -A versions=()
resolve_packages() {
    local names line package=
    names=$(packages) && [ -n "$names" ] || return 1
    while read -r line; do
        case $line in
            Candidate:\ \(none\)) return 1 ;;
            Candidate:*) versions[$package]=${line#*: } ;;
            *:) package=${line%:} ;;
        esac
    done < <(LC_ALL=C apt-cache policy $names 2>/dev/null)
    [ ${#versions[@]} = "$(wc -w <<<"$names")" ]
}

# The package that meta package $1 stands for today.
meta_target() { LC_ALL=C apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: //p' | head -n 1; }

# Runs "$@" and, if it fails, once more with apt's package lists updated, as only root can: a new machine has none.
with_fresh_lists() {
    "$@" && return
    [ "$(id -u)" = 0 ] || return 1
    say "updating apt's package lists"
    apt-get update -qq >&2 && "$@"
}

# Installs the commands that the recipe lacks, or says how to.
need_commands() {
    local tool missing=()
    for tool in $(tools); do
        PATH=$PATH:/usr/sbin:/sbin command -v "${tool%:*}" >/dev/null || [ -e "${tool%:*}" ] ||
            missing+=("${tool#*:}")
    done
    [ ${#missing[@]} = 0 ] && return
    [ "$(id -u)" = 0 ] || die "missing tools; run: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    with_fresh_lists env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >&2 ||
        die "cannot install ${missing[*]}; run 'apt-get update' first"
}

# Unpacks the recipe's packages into folder $1 without installing them.
unpack_packages() {
    local download=$work/download package wanted=()
    for package in "${!versions[@]}"; do wanted+=("$package=${versions[$package]}"); done
    mkdir -p "$download" "$1"
    (cd "$download" && apt-get download -qq -o APT::Sandbox::User=root "${wanted[@]}") ||
        die "cannot download ${wanted[*]}; run 'apt-get update'"
    for package in "$download"/*.deb; do dpkg-deb -x "$package" "$1"; done
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
