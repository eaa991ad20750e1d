#!/usr/bin/env bash
# Checks and measures this project on an NVIDIA GPU, in under nine minutes:
#
#   PYTHON=path/to/python bench/gpu.sh [PART ...]
#
#   tests    every Triton kernel against its contract, and the CUDA engine, on the device
#   tune     tiles of the model's matrix products beside torch's own; the fastest go into triton_tiles.json
#   engine   pictures a second at full size (random weights, made on the device), by precision and batch
#   peer     upstream's way beside ours in one run: its own code where QALIGN_UPSTREAM is a checkout of Q-Align (with
#            QALIGN_UPSTREAM_PYTHON for what it needs), else hf-eager
#
# All parts by default; one that fails does not stop the next, and the status is then 1. PYTHON (python3) has torch for
# CUDA, and pytest, safetensors, Pillow, typer, rich, onnx; the package need not be installed in it.
#
#   OUT      where JSON and logs go; default bench/results
#   MODELS   where models are kept, 29 GB; default below TMPDIR
#   DEVICE, MODEL   cuda and random:one-align; to try the script without a GPU:
#                   DEVICE=cpu MODEL=random:tests/golden/narrow-112 OUT=/tmp/out MODELS=/tmp/models bench/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
MODELS=${MODELS:-${TMPDIR:-/tmp}/qalign-fast-models}
DEVICE=${DEVICE:-cuda}
MODEL=${MODEL:-random:one-align}
PRECISIONS=(int8 int4 fp16)
BATCHES=(--batch 1 --batch 8 --batch 64)
TUNE=(--table)
export PYTHONPATH=$PWD:$PWD/export:$PWD/kernels:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}
FAILED=()

# limited SECONDS NAME COMMAND ...: runs it, its stderr in a log, and remembers a failure. At the end of its time it is
# interrupted, at which a bench prints what it has
limited() {
  local seconds=$1 name=$2 status=0
  shift 2
  echo "== $name" >&2
  timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>"$OUT/gpu_$name.log" || status=$?
  if ((status)); then
    FAILED+=("$name: status $status$( ((status == 124)) && echo ", over its $seconds s")")
    tail -n 5 "$OUT/gpu_$name.log" >&2
  fi
  return "$status"
}

tests() {
  # what is compiled ahead for other GPUs is tested everywhere, and takes minutes
  limited 110 tests "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_triton.py tests/test_cuda_engine.py \
    -k "not compiled and not tensor_cores" --durations 5
}

tune() {
  limited 80 tune "$PYTHON" -m qalign_bench.tune --device "$DEVICE" --seconds 55 --json "$OUT/gpu_tune.json" "${TUNE[@]}"
  cp kernels/qalign_kernels/triton_tiles.json "$OUT/gpu_triton_tiles.json"
}

# model PRECISION: makes $MODELS/PRECISION unless it is there
model() {
  [[ -d $MODELS/$1 ]] ||
    limited 20 "model_$1" "$PYTHON" -m qalign_bench.device_export "$MODEL" "$MODELS/$1" --precision "$1" --device "$DEVICE"
}

# throughput SECONDS NAME PRECISION OPTION ...: leaves $OUT/gpu_NAME.json
throughput() {
  local seconds=$1 name=$2 precision=$3
  shift 3
  model "$precision" &&
    limited "$seconds" "$name" "$PYTHON" -m qalign_fast.cli bench throughput --model "$MODELS/$precision" --engine torch \
      --device "$DEVICE" --json "$@" >"$OUT/gpu_$name.json"
}

engine() {
  local precision
  for precision in "${PRECISIONS[@]}"; do
    throughput 50 "throughput_$precision" "$precision" "${BATCHES[@]}" --repeat 60
  done
}

peer() {
  local peer=hf-eager
  [[ -n ${QALIGN_UPSTREAM:-} ]] && peer=upstream=$QALIGN_UPSTREAM
  throughput 130 peer "${PRECISIONS[0]}" "${BATCHES[@]}" --repeat 30 --peer "$peer" \
    --peer-python "${QALIGN_UPSTREAM_PYTHON:-$PYTHON}"
}

# A line for each run of every JSON file of this script
summary() {
  "$PYTHON" - "$OUT"/gpu_throughput_*.json "$OUT"/gpu_peer.json <<'PYTHON'
import json
import sys
from pathlib import Path

print(f"{'contestant':34} {'batch':>5} {'pictures/s':>11} {'ms':>9} {'GB there':>9} {'of the peak':>11}")
for path in map(Path, sys.argv[1:]):
    if not path.is_file() or not path.stat().st_size:
        continue
    for run in json.loads(path.read_text())["runs"]:
        memory, share = run["peak_memory_bytes"]["device"], run["peak_share"]
        gb, part = (f"{memory / 1e9:.2f}" if memory else "-"), (f"{100 * share:.0f} %" if share else "-")
        name = f"{run['contestant']}, {run['kernels'] or run['precision']}"[:34]
        print(f"{name:34} {run['batch']:5} {run['images_per_second']:11.1f} {run['ms_p50']:9.2f} {gb:>9} {part:>11}")
PYTHON
}

"$PYTHON" -c "import onnx, PIL, pytest, rich, safetensors, torch, triton, typer" || exit 2
if [[ $DEVICE == cpu ]]; then
  export TRITON_INTERPRET=1
  BATCHES=(--batch 1 --batch 2)
  TUNE=(--batch 1)
elif ! "$PYTHON" -c "import sys; from qalign_fast.devices import device_problem; sys.exit(device_problem('$DEVICE'))"; then
  exit 2
else
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv >&2
fi
mkdir -p "$OUT" "$MODELS"
OUT=$(cd "$OUT" && pwd)

PARTS=("$@")
((${#PARTS[@]})) || PARTS=(tests tune engine peer)
for part in "${PARTS[@]}"; do
  case $part in
    tests | tune | engine | peer) "$part" ;;
    *)
      echo "no part $part; there are: tests, tune, engine, peer" >&2
      exit 2
      ;;
  esac
done

summary
if ((${#FAILED[@]})); then
  printf 'failed: %s\n' "${FAILED[@]}" >&2
  exit 1
fi
