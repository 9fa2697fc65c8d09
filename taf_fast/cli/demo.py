"""The main job on a small scale: synthetic videos, a baseline, plain fine-tuning and TAF, one table."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from taf_fast.data.synth import LONG_TERM, ORDERS, write_ssv2
from taf_fast.files import write_json
from taf_fast.plain import say
from taf_fast.process.progress import Progress
from taf_fast.report.attended import attended_clip
from taf_fast.report.curves import curves_figure, loss_rows
from taf_fast.report.figures import save
from taf_fast.report.strips import strip_rows, strips_figure
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import Result, finetune
from taf_fast.run.folder import RunFolder
from taf_fast.run.trained import open_trained

# Sized for two CPU cores and a few minutes.
_TRAIN_PER_CLASS, _VAL_PER_CLASS = 60, 25
_BASELINE: dict[str, Any] = dict(
    model="tsm_resnet18", num_segments=8, size=40, batch_size=16, epochs=8, lr=0.01, lr_steps=(7,)
)
_FINETUNE: dict[str, Any] = dict(epochs=4, lr=0.002, lr_steps=(3,))


def demo(folder: Path) -> bool:
    """Run the demo in ``folder``, or resume one that was stopped there.

    Leaves the data set, three run folders (weights, state, metrics, configuration),
    ``results.json``, and ``loss.png`` and ``attention.png`` with a CSV of each.

    Returns:
        False if it was asked to stop before its end.
    """
    data = folder / "data"
    if not data.exists():
        _write_data(data)
    common = _BASELINE | {"data": data}
    baseline = finetune(FinetuneConfig(out=folder / "baseline", augment="none", **common), resume=True)
    if baseline is None:
        return False
    results = {"baseline": baseline}
    for method, augment in (("plain", "none"), ("taf", "ta")):
        config = FinetuneConfig(
            out=folder / method, augment=augment, checkpoint=baseline.weights, **common | _FINETUNE
        )
        result = finetune(config, resume=True)
        if result is None:
            return False
        results[method] = result
    _write_results(folder / "results.json", results)
    losses = loss_rows({method: RunFolder(folder / method) for method in ("plain", "taf")})
    save(curves_figure(losses), losses, folder / "loss.png")
    _draw_attention(
        folder / "attention.png", data, {name: results[name].weights for name in ("baseline", "taf")}
    )
    Console(width=100).print(_table(results))
    say(f"weights, metrics, loss.png and attention.png are in {folder}")
    return True


def _draw_attention(path: Path, data: Path, weights: dict[str, Path]) -> None:
    models = {name: open_trained(data, file, torch.device("cpu")) for name, file in weights.items()}
    validation = models["taf"].loader.manifest
    shown = next(clip.id for clip in validation.good if validation.classes[clip.label] in LONG_TERM)
    drawn = attended_clip(models, shown)
    save(strips_figure([drawn]), strip_rows(drawn), path)


def _write_data(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    clips = len(ORDERS) * (_TRAIN_PER_CLASS + _VAL_PER_CLASS)
    with Progress("synthetic videos", clips) as progress:
        write_ssv2(
            temporary,
            train_per_class=_TRAIN_PER_CLASS,
            val_per_class=_VAL_PER_CLASS,
            progress=lambda done, total: progress.update(done),
        )
    temporary.rename(path)


def _overhead(results: dict[str, Result]) -> float:
    return results["taf"].seconds_per_step / results["plain"].seconds_per_step - 1


def _write_results(path: Path, results: dict[str, Result]) -> None:
    values: dict[str, Any] = {
        name: dataclasses.asdict(result) | {"weights": str(result.weights)}
        for name, result in results.items()
    }
    values["taf_overhead"] = _overhead(results)
    write_json(path, values, indent=1)


def _table(results: dict[str, Result]) -> Table:
    table = Table(title="validation, clean path", box=box.MARKDOWN)
    table.add_column("", no_wrap=True)
    for column in ("top-1 %", "top-5 %", "loss", "s / step", "overhead", "attacked"):
        table.add_column(column, justify="right")
    titles = {"baseline": "baseline", "plain": "fine-tuned plainly", "taf": "fine-tuned with TAF"}
    for name, result in results.items():
        scores = result.evaluation
        is_taf = name == "taf"
        table.add_row(
            titles[name],
            f"{100 * scores.top1:.1f}",
            f"{100 * scores.top5:.1f}",
            f"{scores.loss:.3f}",
            f"{result.seconds_per_step:.2f}",
            f"{100 * _overhead(results):+.0f} %" if is_taf else "",
            f"{100 * result.attacked_share:.0f} %" if is_taf else "",
        )
    return table
