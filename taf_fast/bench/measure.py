"""Measure the time, memory and profile of a call, on a CPU or a GPU."""

import os
import time
from collections.abc import Callable, Iterable
from statistics import median

import numpy as np
import torch


def interleaved_seconds(
    calls: dict[str, Callable], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Time each call ``repeats`` times.

    The calls take turns, so that a slow moment of the machine affects all of them. A first round, which
    allocates and compiles, does not count.

    Returns:
        the seconds of every timed call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return the 20th, 50th and 80th percentile as ``p20``, ``p50`` and ``p80``."""
    values = list(values)
    return {f"p{q}": float(np.percentile(values, q)) for q in (20, 50, 80)}


def peak_bytes(call: Callable, device: torch.device) -> int:
    """Return the peak of the bytes that ``call`` allocates and holds at the same time."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with _profile([torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of a large matrix product, in floating-point operations per second."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b, device)


def copy_rate(device: torch.device) -> float:
    """Return the rate of a large copy within the device's memory, in bytes read plus bytes written per
    second."""
    size = 2**32 if device.type == "cuda" else 2**27
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(call: Callable, device: torch.device) -> float:
    """Return the median seconds per call over several calls in a row, which hide the wait for a GPU."""
    row = 10 if device.type == "cuda" else 1

    def in_a_row():
        for _ in range(row):
            call()

    return median(interleaved_seconds({"": in_a_row}, 5, device)[""]) / row


def operations_by_time(call: Callable, device: torch.device) -> str:
    """Return a table of the operations that take most of a call's time, from PyTorch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        key = "self_device_time_total"
    call()
    with _profile(activities) as profile:
        call()
    return profile.key_averages().table(sort_by=key, row_limit=15)


def _profile(activities: list, **options) -> torch.profiler.profile:
    # By default, the library behind the profiler prints messages when it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return torch.profiler.profile(activities=activities, **options)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
