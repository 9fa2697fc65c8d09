"""Files of small sweeps, and helpers that run them."""

import json
from pathlib import Path

import numpy as np
import yaml

from taf_fast.run.config import FinetuneConfig
from taf_fast.sweep.plan import PlannedRun, Sweep, read_sweep

GIVEN = dict(data="videos", out="sweep", checkpoint=None)
START = {"model": "tsm_resnet18", "size": 32}

# Runs of seconds: 24 clips, 6 steps an epoch.
SMALL = {
    "values": {"batch_size": 4, "epochs": 2, "lr": 0.01},
    "start": START | {"augment": "none", "epochs": 1},
    "arms": {"plain": {"augment": "none"}, "TAF": {}},
    "measure": ["attention"],
}


def write(folder: Path, content) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def planned(folder: Path, content, **given) -> Sweep:
    return read_sweep(str(write(folder, content)), GIVEN | given)


def arguments(file: Path, data: Path, out: Path, *more) -> list:
    return ["sweep", file, "--data", data, "--out", out, "--device", "cpu", *more]


def fabricated(
    folder: Path, arm: str, seed: int, values: np.ndarray, clean: list[list[float]] | None
) -> PlannedRun:
    """A finished run of these top-1, top-5, loss, share and seconds, and these losses of steps by epoch."""
    run = PlannedRun(arm, {}, FinetuneConfig(data="d", out=str(folder / arm / f"seed{seed}"), seed=seed))
    run.folder.path.mkdir(parents=True)
    top1, top5, loss, share, seconds = values.tolist()
    evaluation = {"top1": top1, "top5": top5, "loss": loss, "clips": 10}
    result = {"evaluation": evaluation, "attacked_share": share, "seconds_per_step": seconds}
    run.folder.result.write_text(json.dumps(result))
    run.folder.weights.touch()
    with run.folder.metrics.open("w") as file:
        for epoch, losses in enumerate(clean or [[None]]):
            for value in losses:
                print(
                    json.dumps({"epoch": epoch, "loss": 9} | ({"clean_loss": value} if value else {})),
                    file=file,
                )
            print(json.dumps({"epoch": epoch, "val_loss": 9}), file=file)
    return run
