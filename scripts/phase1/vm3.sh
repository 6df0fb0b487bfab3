#!/usr/bin/env bash
# Phase 1, machine 3: all baselines and base representations.
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
PATH="$here/.venv/bin:$PATH"
exec tunescope run "${TUNESCOPE_STUDY:-$here/studies/lora_vs_full.yaml}" --phase 1 --machine vm3 --display plain "$@"
