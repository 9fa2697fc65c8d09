"""Every kernel compiles for the GPUs in use, at production shapes, within the registers of a thread.

Some versions of ptxas spill a few bytes around a loop to run more threads at a time; no other spill may
occur.

The tests need no GPU. The launchers run on meta tensors, a recorder keeps their launches, and each is
compiled with the specialisations of Triton's just-in-time launcher: a 1 becomes a constant, a multiple of 16
is marked. The compiler refuses to run in a process whose kernels are interpreted, so the tests are skipped
there.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from taf_fast.kernels import cam_gradient, cam_loss, common, frame_cam, temporal_shift
from taf_fast.kernels import pgd_step as pgd

pytestmark = pytest.mark.skipif(common.INTERPRETED, reason="kernels are interpreted in this process")

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
DTYPES = [torch.bfloat16, torch.float32]


def meta(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    x = torch.empty(shape, dtype=dtype, device="meta")
    if channels_last:
        frames = x.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        x = frames.unflatten(0, shape[:-3])
    return x


def launch_frame_cam(dtype, channels_last):
    features = meta(16, 8, 2048, 7, 7, dtype=dtype, channels_last=channels_last)
    frame_cam.frame_cam_triton(features, meta(16, 8, 2048))


def launch_frame_cam_backward(dtype, channels_last):
    features = meta(16, 8, 2048, 7, 7, dtype=dtype, channels_last=channels_last)
    frame_cam.frame_cam_backward_triton(meta(16, 8, 7, 7), features, meta(16, 8, 2048))


def launch_cam_loss(dtype, channels_last):
    for T in (8, 16, cam_loss.MAX_FRAMES):
        cam = meta(16, T, 7, 7, dtype=dtype, channels_last=channels_last)
        cam_loss.cam_loss_triton(cam, T, False, 1e-6)
        cam_loss.cam_loss_triton(cam, T // 2, True, 1e-6)


def launch_cam_loss_backward(dtype, channels_last):
    for T in (8, 16, cam_loss.MAX_FRAMES):
        cam = meta(16, T, 7, 7, dtype=dtype, channels_last=channels_last)
        cam_loss.cam_loss_backward_triton(meta(16, T), cam, False, 1e-6)
        cam_loss.cam_loss_backward_triton(meta(16, T), cam, True, 1e-6)


def launch_cam_gradient(dtype, channels_last):
    weight, logits = meta(174, 2048), meta(64, 174, dtype=dtype)
    targets = meta(64, dtype=torch.int64)
    for T, mask, use_range in ((8, None, False), (16, meta(64, 16, 2048, dtype=dtype), True)):
        features = meta(64, T, 2048, 7, 7, dtype=dtype, channels_last=channels_last)
        cam_gradient.cam_gradient_triton(features, weight, logits, targets, mask, T // 2, use_range, 1e-6)


def launch_pgd_step(dtype, channels_last):
    x = meta(16, 8, 3, 224, 224, dtype=dtype, channels_last=channels_last)
    pgd.pgd_step_triton(x, x, x, None, (0.1, 0.2, 0.0, 1.0))
    pgd.pgd_step_triton(x, x, x, meta(4, 3), ())
    pgd.pgd_step_triton(None, x, x, None, (0.1, 0.2, 0.0, 1.0))
    pgd.pgd_step_triton(None, x, x, meta(4, 3), ())


def launch_temporal_shift(dtype, channels_last):
    for channels, size in ((64, 56), (256, 56), (2048, 7)):
        x = meta(16 * 8, channels, size, size, dtype=dtype, channels_last=channels_last)
        temporal_shift.temporal_shift_triton(x, 8, 8, False)


LAUNCHES = [value for name, value in list(globals().items()) if name.startswith("launch_")]


@pytest.fixture
def recorded(monkeypatch) -> list[tuple]:
    """Record the launches of the launchers: (kernel, positional arguments, constants)."""
    launches: list[tuple] = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **constants: launches.append((self.kernel, args, constants))

    for module in (frame_cam, cam_loss, cam_gradient, pgd, temporal_shift):
        monkeypatch.setattr(module, "wrap_triton", Recorder)
    return launches


def compile_launch(kernel, args: tuple, constants: dict, target: GPUTarget):
    signature, constexprs, attributes = {}, {}, {}
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    values = [value for name, value in constants.items() if name in kernel.arg_names]
    for index, (name, value) in enumerate(zip(kernel.arg_names, (*args, *values), strict=True)):
        if name in constants or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constexprs[(index,)] = value
            continue
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def resources(compiled, tmp_path: Path) -> dict[str, int]:
    """Return the registers and spilled bytes per thread."""
    if "amdgcn" in compiled.asm:
        counts = {"REG": "vgpr_count", "STACK": "private_segment_fixed_size", "LOCAL": "vgpr_spill_count"}
        return {
            key: int(re.search(rf"\.{name}: *(\d+)", compiled.asm["amdgcn"])[1])
            for key, name in counts.items()
        }
    text = cuobjdump("--dump-resource-usage", compiled, tmp_path)
    return {key: int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "SHARED", "LOCAL")}


def cuobjdump(option: str, compiled, tmp_path: Path) -> str:
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    return subprocess.run([CUOBJDUMP, option, cubin], capture_output=True, text=True, check=True).stdout


def spilled_in_loops(compiled, tmp_path: Path) -> list[str]:
    """Return the loads and stores of spilled registers between a backward branch and its target."""
    sass = cuobjdump("--dump-sass", compiled, tmp_path)
    found = re.findall(r"/\*([0-9a-f]{4,})\*/ +(.*?);", sass)
    instructions = [(int(address, 16), text) for address, text in found]
    branches = [(re.search(r"BRA.* 0x([0-9a-f]+)", text), address) for address, text in instructions]
    loops = [(int(to[1], 16), address) for to, address in branches if to and int(to[1], 16) < address]
    assert loops
    return [
        text
        for address, text in instructions
        if re.search(r"\b(STL|LDL)\b", text) and any(start <= address <= end for start, end in loops)
    ]


TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.__name__.removeprefix("launch_"))
def test_kernels_compile_without_spills(launch: Callable, target: GPUTarget, recorded, tmp_path):
    for dtype in DTYPES:
        for channels_last in (False, True):
            recorded.clear()
            launch(dtype, channels_last)
            assert recorded
            for kernel, args, constants in recorded:
                compiled = compile_launch(kernel, args, constants, target)
                used = resources(compiled, tmp_path)
                print(f"{kernel.__name__} {target.arch} {dtype} {channels_last=}: {used} {constants}")
                assert used["LOCAL"] == 0 and used["STACK"] <= 16 and used["REG"] <= 255, used
                if used["STACK"]:
                    assert target.backend == "cuda" and not spilled_in_loops(compiled, tmp_path), used
