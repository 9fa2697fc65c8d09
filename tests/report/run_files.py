"""Run folders with random numbers in them, as finetune, robustness and attention leave them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

from torch import nn

from taf_fast.run.checkpoint import ModelInfo, save_weights
from taf_fast.run.config import FinetuneConfig

CORRUPTIONS = ("gaussian_noise", "snow", "brightness")
SEVERITIES = (1, 3, 5)


def write_run(folder: Path, random: Random, classes: list[str], clips: int = 60, **config) -> Path:
    """A finished run of 3 epochs of 4 steps; the weights are a header alone."""
    folder.mkdir(parents=True)
    config = dict(data="nowhere", epochs=3) | config
    config = FinetuneConfig(out=str(folder), **config)
    config.write(folder / "config.yaml")
    write_json(folder / "environment.json", {"taf_fast": "0.1.0", "system": f"Linux {random.random()}"})
    write_json(folder / "quarantine.json", {"train": {"77": "has 2 frames"}, "validation": {}})
    lines = []
    for epoch in range(config.epochs):
        for step in range(4):
            lines.append({"step": 4 * epoch + step + 1, "epoch": epoch, "loss": random.random()})
            lines[-1] |= {"clean_loss": random.random(), "clips": 8, "attacked": 2, "step_seconds": 0.1}
        lines.append({"step": 4 * epoch + 4, "epoch": epoch, "val_top1": random.random()})
        lines[-1] |= {"val_top5": random.random(), "val_loss": random.random(), "val_clips": clips}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = [n % len(classes) for n in range(clips)]
    places = [random.randrange(3) for _ in range(clips)]
    rows = [
        {"id": f"c{n}", "label": label, "predicted": label if place == 0 else (label + 1) % len(classes)}
        | {"place": place, "loss": random.random(), "score": random.random()}
        for n, (label, place) in enumerate(zip(labels, places, strict=True))
    ]
    write_csv(folder / "predictions.csv", rows)
    evaluation = {"top1": places.count(0) / clips, "top5": random.random(), "loss": random.random()}
    result = {"weights": str(folder / "model.safetensors"), "evaluation": evaluation | {"clips": clips}}
    result |= {"seconds_per_step": random.random(), "attacked_share": random.random()}
    write_json(folder / "result.json", result)
    info = ModelInfo(config.model, tuple(classes), config.num_segments, config.size)
    save_weights(folder / "model.safetensors", nn.Linear(1, 1), info)
    weights = str(folder / "model.safetensors")
    conditions = [("clean", 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
    rows = [
        {"checkpoint": weights, "corruption": name, "severity": severity, "top1": random.random()}
        | {"top5": random.random(), "loss": random.random(), "clips": clips}
        for name, severity in conditions
    ]
    write_csv(folder / "robustness.csv", rows)
    rows = [
        {"checkpoint": weights, "id": f"c{n}", "label": classes[labels[n]]}
        # Every seventh without attention.
        | {"entropy": random.random() if n % 7 else 1.0, "top_share": random.random()}
        for n in range(clips)
    ]
    write_csv(folder / "attention.csv", rows)
    return folder


def write_json(path: Path, values) -> None:
    path.write_text(json.dumps(values))


def read_json(path: Path):
    return json.loads(path.read_text())


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report_in_a_process(runs, path: Path, hash_seed: str) -> None:
    command = [sys.executable, "-m", "taf_fast", "report", *map(str, runs), "--out", str(path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed})
