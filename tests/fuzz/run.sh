#!/usr/bin/env bash
# Builds the fuzzers and runs some: run.sh SECONDS [TARGET...]. Needs a C++ compiler. What a run finds lies in
# target/artifacts, what it learnt in target/corpus; `cargo fuzz run --fuzz-dir tests/fuzz TARGET` does the same.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?seconds for each target}
shift
# The flags of cargo-fuzz. AddressSanitizer is an unstable flag, which the variable lets a stable compiler take.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Zsanitizer=address -Ccodegen-units=1"
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --locked --target "$host"
export ASAN_OPTIONS=detect_odr_violation=0:allocator_may_return_null=1 RAYON_NUM_THREADS=1
[ -d /dev/shm ] && export TMPDIR=/dev/shm
[ $# -gt 0 ] || set -- $(ls fuzz_targets | sed 's/\.rs$//')
for target; do
  mkdir -p "target/corpus/$target" target/artifacts
  dictionary=(); [ ! -f "dictionaries/$target.dict" ] || dictionary=("-dict=dictionaries/$target.dict")
  "target/$host/release/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -max_len=8192 -print_final_stats=1 \
    -artifact_prefix="target/artifacts/$target-" "${dictionary[@]}" "target/corpus/$target" "corpus/$target"
done
