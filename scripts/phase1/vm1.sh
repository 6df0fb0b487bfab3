#!/usr/bin/env bash
# Phase 1, machine 1: trains MRPC and SST-2.
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
PATH="$here/.venv/bin:$PATH"
exec tunescope run "${TUNESCOPE_STUDY:-$here/studies/lora_vs_full.yaml}" --phase 1 --machine vm1 --display plain "$@"
