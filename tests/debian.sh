# Sourced by the checks that need tools of Debian: no root, and nothing is installed.

# Says what is wrong, with the end of what a command printed, and ends the check.
fail() {
    echo "${check:?}: $1" >&2
    [ -z "${2:-}" ] || printf '%s\n' "$2" | tail -n 20 >&2
    exit 1
}

# Package lists under $1, and what the packages $2, and $3 of arm64, need beyond what the system
# has. Of that, whatever belongs to the tools themselves is fetched all the same, so that they come
# whole and of one version.
fetch() {
    mkdir -p "$1"/{lists/partial,cache/archives/partial} || return
    awk -v RS= -v ORS='\n\n' '!/^Package: [^\n]*(rust|cargo|aarch64|arm64|qemu)/' \
        /var/lib/dpkg/status >"$1/status" || return
    cat >"$1/apt.conf" <<CONF
#clear APT::Architectures;
APT::Architectures { "amd64"; ${3:+"arm64";} };
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::Cache "$1/cache";
Dir::State "$1";
Dir::State::status "$1/status";
CONF
    export APT_CONFIG="$1/apt.conf"
    apt-get update &&
        apt-get install --yes --download-only --no-install-recommends $2 &&
        { [ -z "$3" ] || (cd "$1/cache/archives" && apt-get download $3); }
}

# unpack NAME PACKAGES [FOREIGN [COMMAND]] unpacks packages in a folder of their own in the cache,
# once, and sets `prefix` to it. COMMAND, a function of the script with arguments, then adds what is
# built of them, in the folder that it is given as its last argument.
unpack() {
    local name=$1 packages=$2 foreign=${3:-} command=${4:-}
    local cache="${XDG_CACHE_HOME:-$HOME/.cache}/sepal" new output package
    # What is in the folder has another name once it is made in another way.
    local recipe="$packages $foreign${command:+ $command $(declare -f "${command%% *}")}"
    prefix="$cache/$name-$(cksum <<<"$recipe" | cut -d ' ' -f 1)"
    [ ! -d "$prefix" ] || return 0
    [ "$(uname -m)" = x86_64 ] && [ -e /var/lib/dpkg/status ] || fail "needs x86-64 Debian"
    mkdir -p "$cache" || exit
    new=$(mktemp -d "$prefix.XXXXXX") || exit
    trap "rm -rf '$new'" EXIT
    output=$(fetch "$new/apt" "$packages" "$foreign" 2>&1) ||
        fail "cannot fetch $packages $foreign" "$output"
    for package in "$new"/apt/cache/archives/*.deb; do
        output=$(dpkg-deb --extract "$package" "$new" 2>&1) || fail "cannot unpack $package" "$output"
    done
    rm -rf "$new/apt"
    if [ -n "$command" ]; then
        output=$($command "$new" 2>&1) || fail "cannot $command" "$output"
    fi
    # Whole or not at all; another run may have been faster.
    output=$(mv -T "$new" "$prefix" 2>&1) || [ -d "$prefix" ] || fail "cannot keep the tools" "$output"
    echo "$check: fetched $packages $foreign" >&2
}
