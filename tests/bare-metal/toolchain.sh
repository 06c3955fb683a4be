#!/usr/bin/env bash
# Prints the environment in which cargo builds for microcontrollers and for WebAssembly, and cargo run
# emulates a board:
#     eval "$(tests/bare-metal/toolchain.sh)"
# A rustup toolchain with the targets installed, and a qemu-system-arm, do as well. This is for
# machines that have neither: compiler, sources of the standard library and emulator are Debian's,
# unpacked in a folder of their own, once (2 minutes, 1.1 GB), beside core and alloc built from the
# sources. Needs cargo, x86-64 Debian and its package sources; no root, and nothing is installed.
set -u
cd "$(dirname "$0")/../.." || exit 1
check=tests/bare-metal
. tests/debian.sh

targets="thumbv7em-none-eabihf thumbv6m-none-eabi thumbv8m.main-none-eabihf riscv32imac-unknown-none-elf"
wasm=wasm32-unknown-unknown

# A rustup toolchain brings the linker of all targets along.
linker=$(env -u RUSTC rustc --print sysroot)/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld
[ -x "$linker" ] || fail "no linker $linker: needs a rustup toolchain"

# What runs the tools in prefix $1 without installing them.
environment() {
    echo "export RUSTC='$1/usr/bin/rustc'"
    echo "export PATH=\"\$PATH:$1/usr/bin\""
    echo "export LD_LIBRARY_PATH='$1/usr/lib/x86_64-linux-gnu:$1/lib/x86_64-linux-gnu'"
}

# build_core_for TARGET... PREFIX leaves core, alloc and what the compiler calls in PREFIX/bare.
# The bitcode is for link-time optimisation; paths that end up in messages are the same everywhere.
build_core_for() {
    local targets=("${@:1:$#-1}") prefix="${!#}" built target libraries
    built="$prefix/built"
    eval "$(environment "$prefix")"
    mkdir -p "$built/src" || return
    printf '#![no_std]\n' >"$built/src/lib.rs"
    cat >"$built/Cargo.toml" <<TOML
[package]
name = "nothing"
version = "0.0.0"
edition = "2024"
[profile.release]
panic = "abort"
[workspace]
TOML
    (cd "$built" && RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$built/target" \
        RUSTFLAGS="-Cembed-bitcode=yes --remap-path-prefix=$prefix=/debian" \
        cargo build --release -Zbuild-std=core,alloc "${targets[@]/#/--target=}") || return
    for target in "${targets[@]}"; do
        libraries="$prefix/bare/lib/rustlib/$target/lib"
        mkdir -p "$libraries" || return
        cp "$built/target/$target/release/deps"/lib{core,alloc,compiler_builtins}-*.rlib \
            "$libraries" || return
    done
    rm -r "$built"
}

unpack bare-metal "rustc-web rust-web-src qemu-system-arm" "" "build_core_for $targets $wasm"

environment "$prefix"
# flags TARGET FLAVOUR, of the linker.
flags() {
    echo "export CARGO_TARGET_$(tr 'a-z.-' 'A-Z__' <<<"$1")_RUSTFLAGS='--sysroot=$prefix/bare -Clinker=$linker -Clinker-flavor=$2'"
}
for target in $targets; do
    flags "$target" ld.lld
done
flags "$wasm" wasm-ld
echo "targets='$targets'"
