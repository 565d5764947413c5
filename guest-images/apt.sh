# What the recipes and scripts/need ask of Debian's apt. What is here does not go into an artefact, but
# for the versions, so it is no part of an artefact's key.

# Fills versions[PACKAGE] with what apt would install. Works offline.
declare -A versions=()
resolve_packages() {
    local names line package=
    versions=()
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

# apt shows its progress where there is somebody to see it.
quiet=-qq
[ ! -t 2 ] || quiet=-q=0

# The folder of apt's package lists.
package_lists() {
    local lists
    eval "$(apt-config shell lists Dir::State::lists/d 2>/dev/null)"
    echo "${lists:-/var/lib/apt/lists}"
}

# Updates the package lists, if this user may: a new machine has none, and old ones name versions that are
# gone. One source of several may be out of order, so only the next try shows whether this was good for it.
update_lists() {
    [ -w "$(package_lists)" ] || return 1
    say "updating apt's package lists"
    apt-get update "$quiet" >&2 || true
}

# Fetches the packages to folder $1, in the versions that were resolved.
download_packages() {
    local package wanted=()
    for package in "${!versions[@]}"; do wanted+=("$package=${versions[$package]}"); done
    rm -rf "$1"
    mkdir "$1"
    (cd "$1" && apt-get download "$quiet" -o APT::Sandbox::User=root -o Acquire::Retries=2 "${wanted[@]}" >&2)
}
