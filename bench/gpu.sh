#!/usr/bin/env bash
# Checks and measures this project on an NVIDIA GPU, in three parts of less than six minutes each:
#
#   PYTHON=path/to/python bench/gpu.sh [PART ...]      default: 1 2 3
#
#   1     Versions. The rates of the GPU's libraries at the model's shapes, while all cores compile. Tests of every kernel
#         against its contract and of the engine, on the device. Graphs beside direct launches, bit for bit. At full size
#         (random weights, made on the device): pictures a second, and where a step's time goes, kernel by kernel.
#   2     Upstream's way beside ours in one run. It is upstream's own code where QALIGN_UPSTREAM is a checkout of Q-Align
#         (QALIGN_UPSTREAM_PYTHON is an interpreter with its packages), and hf-eager where there is none or it fails.
#   3     Tiles of the model's matrix products beside one another and beside torch's own. The fastest go into
#         triton_tiles.json, product by product. Then pictures a second with that table.
#   onnx  Pictures a second on onnxruntime's CUDA provider in fp16. It runs only where it is named, for writing its graphs
#         takes minutes and PYTHON must have onnxruntime-gpu.
#
# Each measurement leaves a JSON file as soon as it is done. The summary has those of all parts in OUT, beside the predicted
# figures (bench/predicted.json, an estimate). It is printed at the end, and also after a signal. A failure does not stop
# the next measurement; the exit status is then 1. PYTHON (python3) needs torch for CUDA, pytest, safetensors, Pillow,
# typer, rich and onnx. The package need not be installed in it. pytest-xdist makes part 1 shorter.
#
#   OUT         the folder for JSON and logs; default bench/results
#   PRECISIONS  default "int8 fp8 fp16", without fp8 on a device that does not have it
#   BATCHES     default "1 8 64"
#   REPEAT      timed forwards of each contestant and batch; default 15 to 45
#   PATIENCE    all time limits are multiplied by it, for a rehearsal on a slow machine; default 1
#   TUNE_SECONDS   seconds of each precision's sweep; default 125 for int8, 45 for fp8
#   MODELS      the folder for onnx's model, 17 GB, and for models that are made without a GPU; default below TMPDIR
#   DEVICE, MODEL   cuda and random:one-align; to try the script without a GPU:
#                   DEVICE=cpu MODEL=random:tests/golden/narrow-112 OUT=/tmp/out MODELS=/tmp/models bench/gpu.sh
set -um -o pipefail # m: a command in the background has a process group of its own and receives SIGINT
cd "$(dirname "$0")/.." || exit 2

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
MODELS=${MODELS:-${TMPDIR:-/tmp}/qalign-fast-models}
DEVICE=${DEVICE:-cuda}
MODEL=${MODEL:-random:one-align}
PATIENCE=${PATIENCE:-1}
PART_SECONDS=$((335 * PATIENCE))
PARTS=("$@")
((${#PARTS[@]})) || PARTS=(1 2 3)
export PYTHONPATH=$PWD:$PWD/export:$PWD/kernels:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/qalign-fast-triton} # one for all that compiles
TESTS=(tests/kernels/test_triton_{rows,linear,torch_product,attention,model}.py
  tests/engines/test_cuda_{engine,tensors,refusals,on_gpu,graphs}.py
  tests/engines/test_compile_ahead.py::test_nothing_is_left_to_compile_on_a_gpu
  tests/engines/test_bnb.py::test_scores_on_a_gpu_are_near_float32s)
FAILED=()
declare -A RUNNING=() # name -> process id of each command that was started and not yet waited for
PART_END=$PART_SECONDS

# start SECONDS NAME COMMAND ...: starts it in the background, with its stderr in a log. At the end of its time it is
# interrupted, and a bench then prints what it has
start() {
  local seconds=$1 name=$2
  shift 2
  QALIGN_GPU_SH=$$-$name timeout --foreground --signal=INT --kill-after=5 "$seconds" "$@" 2>"$OUT/gpu_$name.log" </dev/null 3>&- &
  RUNNING[$name]=$!
}

# finished SECONDS NAME: waits for a command that was started, and remembers a failure
finished() {
  local seconds=$1 name=$2 status=0
  wait "${RUNNING[$name]}" || status=$?
  unset "RUNNING[$name]"
  end_leftovers "$name"
  if ((status)); then
    FAILED+=("$name: status $status$( ((status == 124 || status == 137)) && echo ", over its $seconds s")")
    tail -n 5 "$OUT/gpu_$name.log" >&2
  fi
  return "$status"
}

# limited SECONDS NAME COMMAND ...: starts it and waits for it, in no more time than the part has left
limited() {
  local seconds=$(($1 * PATIENCE)) name=$2 left=$((PART_END - SECONDS))
  shift 2
  ((seconds > left)) && seconds=$left
  if ((seconds < 3)); then
    FAILED+=("$name: no time was left for it")
    return 1
  fi
  echo "== $name, at most $seconds s, at ${SECONDS} s" >&2
  start "$seconds" "$name" "$@"
  finished "$seconds" "$name"
}

# end_leftovers NAME: ends processes that the command started and left behind, such as a worker in a session of its own.
# They would hold the GPU that the next command needs
end_leftovers() {
  local left
  mapfile -t left < <(grep -lzxF "QALIGN_GPU_SH=$$-$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3)
  ((${#left[@]})) || return 0
  echo "ending what $1 left running: ${left[*]}" >&2
  kill -KILL "${left[@]}" 2>/dev/null
  for _ in {1..20}; do
    [[ -n $(nvidia-smi --query-compute-apps=pid --format=csv,noheader 2>/dev/null) ]] || break
    sleep 0.5
  done
}

finish() {
  local status=$? name
  trap '' INT TERM HUP
  trap - EXIT
  for name in "${!RUNNING[@]}"; do
    FAILED+=("$name: interrupted at $SECONDS s")
    kill -INT "${RUNNING[$name]}" 2>/dev/null # this is `timeout`, which passes the signal on
  done
  for name in "${!RUNNING[@]}"; do
    for _ in {1..40}; do # it prints what it has
      kill -0 "${RUNNING[$name]}" 2>/dev/null || break
      sleep 0.1
    done
    end_leftovers "$name"
  done
  "$PYTHON" -m qalign_bench.figures.gpu_summary "$OUT" >&3
  if ((${#FAILED[@]})); then
    printf 'failed: %s\n' "${FAILED[@]}" >&2
    ((status)) || status=1
  fi
  exit "$status"
}

# compile: starts to compile the engine's kernels of all precisions on all cores; `compiled` waits for it
compile() {
  [[ $DEVICE == cpu ]] ||
    start "$((60 * PATIENCE))" compile "$PYTHON" -m qalign_bench.profiling.compile_models "$MODEL" --device "$DEVICE" \
      "${PRECISIONS[@]/#/--precision=}" --processes "$(($(nproc) > 4 ? $(nproc) - 2 : $(nproc)))" >&2
}

compiled() {
  [[ $DEVICE == cpu ]] || finished "$((60 * PATIENCE))" compile
}

# check: prints the versions and the device; the status is 3 on a device without fp8, 1 where nothing can run
check() {
  "$PYTHON" - "$DEVICE" <<'PYTHON'
import sys

import onnx, PIL, pytest, rich, safetensors, torch, triton, typer

from qalign_fast.engines.devices import device_problem
from qalign_kernels.contract.precisions import PRECISIONS

print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {triton.__version__}", flush=True)
if sys.argv[1] != "cpu":
    if problem := device_problem(sys.argv[1]):
        sys.exit(problem)
    try:
        cudnn = torch.backends.cudnn.version()
    except RuntimeError as error:
        cudnn = str(error).splitlines()[0]
    print(f"{torch.cuda.get_device_name(sys.argv[1])}, cuDNN {cudnn}", flush=True)
    sys.exit(0 if torch.cuda.get_device_capability(sys.argv[1]) >= PRECISIONS["fp8"].capability else 3)
PYTHON
}

# throughput SECONDS NAME OPTION ...: leaves $OUT/gpu_NAME.json
throughput() {
  local seconds=$1 name=$2
  shift 2
  limited "$seconds" "$name" "$PYTHON" -m qalign_fast.cli bench throughput --model "$MODEL" --device "$DEVICE" \
    --engine torch --work "$MODELS" --json "${BATCHES[@]/#/--batch=}" "$@" ${REPEAT:+--repeat="$REPEAT"} >"$OUT/gpu_$name.json"
}

# profile SECONDS PRECISION
profile() {
  [[ $DEVICE == cpu ]] ||
    limited "$1" "profile_$2" "$PYTHON" -m qalign_bench.profiling.kernel_times "$MODEL" --precision "$2" --device "$DEVICE" \
      "${BATCHES[@]/#/--batch=}" --json "$OUT/gpu_profile_$2.json" >"$OUT/gpu_profile_$2.md"
}

part_1() {
  local chosen="not compiled and not tensor_cores" many=() # those tests need no GPU and take minutes
  rm -f "$OUT"/gpu_{ceilings,graphs,throughput_*,profile_*}.json "$OUT/gpu_tests.txt"
  compile
  limited 35 ceilings "$PYTHON" -m qalign_bench.profiling.ceilings --device "$DEVICE" "${BATCHES[@]/#/--batch=}" \
    --json "$OUT/gpu_ceilings.json" >"$OUT/gpu_ceilings.md"
  compiled
  [[ $DEVICE == cpu ]] && chosen="any_batch" # the kernels' tests take minutes there
  "$PYTHON" -c "import xdist" 2>/dev/null && many=(-n "$(($(nproc) < 12 ? $(nproc) : 12))")
  limited 70 tests "$PYTHON" -m pytest -vv --tb=short -p no:cacheprovider "${TESTS[@]}" -k "$chosen" "${many[@]}" \
    --durations 5 >"$OUT/gpu_tests.txt"
  [[ $DEVICE == cpu ]] ||
    limited 35 graphs "$PYTHON" -m qalign_bench.profiling.graph_check "$MODEL" --precision "${PRECISIONS[0]}" --device "$DEVICE" \
      "${BATCHES[@]/#/--batch=}" --batch=2 --json "$OUT/gpu_graphs.json" >&2
  throughput 45 "throughput_${PRECISIONS[0]}" --precision "${PRECISIONS[0]}" --repeat 45
  profile 25 "${PRECISIONS[0]}"
  for precision in "${PRECISIONS[@]:1}"; do
    throughput 32 "throughput_$precision" --precision "$precision" --repeat 15
    profile 17 "$precision"
  done
}

part_2() {
  local precisions=("${PRECISIONS[@]/#/--precision=}") peers=(hf-eager) peer name
  rm -f "$OUT"/gpu_peer_*.json
  compile
  compiled
  [[ -n ${QALIGN_UPSTREAM:-} ]] && peers=("upstream=$QALIGN_UPSTREAM" hf-eager)
  for peer in "${peers[@]}"; do
    name=peer_${peer%%=*}
    throughput 165 "$name" "${precisions[@]::2}" --repeat 15 --peer "$peer" \
      --peer-python "${QALIGN_UPSTREAM_PYTHON:-$PYTHON}" && break
  done
}

part_3() {
  local form precision seconds
  rm -f "$OUT"/gpu_{tune_*,tuned_*}.json
  for precision in "${PRECISIONS[@]::2}"; do # float products are cuBLAS's: there is nothing to sweep
    case $precision in
      int8) form=int8 seconds=${TUNE_SECONDS:-125} ;;
      fp8) form=float8_e4m3fn seconds=${TUNE_SECONDS:-45} ;;
      *) continue ;;
    esac
    limited "$((seconds + 15))" "tune_$precision" "$PYTHON" -m qalign_bench.profiling.tune --device "$DEVICE" --form "$form" \
      --seconds "$seconds" "${BATCHES[@]/#/--batch=}" --json "$OUT/gpu_tune_$precision.json" --table \
      >"$OUT/gpu_tune_$precision.md"
    cp kernels/qalign_kernels/cuda/triton_tiles.json "$OUT/gpu_triton_tiles.json"
  done
  compile
  compiled
  for precision in "${PRECISIONS[@]::2}"; do
    throughput 45 "tuned_$precision" --precision "$precision" --repeat 30
  done
}

part_onnx() {
  [[ -d $MODELS/fp16-onnx ]] ||
    limited 400 model_onnx "$PYTHON" bench/studies/device_export.py "$MODEL" "$MODELS/fp16-onnx" --device "$DEVICE" \
      --precision fp16 --engine onnx-cuda &&
    limited 120 throughput_onnx "$PYTHON" -m qalign_fast.cli bench throughput --model "$MODELS/fp16-onnx" \
      --device "$DEVICE" --engine onnx-cuda --json "${BATCHES[@]/#/--batch=}" --repeat 60 >"$OUT/gpu_throughput_onnx.json"
}

for part in "${PARTS[@]}"; do
  if [[ ! $part =~ ^([123]|onnx)$ ]]; then
    echo "no part $part; there are: 1, 2, 3, onnx" >&2
    exit 2
  fi
done
mkdir -p "$OUT" "$MODELS"
OUT=$(cd "$OUT" && pwd)
[[ $DEVICE == cpu ]] && export TRITON_INTERPRET=1
check
case $? in
  0) PRECISIONS=${PRECISIONS:-int8 fp8 fp16} ;;
  3) PRECISIONS=${PRECISIONS:-int8 fp16} ;;
  *) exit 2 ;;
esac
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null
read -ra BATCHES <<<"${BATCHES:-1 8 64}"
read -ra PRECISIONS <<<"$PRECISIONS"
exec 3>&1 # for the summary: a signal may come while a part's output goes into a file
trap 'exit 130' INT TERM HUP
trap finish EXIT
for part in "${PARTS[@]}"; do
  PART_END=$((SECONDS + PART_SECONDS))
  [[ $part == onnx ]] && PART_END=$((SECONDS + 540))
  "part_$part"
  echo "part $part: $((SECONDS - PART_END + PART_SECONDS)) s" >&2
done
