#!/usr/bin/env bash
# Builds the CPU backend for 64-bit Arm and runs all of its tests in an emulator: the only place
# where the NEON kernels run. Needs cargo, x86-64 Debian and its package sources; no root.
#
# A rustup toolchain brings the standard library of its host alone, so compiler and libraries are
# Debian's. All of it is unpacked in a folder of its own, once, and nothing is installed.
set -u
cd "$(dirname "$0")/../.." || exit 1
packages="rustc-web gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
foreign="libstd-rust-web-dev:arm64"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/sepal"
prefix="$cache/aarch64-$(cksum <<<"$packages $foreign" | cut -d ' ' -f 1)"
target=aarch64-unknown-linux-gnu

fail() {
    echo "tests/aarch64: $1" >&2
    [ -z "${2:-}" ] || printf '%s\n' "$2" | tail -n 20 >&2
    exit 1
}

# Package lists of both architectures, under $1, and what the packages need beyond what the system
# has. Of that, whatever belongs to the tools themselves is fetched all the same, so that they come
# whole and of one version.
fetch() {
    mkdir -p "$1"/{lists/partial,cache/archives/partial} || return
    awk -v RS= -v ORS='\n\n' '!/^Package: [^\n]*(rust|cargo|aarch64|arm64|qemu-user)/' \
        /var/lib/dpkg/status >"$1/status" || return
    cat >"$1/apt.conf" <<END
#clear APT::Architectures;
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::Cache "$1/cache";
Dir::State "$1";
Dir::State::status "$1/status";
END
    export APT_CONFIG="$1/apt.conf"
    apt-get update &&
        apt-get install --yes --download-only --no-install-recommends $packages &&
        (cd "$1/cache/archives" && apt-get download $foreign)
}

if [ ! -d "$prefix" ]; then
    [ "$(uname -m)" = x86_64 ] && [ -e /var/lib/dpkg/status ] || fail "needs x86-64 Debian"
    mkdir -p "$cache" || exit
    new=$(mktemp -d "$prefix.XXXXXX") || exit
    trap 'rm -rf "$new"' EXIT
    output=$(fetch "$new/apt" 2>&1) || fail "cannot fetch $packages $foreign" "$output"
    for package in "$new"/apt/cache/archives/*.deb; do
        output=$(dpkg-deb --extract "$package" "$new" 2>&1) || fail "cannot unpack $package" "$output"
    done
    rm -rf "$new/apt"
    # Whole or not at all; another run may have been faster.
    output=$(mv -T "$new" "$prefix" 2>&1) || [ -d "$prefix" ] || fail "cannot keep the tools" "$output"
    echo "tests/aarch64: fetched $packages $foreign"
fi

export PATH="$PATH:$prefix/usr/bin"
export LD_LIBRARY_PATH="$prefix/usr/lib/x86_64-linux-gnu:$prefix/lib/x86_64-linux-gnu"
export RUSTC="$prefix/usr/bin/rustc"
export RUSTFLAGS="-Clinker=aarch64-linux-gnu-gcc -Clink-arg=--sysroot=$prefix"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $prefix/usr/aarch64-linux-gnu"
# Optimised, since the emulator is slow, but with the checks of a debug build.
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true

run() {
    echo "tests/aarch64: cargo test $*"
    cargo test --release --locked --target "$target" "$@" || fail "a test fails"
}

"$RUSTC" --version || fail "the compiler does not start"
qemu-aarch64 --version | head -n 1
run -p sepal-cpu --all-features --lib --tests
run -p sepal-conformance --test cpu

# The tests go over every set of the machine: NEON must be one, or nothing is proved.
every_set=arch::tests::every_set_computes_as_plain_numbers_do
output=$(run -p sepal-cpu --all-features --lib -- --exact "$every_set" --nocapture 2>&1)
grep -qx neon <<<"$output" || fail "$every_set does not run with NEON" "$output"
echo "tests/aarch64: every test passes, with NEON among the sets"
