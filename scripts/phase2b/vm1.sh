#!/usr/bin/env bash
# Phase 2b, machine 1: statistics, figures and report (merge the runs/ folders of phase 2a first).
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
PATH="$here/.venv/bin:$PATH"
exec tunescope run "${TUNESCOPE_STUDY:-$here/studies/lora_vs_full.yaml}" --phase 2b --machine vm1 --display plain "$@"
