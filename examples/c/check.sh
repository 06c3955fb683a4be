#!/usr/bin/env bash
# Builds the static library for the host and for microcontrollers, proves at link time that it needs
# nothing from outside and reaches no panic, and runs C programs with it. Needs cargo, gcc and what
# tests/bare-metal/toolchain.sh says.
set -u
cd "$(dirname "$0")/../.." || exit 1
check=examples/c
. tests/debian.sh
golden="$PWD/tests/golden/format-v1"
host=x86_64-unknown-linux-gnu
cd examples/c || exit 1
target="${CARGO_TARGET_DIR:-$PWD/target}"
programs="$target/programs"
mkdir -p "$programs" || exit 1

build() {
    output=$(cargo build --release --locked --target "$@" 2>&1)
}

# compile PROGRAM OPTION...
compile() {
    output=$(gcc -std=c99 -O1 -Wall -Wextra -Werror -pedantic -Iinclude "${@:2}" \
        "programs/$1.c" "$target/$host/release/libsepal.a" -Wl,--gc-sections \
        -o "$programs/$1" 2>&1)
}

run() {
    output=$(timeout 300 "$programs/$@" 2>&1) || fail "$1 ends with status $?" "$output"
    [ -z "$output" ] || printf '%s\n' "$output" | sed "s|^|$check: $1: |"
}

cargo fmt --check || fail "not formatted"
output=$(cargo clippy --release --locked -- -D warnings 2>&1) || fail "clippy warns" "$output"

# The proof itself must be able to fail.
build "$host" --features nopanic,control || fail "does not build" "$output"
compile main -Wl,--undefined=sepal_control && fail "a panic links, so nothing is proved"
[[ $output == *a_panic_can_be_reached* ]] || fail "a panic fails for another reason" "$output"

build "$host" --features nopanic || fail "does not build" "$output"
functions=$(sed -n 's/^[a-z].*[ *]\(sepal_[a-z_]*\)(.*/\1/p' include/sepal.h)
[ -n "$functions" ] || fail "sepal.h declares nothing"
undefined=$(printf -- '-Wl,--undefined=%s ' $functions)

environment=$("$OLDPWD/tests/bare-metal/toolchain.sh") || exit 1
# LeNet-5, trained while it is built, with a sample and what the Rust library makes of it.
made=$(eval "$environment" && cd ../firmware &&
    cargo build --release --locked --target thumbv7em-none-eabihf -p sepal-firmware-model \
        --message-format=json 2>/dev/null |
    sed -n 's/.*sepal-firmware-model.*"out_dir":"\([^"]*\)".*/\1/p')
[ -f "$made/lenet5.sepal" ] || fail "there is no trained model"
head -c 784 "$made/samples" >"$programs/sample" && head -c 40 "$made/logits" >"$programs/logits" ||
    fail "there is no sample"

for options in "" "-fsanitize=address,undefined -fno-sanitize-recover=all"; do
    for program in main test; do
        compile "$program" $undefined $options || fail "$program does not link" "$output"
    done
    run main "$golden.sepal" "$golden.sample" "$golden.logits"
    run main "$made/lenet5.sepal" "$programs/sample" "$programs/logits"
    run main "$made/lenet5-int8.sepal" "$programs/sample" "$made/logits-int8"
    run test "$golden.sepal" "$golden.sample"
done

eval "$environment"
linker=$(env -u RUSTC rustc --print sysroot)/lib/rustlib/$host/bin/rust-lld
# The most bytes of flash that all calls take; some percent are left for other compilers.
declare -A most=([thumbv7em-none-eabihf]=154000 [thumbv6m-none-eabi]=172000
    [thumbv8m.main-none-eabihf]=154000 [riscv32imac-unknown-none-elf]=168000)
for board in "${!most[@]}"; do
    build "$board" --features nopanic || fail "does not build for $board" "$output"
    # Nothing may be undefined, with no other library beside it.
    output=$("$linker" -flavor gnu --gc-sections --entry=sepal_open \
        $(printf -- '--undefined=%s ' $functions) "$target/$board/release/libsepal.a" \
        -o "$programs/$board.elf" 2>&1) || fail "needs something from outside on $board" "$output"
    flash=0
    while read -r name size flags; do
        [[ $flags == *A* ]] || continue
        # All state is the caller's.
        [[ $flags != *W* || $((16#$size)) = 0 ]] || fail "keeps state of its own on $board" "$name"
        flash=$((flash + 16#$size))
    done < <(readelf --sections --wide "$programs/$board.elf" |
        sed -n 's/^ *\[ *[1-9][0-9]*\] //p' | awk '{ print $1, $5, $7 }')
    [ "$flash" -gt 1000 ] || fail "readelf does not tell the sizes for $board"
    echo "$check: $board: $flash of ${most[$board]} bytes of flash for all calls"
    [ "$flash" -le "${most[$board]}" ] || fail "is too large on $board"
done
