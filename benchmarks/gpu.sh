#!/usr/bin/env bash
# Everything that a GPU is needed for, offline, in three calls of under nine minutes each:
#
#   benchmarks/gpu.sh wheels FOLDER --python 3.12      first, with a network: packages that the GPU's Python lacks
#   benchmarks/gpu.sh check --wheels FOLDER            tests, training, attacks, loader, quickstart
#   benchmarks/gpu.sh reproduce --wheels FOLDER        training from shards, the mini reproduction's headline
#   benchmarks/gpu.sh compile --wheels FOLDER          the step replayed, and through torch.compile in three ways
#
# PYTHON=python3.12 names the interpreter; the checkout's .venv by default, or python3. More in docs/performance.md.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
python="$here/../.venv/bin/python"
[ -x "$python" ] || python=python3
exec "${PYTHON:-$python}" "$here/gpu.py" "$@"
