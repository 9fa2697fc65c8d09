#!/usr/bin/env bash
# Runs on a machine with a GPU, in under 9 minutes and without a network: the tests, compute-sanitizer if it
# works, the device's limits, and the tables of test_ops.py, test_steps.py and test_switches.py. A failure in the
# first two stops the script before anything is timed. Most of the time goes into compilation; pytest-xdist, if
# installed, shortens it. A second run reaches the tests that the first did not reach, because it finds the first
# run's graphs in Inductor's cache.
#
#     benchmarks/gpu_suite.sh                                  # PYTHON chooses the interpreter
#     SIZES="B8 or B64-T16" benchmarks/gpu_suite.sh            # clips and frames of the ops; default: B32-T8
#     STEPS="tpn and B8 and T16" benchmarks/gpu_suite.sh       # default: "tsm and B32 and T8"
#     DATA=1 benchmarks/gpu_suite.sh                           # only decoding, by PyAV and DALI, alone and
#                                                              # while a model trains
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # the package need not be installed
LIMIT=520 # seconds in all

"$PYTHON" - <<'SCRIPT' || exit 2
import sys

try:
    import torch
except (ImportError, OSError) as error:  # OSError: a library that torch needs
    sys.exit(f"{sys.executable}: {error}: nothing measured")
if not torch.cuda.is_available():
    sys.exit("no GPU: nothing measured")
SCRIPT

runs=$(mktemp -d)
stdbuf -oL nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu \
    --format=csv,nounits --id=0 --loop=1 >"$runs/clocks.csv" &
clocks=$!
trap 'kill "$clocks" 2>/dev/null; rm -rf "$runs"' EXIT
status=0

# part PERCENT: seconds in that share of the remaining time, at least 1, because 0 would mean no limit.
part() {
    local seconds=$(((LIMIT - SECONDS) * $1 / 100))
    echo $((seconds > 0 ? seconds : 1))
}

# several N: the option with which pytest runs N processes at once, if pytest-xdist is installed.
several() {
    if "$PYTHON" -c "import xdist" 2>/dev/null; then echo "-n $1"; fi
}

# measure NAME PERCENT TEST...
measure() {
    local name=$1 seconds
    seconds=$(part "$2")
    shift 2
    echo "== $name"
    # An interrupt, unlike a kill, lets pytest write its measurements.
    timeout --signal=INT --kill-after=10 "$seconds" "$PYTHON" -m pytest -q -p no:cacheprovider "$@" \
        --benchmark-json="$runs/$name.json" --benchmark-columns=median,iqr || status=$?
}

# compile_all N PERCENT TEST...: compile with N processes at once into the caches that measure uses.
compile_all() {
    local processes seconds
    processes=$(several "$1")
    seconds=$(part "$2")
    shift 2
    if [ -z "$processes" ]; then return; fi
    echo "== compilation"
    # shellcheck disable=SC2086
    REPEATS=1 timeout "$seconds" "$PYTHON" -m pytest -q -p no:cacheprovider $processes --benchmark-disable "$@" |
        tail -n 1 || true
}

report() {
    echo "== report"
    find "$runs" \( -name '*.json' -o -name '*.csv' \) -not -empty -exec "$PYTHON" benchmarks/report.py {} +
    if [ "$status" -ne 0 ]; then
        echo "benchmarks incomplete: status $status, the tables lack what failed or was not reached" >&2
    fi
    exit "$status"
}

if [ -n "${DATA:-}" ]; then
    echo "== correctness"
    timeout 120 "$PYTHON" -m pytest -q -p no:cacheprovider tests/data/test_cuda.py
    export THREADS=${THREADS:-$(nproc)}
    measure data 50 benchmarks/test_data.py
    measure waiting 100 benchmarks/test_waiting.py
    report
fi

echo "== correctness"
# The tests that need no GPU run elsewhere: interpreted kernels, compilation for other devices, CPU tensors.
# shellcheck disable=SC2046
timeout 270 "$PYTHON" -m pytest -q -p no:cacheprovider $(several 8) -k "not cpu" \
    tests/ops tests/augment/test_replay.py tests/test_precision.py tests/test_on_a_gpu.py \
    --ignore=tests/ops/test_interpreter.py --ignore=tests/ops/test_ahead_of_time.py

echo "== compute-sanitizer"
cat >"$runs/kernels.py" <<'SCRIPT'
import torch
from taf_fast import ops

torch.manual_seed(0)
features, grads = (torch.randn(2, 3, 37, 5, 7, device="cuda", requires_grad=True) for _ in range(2))
ops.cam_loss(ops.frame_cam(features, grads), 2)[0].sum().backward()
weight, logits = torch.randn(9, 37, device="cuda"), torch.randn(2, 9, device="cuda")
ops.cam_gradient(features, weight, logits, torch.tensor([0, 8], device="cuda"), 2)
grad = torch.randn(2, 3, 3, 5, 7, device="cuda", dtype=torch.bfloat16)
ops.pgd_step(grad, grad, grad, 0.1, 0.2)
ops.pgd_step(None, grad, grad, 0.1, torch.full((3,), 0.2, device="cuda"))
x = torch.randn(6, 37, 5, 7, device="cuda", requires_grad=True)
ops.temporal_shift(x, 3).sum().backward()
torch.cuda.synchronize()
SCRIPT
if ! command -v compute-sanitizer; then
    echo "not installed: skipped"
# Without the caching allocator, the memory of a tensor ends where the tensor ends.
elif ! PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 90 compute-sanitizer --error-exitcode 1 \
    "$PYTHON" "$runs/kernels.py" 2>&1 | tee "$runs/sanitizer.log"; then
    # Some virtual machines deny it access to the device.
    grep -q "Device not supported" "$runs/sanitizer.log" || exit 1
    echo "not usable on this machine: skipped"
fi

measure ceilings 20 benchmarks/test_ceilings.py
ops=(benchmarks/test_ops.py benchmarks/test_peers.py -k "${SIZES:-B32-T8} or pgd_attack")
steps=(benchmarks/test_steps.py -k "${STEPS:-tsm and B32 and T8}")
compile_all 8 30 "${ops[@]}"
measure ops 50 "${ops[@]}"
compile_all 3 60 "${steps[@]}"
measure steps 75 "${steps[@]}"
measure switches 100 benchmarks/test_switches.py

report
