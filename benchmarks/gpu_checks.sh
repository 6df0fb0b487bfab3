#!/usr/bin/env bash
# The tests that need a CUDA device. CUBLAS_WORKSPACE_CONFIG: cuBLAS is deterministic only if it is set before the first CUDA call.
set -euo pipefail
cd "$(dirname "$0")/.."
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
exec python3 -m pytest -m gpu -q -p no:cacheprovider "${@:-tests/unit/train}"
