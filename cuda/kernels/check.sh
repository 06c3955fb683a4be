#!/usr/bin/env bash
# Checks that the built-in PTX is what the sources give, and that its machine code keeps its gates.
# Needs Python 3 with venv; the compilers come from PyPI, no driver and no GPU is asked for.
set -euo pipefail
cd "$(dirname "$0")"
venv=../../target/kernels-venv
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
"$venv/bin/python" build.py --check
"$venv/bin/python" gates.py --check
