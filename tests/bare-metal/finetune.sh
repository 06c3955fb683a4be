#!/usr/bin/env bash
# Fine-tunes on the emulated board for users whom the program finetune has fine-tuned for on the host,
# and fails where the board learns anything else, to the last bit:
#     cargo run --release --example finetune -- MODEL --cases DIR
#     tests/bare-metal/finetune.sh MODEL DIR/0.user...
# Without arguments it does so for one user and a model that it trains for that (seconds, what .ci/run
# calls). Needs what check.sh needs.
set -u
cd "$(dirname "$0")/../.." || exit 1
check=tests/bare-metal/finetune
. tests/debian.sh
environment=$(tests/bare-metal/toolchain.sh) || exit 1

if [ $# -eq 0 ]; then
    made=$(mktemp -d) || exit 1
    trap 'rm -r "$made"' EXIT
    run="cargo run --quiet --release --locked --example"
    $run train -- --model lenet5 --images 512 --epochs 2 --head-epochs 5 --no-control \
        --save "$made/model.sepal" >/dev/null 2>&1 || fail "the host does not train"
    $run finetune -- "$made/model.sepal" --seeds 1 --updates 5 --head-updates 10 --tested 50 \
        --cases "$made" >/dev/null || fail "the host does not fine-tune"
    set -- "$made/model.sepal" "$made/0.user"
fi
model=$(realpath "$1") || exit 1
users=()
for user in "${@:2}"; do
    users+=("$(realpath "$user")") || exit 1
done

# QEMU lays the files into the memory that stands for a second flash.
eval "$environment"
cd examples/firmware || exit 1
for user in "${users[@]}"; do
    output=$(timeout 1500 cargo run --quiet --release --locked --bin finetune -- \
        -device "loader,file=$model,addr=0x21000000,force-raw=on" \
        -device "loader,file=$user,addr=0x21100000,force-raw=on" </dev/null 2>&1) ||
        fail "$user: status $?" "$output"
    echo "$check: ${user##*/}: as on the host: $output"
done
