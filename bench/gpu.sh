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
#   budget   a batch's time by operation, beside the least that the device's arithmetic and memory allow
#   onnx     as engine, on onnxruntime's CUDA provider in fp16: only where it is named, for its graphs take minutes to
#            write, and PYTHON must have onnxruntime-gpu
#
# All but the last by default; one that fails does not stop the next, and the status is then 1. PYTHON (python3) has torch
# for CUDA, and pytest, safetensors, Pillow, typer, rich, onnx; the package need not be installed in it.
#
#   OUT      where JSON and logs go; default bench/results
#   MODELS   where models are kept, 37 GB (onnx: 17 more); default below TMPDIR
#   DEVICE, MODEL   cuda and random:one-align; to try the script without a GPU:
#                   DEVICE=cpu MODEL=random:tests/golden/narrow-112 OUT=/tmp/out MODELS=/tmp/models bench/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
MODELS=${MODELS:-${TMPDIR:-/tmp}/qalign-fast-models}
DEVICE=${DEVICE:-cuda}
MODEL=${MODEL:-random:one-align}
PRECISIONS=(int8 int4 fp16)  # and fp8 where the device has it
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
  limited 95 tests "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_triton.py tests/test_cuda_engine.py \
    -k "not compiled and not tensor_cores" --durations 5
}

tune() {
  limited 65 tune "$PYTHON" -m qalign_bench.tune --device "$DEVICE" --seconds 45 --json "$OUT/gpu_tune.json" "${TUNE[@]}"
  cp kernels/qalign_kernels/triton_tiles.json "$OUT/gpu_triton_tiles.json"
}

# model SECONDS NAME OPTION ...: makes $MODELS/NAME unless it is there
model() {
  local seconds=$1 name=$2
  shift 2
  [[ -d $MODELS/$name ]] ||
    limited "$seconds" "model_$name" "$PYTHON" -m qalign_bench.device_export "$MODEL" "$MODELS/$name" --device "$DEVICE" "$@"
}

# throughput SECONDS NAME PRECISION OPTION ...: leaves $OUT/gpu_NAME.json
throughput() {
  local seconds=$1 name=$2 precision=$3
  shift 3
  model 15 "$precision" --precision "$precision" && measure "$seconds" "$name" "$precision" --engine torch "$@"
}

# measure SECONDS NAME MODEL OPTION ...
measure() {
  local seconds=$1 name=$2 model=$3
  shift 3
  limited "$seconds" "$name" "$PYTHON" -m qalign_fast.cli bench throughput --model "$MODELS/$model" --device "$DEVICE" \
    --json "$@" >"$OUT/gpu_$name.json"
}

engine() {
  local precision
  for precision in "${PRECISIONS[@]}"; do
    throughput 40 "throughput_$precision" "$precision" "${BATCHES[@]}" --repeat 40
  done
}

peer() {
  local peer=hf-eager
  [[ -n ${QALIGN_UPSTREAM:-} ]] && peer=upstream=$QALIGN_UPSTREAM
  throughput 100 peer "${PRECISIONS[0]}" "${BATCHES[@]}" --repeat 20 --peer "$peer" \
    --peer-python "${QALIGN_UPSTREAM_PYTHON:-$PYTHON}"
}

budget() {
  local precision batch
  rm -f "$OUT/gpu_budget.json"
  for precision in "${PRECISIONS[@]:0:1}" fp16; do
    for batch in 1 "${BATCHES[-1]}"; do
      model 15 "$precision" --precision "$precision" &&
        limited 15 "budget_${precision}_$batch" "$PYTHON" -m qalign_bench.budget "$MODELS/$precision" --device "$DEVICE" \
          --batch "$batch" --json "$OUT/gpu_budget.json" >"$OUT/gpu_budget_${precision}_$batch.md"
    done
  done
}

onnx() {
  model 400 fp16-onnx --precision fp16 --engine onnx-cuda &&
    measure 120 throughput_onnx fp16-onnx --engine onnx-cuda "${BATCHES[@]}" --repeat 60
}

# A line for each run of every JSON file of this script, and one for each station of each budget
summary() {
  "$PYTHON" - "$OUT"/gpu_budget.json "$OUT"/gpu_throughput_*.json "$OUT"/gpu_peer.json <<'PYTHON'
import json
import sys
from collections import defaultdict
from pathlib import Path

print(f"{'contestant':34} {'batch':>5} {'pictures/s':>11} {'ms':>9} {'GB there':>9} {'of the peak':>11}")
for path in map(Path, sys.argv[2:]):
    if not path.is_file() or not path.stat().st_size:
        continue
    for run in json.loads(path.read_text())["runs"]:
        memory, share = run["peak_memory_bytes"]["device"], run["peak_share"]
        gb, part = (f"{memory / 1e9:.2f}" if memory else "-"), (f"{100 * share:.0f} %" if share else "-")
        name = f"{run['contestant']}, {run['kernels'] or run['precision']}"[:34]
        print(f"{name:34} {run['batch']:5} {run['images_per_second']:11.1f} {run['ms_p50']:9.2f} {gb:>9} {part:>11}")

budgets = Path(sys.argv[1])
if budgets.is_file():
    print(f"\n{'station':34} {'batch':>5} {'ms a picture':>12} {'least ms':>9} {'of that':>8}")
    for found in json.loads(budgets.read_text()):
        stations = defaultdict(list)
        for row in found["operations"]:
            stations[row["station"]].append(row)
        for station, rows in stations.items():
            ms, least = (sum(row[key] for row in rows) for key in ("ms", "least_ms"))
            name = f"{found['precision']} {station}"
            print(f"{name:34} {found['batch']:5} {ms:12.3f} {least:9.3f} {100 * least / ms:6.0f} %")
PYTHON
}

"$PYTHON" -c "import onnx, PIL, pytest, rich, safetensors, torch, triton, typer" || exit 2
if [[ $DEVICE == cpu ]]; then
  export TRITON_INTERPRET=1
  PRECISIONS+=(fp8)
  BATCHES=(--batch 1 --batch 2)
  TUNE=(--batch 1)
elif ! "$PYTHON" -c "import sys; from qalign_fast.devices import device_problem; sys.exit(device_problem('$DEVICE'))"; then
  exit 2
else
  "$PYTHON" -c "import sys, torch; sys.exit(torch.cuda.get_device_capability('$DEVICE') < (8, 9))" && PRECISIONS+=(fp8)
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv >&2
fi
mkdir -p "$OUT" "$MODELS"
OUT=$(cd "$OUT" && pwd)

PARTS=("$@")
((${#PARTS[@]})) || PARTS=(tests tune engine peer budget)
for part in "${PARTS[@]}"; do
  case $part in
    tests | tune | engine | peer | budget | onnx) "$part" ;;
    *)
      echo "no part $part; there are: tests, tune, engine, peer, budget, onnx" >&2
      exit 2
      ;;
  esac
done

summary
if ((${#FAILED[@]})); then
  printf 'failed: %s\n' "${FAILED[@]}" >&2
  exit 1
fi
