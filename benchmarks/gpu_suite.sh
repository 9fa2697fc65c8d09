#!/usr/bin/env bash
# For a machine with a GPU, in under 9 minutes and without a network: the tests, compute-sanitizer where there
# is one, and the tables of test_ops.py. Whatever fails stops it, before anything is timed.
#
#     benchmarks/gpu_suite.sh                                  # PYTHON chooses the interpreter
#     SIZES="B8 or B64-T16" benchmarks/gpu_suite.sh            # clips and frames; by default B32-T8
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
LIMIT=520 # seconds in all

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU: nothing measured" >&2
    exit 2
fi

echo "== correctness"
# The tests that need no GPU run elsewhere: interpreted kernels, compilation for other devices, CPU tensors.
timeout 270 "$PYTHON" -m pytest -q -p no:cacheprovider -k "not cpu" tests/ops tests/test_augment.py \
    tests/test_step.py --ignore=tests/ops/test_interpreter.py --ignore=tests/ops/test_ahead_of_time.py

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

echo "== benchmarks"
run=$(mktemp --suffix=.json)
trap 'rm -f "$run"' EXIT
status=0
# An interrupt, unlike a kill, lets pytest write what it has measured.
timeout --signal=INT --kill-after=10 $((LIMIT - SECONDS)) "$PYTHON" -m pytest -q -p no:cacheprovider \
    benchmarks/test_ops.py benchmarks/test_peers.py -k "${SIZES:-B32-T8} or pgd_attack" --benchmark-json="$run" --benchmark-columns=median,iqr || status=$?
if [ -s "$run" ]; then
    "$PYTHON" benchmarks/report.py "$run"
fi
if [ "$status" -ne 0 ]; then
    echo "benchmarks incomplete: status $status, the table lacks what failed or was not reached" >&2
fi
exit "$status"
