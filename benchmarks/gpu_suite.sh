#!/usr/bin/env bash
# For a machine with a GPU, in under 9 minutes and without a network: the tests, compute-sanitizer where there
# is one, and the tables of test_ops.py, test_steps.py and test_switches.py. Whatever fails in the first two
# stops it, before anything is timed. Most of the time for the steps goes into compiling them: a test that was
# not reached is reached by a second run, which finds what the first compiled in Inductor's cache.
#
#     benchmarks/gpu_suite.sh                                  # PYTHON chooses the interpreter
#     SIZES="B8 or B64-T16" benchmarks/gpu_suite.sh            # of the ops, clips and frames; by default B32-T8
#     STEPS="tpn and B8 and T16" benchmarks/gpu_suite.sh       # by default "tsm and B32 and T8"
#     DATA=1 benchmarks/gpu_suite.sh                           # instead of all this: decoding, by PyAV and DALI
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
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
trap 'rm -rf "$runs"' EXIT
status=0

# measure NAME PERCENT TEST...: in a part of the time that is left.
measure() {
    local name=$1 seconds=$(((LIMIT - SECONDS) * $2 / 100))
    seconds=$((seconds > 0 ? seconds : 1)) # 0 would mean no limit
    shift 2
    echo "== $name"
    # An interrupt, unlike a kill, lets pytest write what it has measured.
    timeout --signal=INT --kill-after=10 "$seconds" "$PYTHON" -m pytest -q -p no:cacheprovider "$@" \
        --benchmark-json="$runs/$name.json" --benchmark-columns=median,iqr || status=$?
}

report() {
    echo "== report"
    find "$runs" -name '*.json' -not -empty -exec "$PYTHON" benchmarks/report.py {} +
    if [ "$status" -ne 0 ]; then
        echo "benchmarks incomplete: status $status, the tables lack what failed or was not reached" >&2
    fi
    exit "$status"
}

if [ -n "${DATA:-}" ]; then
    echo "== correctness"
    timeout 120 "$PYTHON" -m pytest -q -p no:cacheprovider tests/data/test_cuda.py
    measure data 100 benchmarks/test_data.py
    report
fi

echo "== correctness"
# The tests that need no GPU run elsewhere: interpreted kernels, compilation for other devices, CPU tensors.
timeout 270 "$PYTHON" -m pytest -q -p no:cacheprovider -k "not cpu" tests/ops tests/test_replay.py \
    tests/test_precision.py tests/test_on_a_gpu.py --ignore=tests/ops/test_interpreter.py \
    --ignore=tests/ops/test_ahead_of_time.py

echo "== compute-sanitizer"
if sanitizer=$(command -v compute-sanitizer); then
    # Without the caching allocator, every tensor ends where its memory ends.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 90 "$sanitizer" --error-exitcode 1 "$PYTHON" - <<'SCRIPT'
import torch
from taf_fast import ops

torch.manual_seed(0)
features, grads = (torch.randn(2, 3, 37, 5, 7, device="cuda", requires_grad=True) for _ in range(2))
ops.cam_loss(ops.frame_cam(features, grads), 2)[0].sum().backward()
weight, logits = torch.randn(9, 37, device="cuda"), torch.randn(2, 9, device="cuda")
ops.cam_gradient(features, weight, logits, torch.tensor([0, 8], device="cuda"), 2)
grad = torch.randn(2, 3, 3, 5, 7, device="cuda", dtype=torch.bfloat16)
frames = torch.randint(0, 256, (2, 3, 5, 7, 3), device="cuda", dtype=torch.uint8)
ops.pgd_step(grad, grad, grad, 0.1, 0.2)
ops.pgd_step(None, grad, frames, 0.1, 0.2, mean=0.5, std=0.25)
x = torch.randn(6, 37, 5, 7, device="cuda", requires_grad=True)
ops.temporal_shift(x, 3).sum().backward()
torch.cuda.synchronize()
SCRIPT
else
    echo "not installed: skipped"
fi

measure ops 60 benchmarks/test_ops.py benchmarks/test_peers.py -k "${SIZES:-B32-T8} or pgd_attack"
measure steps 75 benchmarks/test_steps.py -k "${STEPS:-tsm and B32 and T8}"
measure switches 100 benchmarks/test_switches.py

report
