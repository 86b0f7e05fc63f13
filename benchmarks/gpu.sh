#!/usr/bin/env bash
# Measure training, evaluation and search on one GPU within 8 minutes, without network. Needs a checkout with its environment.
#
#   FLICKR8K_ROOT=/folder benchmarks/gpu.sh gpu.json           # photographs; without FLICKR8K_ROOT, generated scenes
#   benchmarks/gpu.sh --mini gpu.json                          # the same in miniature, also on a CPU
#   benchmarks/gpu.sh --pack /folder part                      # copy at most 55 MiB of Flickr8k, for FLICKR8K_ROOT elsewhere
#   benchmarks/gpu.sh --tables gpu.json                        # print the tables of docs/performance.md
#
# PYTHON is the interpreter, by default that of .venv. Further options: benchmarks/gpu.sh --help
set -euo pipefail
python=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
export HF_HUB_OFFLINE=1 PYTHONPATH="$(cd "$(dirname "$0")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$(dirname "$0")/bench_gpu.py" "$@"
