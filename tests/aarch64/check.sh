#!/usr/bin/env bash
# Builds the CPU backend for 64-bit Arm and runs all of its tests in an emulator: the only place
# where the NEON kernels run. Needs cargo, x86-64 Debian and its package sources; no root.
#
# A rustup toolchain brings the standard library of its host alone, so compiler and libraries are
# Debian's. All of it is unpacked in a folder of its own, once, and nothing is installed.
set -u
cd "$(dirname "$0")/../.." || exit 1
check=tests/aarch64
. tests/debian.sh
unpack aarch64 "rustc-web gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" \
    libstd-rust-web-dev:arm64
target=aarch64-unknown-linux-gnu

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
