#!/usr/bin/env bash
# Phase 1, machine 2: trains SQuAD v2 and RTE.
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
PATH="$here/.venv/bin:$PATH"
exec tunescope run "${TUNESCOPE_STUDY:-$here/studies/lora_vs_full.yaml}" --phase 1 --machine vm2 --display plain "$@"
