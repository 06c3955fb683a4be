#!/usr/bin/env bash
# Proves at link time that decoding, inference, training, deltas in flash, and what keeps samples and
# learns classes from them need no std and no heap and reach no panic, and at run time that they give
# the host's bits. Needs cargo and an x86_64 Linux host; says nothing where all is well.
set -u
cd "$(dirname "$0")" || exit 1
export RUSTFLAGS="-Clink-arg=-nostartfiles -Clink-arg=-nostdlib -Clink-arg=-static -Crelocation-model=static"
target=x86_64-unknown-linux-gnu
binary="${CARGO_TARGET_DIR:-target}/$target/release/sepal-no-std"

build() { cargo build --quiet --release --target "$target" --features "$1" 2>&1; }

fail() {
    echo "tests/no-std: $1" >&2
    [ -z "${2:-}" ] || printf '%s\n' "$2" | tail -n 20 >&2
    exit 1
}

for features in nopanic nopanic,adapt nopanic,flash nopanic,train,write,flash train,write,adapt,flash; do
    output=$(build "$features") || fail "does not link with features '$features'" "$output"
    "$binary" || fail "status $? with features '$features'; src/main.rs says what it means"
done

# The proofs themselves: each must be able to fail.
output=$(build nopanic,control) && fail "a panic links, so nothing is proved"
[[ $output == *a_panic_can_be_reached* ]] || fail "a panic fails for another reason" "$output"
output=$(build std) && fail "std links, so nothing is proved"
[[ $output == *"duplicate lang item"* ]] || fail "std fails for another reason" "$output"
