#!/usr/bin/env bash
# For a machine with an NVIDIA GPU: runs every test and bench of the CUDA backend on it and writes
# all that they print into one file.
#   cuda/report.sh [FILE]          cuda-report.txt unless named
set -uo pipefail
cd "$(dirname "$0")/.."
report=${1:-cuda-report.txt}
run() {
  printf '\n== %s\n' "$*"
  "$@"
  local code=$?
  [ "$code" = 0 ] || printf 'FAILED (%s): %s\n' "$code" "$*"
}
everything() {
  date -u
  uname -srm
  git rev-parse HEAD
  run nvidia-smi
  run cargo test --release -p sepal-cuda --locked -- --nocapture
  run cargo test --release --test cuda --all-features --locked -- --nocapture
  run cargo bench --bench distance --features cuda --locked
  if command -v compute-sanitizer >/dev/null; then
    # The suite again, with the accesses, races and barriers of every kernel checked.
    for tool in memcheck racecheck synccheck initcheck; do
      for test in $(cargo test --release -p sepal-cuda --locked --no-run --message-format=json 2>/dev/null |
        grep -o '"executable":"[^"]*"' | cut -d'"' -f4); do
        run compute-sanitizer --tool "$tool" --error-exitcode 1 "$test"
      done
    done
  else
    echo "compute-sanitizer is not installed: it comes with the CUDA toolkit"
  fi
}
everything 2>&1 | tee "$report"
echo "written to $report"
! grep -q '^FAILED' "$report"
