#!/usr/bin/env bash
# Builds for microcontrollers, proves at link time that inference there needs no heap and reaches no
# panic, and runs the firmware in an emulator, where what is counted stays within limits.txt. Needs
# cargo and what toolchain.sh says.
set -u
cd "$(dirname "$0")/../.." || exit 1
check=tests/bare-metal
. tests/debian.sh
environment=$(tests/bare-metal/toolchain.sh) || exit 1
eval "$environment"
limits="$PWD/tests/bare-metal/limits.txt"
board=thumbv7em-none-eabihf

# ARMv6-M has no atomics that compare and swap.
for target in $targets; do
    echo "$check: cargo build for $target"
    cargo build --quiet --release --locked --target "$target" --no-default-features \
        -p sepal-core -p sepal-models --features sepal-core/format,sepal-core/f16 ||
        fail "does not build for $target"
done

cd examples/firmware || exit 1
cargo fmt --all --check || fail "the firmware is not formatted"

build() {
    echo "$check: firmware for $*"
    output=$(cargo build --release --locked --target "$@" 2>&1)
}

for target in "$board" thumbv6m-none-eabi; do
    build "$target" --features nopanic --bin reference --bin constant --bin minimal --bin trainer ||
        fail "does not link without panics" "$output"
done
# The proofs themselves: each must be able to fail.
build "$board" --features nopanic,control --bin reference && fail "a panic links, so nothing is proved"
[[ $output == *a_panic_can_be_reached* ]] || fail "a panic fails for another reason" "$output"
build "$board" --features heap --bin reference && fail "a heap links, so nothing is proved"
[[ $output == *"no global memory allocator"* ]] || fail "a heap fails for another reason" "$output"

for target in thumbv6m-none-eabi thumbv8m.main-none-eabihf "$board"; do
    build "$target" || fail "does not build" "$output"
    [[ $output != *"warning: \`sepal-firmware"* ]] || fail "the compiler warns" "$output"
done

# The flash that an image's code and constants take, and its RAM without the stack.
sizes() {
    local name kind size flags flash=0 ram=0
    while read -r name kind size flags; do
        case "$name $kind $flags" in
        .model\ * | .samples\ *) ;;
        *\ PROGBITS\ *W*A*) flash=$((flash + 16#$size)) ram=$((ram + 16#$size)) ;;
        *\ PROGBITS\ *A*) flash=$((flash + 16#$size)) ;;
        *\ NOBITS\ *A*) ram=$((ram + 16#$size)) ;;
        esac
    done < <(readelf --sections --wide "target/$board/release/$1" |
        sed -n 's/^ *\[ *[0-9]*\] //p' | awk '{ print $1, $2, $5, $7 }')
    echo "$1 $flash $ram"
}

# emulate IMAGE [TARGET [OPTION...]]
emulate() {
    timeout 300 cargo run --quiet --release --locked --target "${2:-$board}" --bin "$1" "${@:3}" \
        </dev/null 2>&1
}

for image in empty constant minimal trainer reference; do
    output=$(emulate "$image") || fail "$image ends with status $?" "$output"
    measured+=$(sizes "$image")$'\n'
done
for image in measure tiny; do
    output=$(emulate "$image") || fail "$image ends with status $?" "$output"
    rows=$(grep ^row= <<<"$output")
    again=$(emulate "$image" | grep ^row=)
    [ "$rows" = "$again" ] || fail "two runs are counted differently" "$again"
    printf '%s\n' "$output"
    measured+=$(sed -E 's/[a-z_]+=//g' <<<"$rows" | awk '{ print $1, $2, $5, $6 }')$'\n'
done

# Each is measured, each has its limits, and none is above them.
awk '
    /^#/ || !NF { next }
    NR == FNR { most[$1] = $0; next }
    !($1 in most) { print $1 " is not in limits.txt"; failed = 1; next }
    {
        fields = split(most[$1], limit)
        line = $1 ":"
        for (i = 2; i <= fields; i++) {
            over = $i == "" || $i + 0 > limit[i] + 0
            line = line " " $i (over ? " ABOVE " : " of ") limit[i] (i < fields ? "," : "")
            failed += over
        }
        print line
        delete most[$1]
    }
    END {
        for (name in most) { print name " is not measured"; failed = 1 }
        exit failed > 0
    }
' "$limits" - <<<"$measured" || fail "a limit of limits.txt is exceeded"

# A Cortex-M4F runs the code of ARMv6-M too, whose floating point is software: it only classifies.
for options in "$board" "thumbv6m-none-eabi --features brief"; do
    output=$(emulate demo $options) || fail "demo of $options ends with status $?" "$output"
    echo "$check: demo of $options: ${output##*$'\n'}"
done
