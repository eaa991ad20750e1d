#!/usr/bin/env bash
# What one batch does on an NVIDIA GPU: time by kernel, launches, gaps as a share of the step, as a table and JSON.
#
#   PYTHON=path/to/python bench/gpu_profile.sh [PRECISION [BATCH]]      default: int8 64
#
# The model is bench/gpu.sh's, made where it is missing; OUT, MODELS, MODEL and DEVICE are as there.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
MODELS=${MODELS:-${TMPDIR:-/tmp}/qalign-fast-models}
MODEL=${MODEL:-random:one-align}
DEVICE=${DEVICE:-cuda}
PRECISION=${1:-int8}
BATCH=${2:-64}
export PYTHONPATH=$PWD:$PWD/export:$PWD/kernels:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}

mkdir -p "$OUT" "$MODELS"
if [[ ! -d $MODELS/$PRECISION ]]; then
  timeout 120 "$PYTHON" -m qalign_bench.device_export "$MODEL" "$MODELS/$PRECISION" --precision "$PRECISION" \
    --device "$DEVICE"
fi
timeout 240 "$PYTHON" -m qalign_bench.kernel_times "$MODELS/$PRECISION" --batch "$BATCH" --device "$DEVICE" \
  --json "$OUT/gpu_profile_${PRECISION}_$BATCH.json" --trace "$OUT/gpu_profile_${PRECISION}_$BATCH.trace.json"
