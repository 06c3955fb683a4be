#!/usr/bin/env bash
# Builds the page: the module for WebAssembly, of which it proves at link time that no panic is
# reached and nothing is imported, and one HTML file with the module in it. Runs the page's code in node
# as a user who draws, and fails where the host learns anything else of the same drawings, to the last
# bit. Needs cargo, node and what tests/bare-metal/toolchain.sh says.
set -u
cd "$(dirname "$0")/../.." || exit 1
check=examples/browser
. tests/debian.sh
command -v node >/dev/null || fail "needs node"
environment=$(tests/bare-metal/toolchain.sh) || exit 1
cd examples/browser || exit 1
target="${CARGO_TARGET_DIR:-$PWD/target}"
module="$target/wasm32-unknown-unknown/release/sepal_browser.wasm"
# The most bytes of the module; some percent are left for other compilers.
most=170000

cargo fmt --check || fail "not formatted"
output=$(cargo clippy --release --locked -- -D warnings 2>&1) || fail "clippy warns" "$output"

build() {
    output=$(eval "$environment" &&
        cargo build --release --locked --lib --target wasm32-unknown-unknown "$@" 2>&1) ||
        fail "does not build" "$output"
    [[ $output != *"warning: \`sepal-browser"* ]] || fail "the compiler warns" "$output"
    imports=$(node -p 'WebAssembly.Module.imports(new WebAssembly.Module(
        require("fs").readFileSync(process.argv[1]))).map(({ name }) => name).join(" ")' "$module") ||
        fail "is no module"
}

# The proof itself must be able to fail.
build --features nopanic,control
[ "$imports" = a_panic_can_be_reached ] || fail "a panic links, so nothing is proved" "$imports"
build --features nopanic
[ -z "$imports" ] || fail "imports $imports"

made=$(mktemp -d) || exit 1
trap 'rm -r "$made"' EXIT
output=$(timeout 120 node test.mjs index.html "$module" "$made" 2>&1) || fail "the user fails" "$output"
printf '%s\n' "$output" | sed "s|^|$check: |"
output=$(cargo build --release --locked --bin replay 2>&1) || fail "the host does not build" "$output"
timeout 120 "$target/release/replay" "$made" >"$made/host" || fail "the host does not learn"
cmp "$made/host" "$made/learnt" || fail "the host learns something else"
echo "$check: the host learns the same bits"
bytes=$(wc -c <"$module")
[ "$bytes" -le "$most" ] || fail "the module has $bytes bytes, expected at most $most"

# One file, which opens without a server.
text=$(base64 -w 0 "$module") || exit 1
page="$target/sepal.html"
awk -v module=<(printf '%s' "$text") '
    /id="wasm"/ { getline text <module; sub(/<\/script>/, text "</script>"); found = 1 }
    { print }
    END { exit !found }
' index.html >"$page" || fail "index.html has no place for the module"
echo "$check: $bytes of $most bytes; $page"
