#!/usr/bin/env bash
# Phase 2a, machine 2: drift of SQuAD v2 and RTE, and serving (merge the runs/ folders of phase 1 first).
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
PATH="$here/.venv/bin:$PATH"
exec tunescope run "${TUNESCOPE_STUDY:-$here/studies/lora_vs_full.yaml}" --phase 2a --machine vm2 --display plain "$@"
