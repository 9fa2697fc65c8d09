"""The effect of each switch on a training step of TSM-ResNet-50: memory format, precision, compilation and
the implementation of SGD.

    pytest benchmarks/test_switches.py --benchmark-json=run.json && python benchmarks/report.py run.json

All settings are timed in turn and compared with the first. The times are in extra_info, while
pytest-benchmark's own table shows how long the measurement took. Timings never decide a test. The environment
variable REPEATS sets the number of timed rounds.
"""

import os
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import nn

from taf_fast import TemporalAugment, add_adversarial_bn, models
from taf_fast.bench.measure import percentiles
from taf_fast.bench.steps import CLASSES, Setting, first_clips, timed
from taf_fast.models.memory_format import channels_last
from taf_fast.precision import PRECISIONS, autocast
from taf_fast.step import PlainStep, TAFStep

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MODEL, FRAMES = "tsm_resnet50", 8
CLIPS, PIXELS = (32, 224) if CUDA else (10, 64)
ATTACKED = round(0.2 * CLIPS)
SETTINGS = [Setting(DEVICE, False, precision, last) for precision in PRECISIONS for last in (False, True)]
if CUDA:  # on a CPU, Inductor takes minutes and gains nothing
    SETTINGS.append(Setting(DEVICE, True, "bfloat16", True))
USUAL = SETTINGS[-1] if CUDA else SETTINGS[1]
SGD = {
    "default": {},
    "foreach=True": {"foreach": True},
    "foreach=False": {"foreach": False},
    "fused=True": {"fused": True},
}
REPEATS = int(os.environ.get("REPEATS", 20 if CUDA else 5))


def fresh(setting: Setting) -> nn.Module:
    model = models.build(MODEL, CLASSES, FRAMES).to(DEVICE).train()
    return channels_last(model) if setting.channels_last else model


def plain(setting: Setting) -> Callable[[], None]:
    return partial(run, PlainStep(fresh(setting), setting.compile), setting, random_clips(setting))


def ours(setting: Setting) -> Callable[[], None]:
    model = add_adversarial_bn(fresh(setting))
    step = TAFStep(model, TemporalAugment(), composition=first_clips(ATTACKED), compile=setting.compile)
    return partial(run, step, setting, random_clips(setting))


def random_clips(setting: Setting) -> torch.Tensor:
    clips = torch.randn(CLIPS, FRAMES, PIXELS, PIXELS, 3, device=DEVICE).movedim(-1, 2)
    return clips if setting.channels_last else clips.contiguous()


def run(step: nn.Module, setting: Setting, clips: torch.Tensor) -> None:
    labels = torch.zeros(CLIPS, dtype=torch.int64, device=DEVICE)
    step.model.zero_grad(set_to_none=True)
    with autocast(DEVICE, setting.precision):
        step.accumulate_grads(clips, labels)


def test_settings(benchmark):
    benchmark.group = f"{MODEL}, {CLIPS} clips of {FRAMES} x {PIXELS} pixels, {ATTACKED} of them attacked"
    calls = {("plain", setting): plain(setting) for setting in SETTINGS}
    calls |= {("taf_fast", setting): ours(setting) for setting in SETTINGS}
    times = benchmark.pedantic(timed, (calls, REPEATS, DEVICE), rounds=1, iterations=1)
    seconds = {call: median(values) for call, values in times.items()}
    benchmark.extra_info["switches"] = [
        {
            "step": name,
            "setting": setting.describe(),
            "milliseconds": percentiles(1000 * value for value in times[name, setting]),
            "clips_per_second": CLIPS / seconds[name, setting],
            "against_first": seconds[name, SETTINGS[0]] / seconds[name, setting],
            "over_plain": seconds[name, setting] / seconds["plain", setting] - 1,
        }
        for name, setting in calls
    ]


def test_sgd(benchmark):
    benchmark.group = f"SGD of {MODEL} and a plain step of {CLIPS} clips, {USUAL.describe()}"
    model = add_adversarial_bn(fresh(USUAL))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    calls = {"plain step": plain(USUAL)}
    for name, options in SGD.items():
        groups = model.parameter_groups(weight_decay=5e-4)
        calls[name] = torch.optim.SGD(groups, lr=1e-6, momentum=0.9, **options).step
    times = benchmark.pedantic(timed, (calls, REPEATS, DEVICE), rounds=1, iterations=1)
    benchmark.extra_info["sgd"] = [
        {
            "implementation": name,
            "milliseconds": percentiles(1000 * value for value in times[name]),
            "of_plain_step": median(times[name]) / median(times["plain step"]),
        }
        for name in calls
    ]
