"""Measures every finished run of a sweep on the clips of a folder that make_data.py wrote:

python experiments/redundant/measure.py SWEEP FOLDER OUT.csv

Runs that OUT.csv has are not measured again. A row has the run's arm and seed; ``p_first`` and ``p_last``,
the shares of the training clips that were classified wrongly in its first and last epoch; and
``attacked_share`` and ``training_loss`` of the sweep's ``runs.csv``. FOLDER's clips are measured with the
view of evaluation: training clips (``train_``), and validation clips with both cues (``both_``) or the hard
one alone (``hard_``). ``top1`` and ``loss`` are means, and so are those of the attention to the true class:
``entropy`` and ``top_share`` of ``taf-fast attention --measure``, ``easy_share`` and ``hard_share`` of the
frames where a clip with both cues shows them.
"""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from taf_fast.data import Batch, ClipLoader, read_dataset, scan
from taf_fast.data.views.sampling import val_frames
from taf_fast.files import read_csv, write_csv
from taf_fast.measure.attention import attend, entropy, frame_shares
from taf_fast.run.folder import RunFolder
from taf_fast.run.model import build_model

CUES = ("easy", "hard")
FRAMES = 24


def main(sweep: Path, data: Path, out: Path) -> None:
    rows = read_csv(out) if out.exists() else []
    measured = {(row["arm"], row["seed"]) for row in rows}
    cues = {(row["split"], row["id"]): row for row in read_csv(data / "cues.csv")}
    datasets = {"train": read_dataset(data, "train"), "val": read_dataset(data, "validation")}
    batches: dict[str, list[Batch]] = {}
    for run in read_csv(sweep / "runs.csv"):
        if (run["arm"], run["seed"]) in measured:
            continue
        folder = RunFolder(Path(run["folder"]))
        config = folder.read_config()
        segments, view = config.num_segments, config.view()
        if not batches:  # the runs of a sweep take the same frames
            for split, dataset in datasets.items():
                found = ClipLoader(
                    scan(dataset, quick=True), segments, config.size, 32, train=False, view=view
                )
                batches[split] = list(found)
        model = build_model(datasets["val"], config.model, segments, checkpoint=folder.weights).eval()
        frames = torch.from_numpy(val_frames(FRAMES, segments, view.sampling))

        clips: dict[str, list[dict[str, float]]] = {}
        for split, split_batches in batches.items():
            for id, share, measures in attended(model, split_batches):
                row = cues[split, id]
                for cue in CUES:
                    shown = (int(row[f"{cue}_first"]) <= frames) & (frames <= int(row[f"{cue}_last"]))
                    measures[f"{cue}_share"] = share[shown].sum().item()
                clips.setdefault("train" if split == "train" else row["version"], []).append(measures)
        rows.append(
            {
                "arm": run["arm"],
                "seed": run["seed"],
                "p_first": wrong_share(folder, 0),
                "p_last": wrong_share(folder, config.epochs - 1),
                "attacked_share": run["attacked_share"],
                "training_loss": run["train_loss"],
            }
            | {
                f"{kind}_{name}": statistics.fmean(clip[name] for clip in found)
                for kind, found in clips.items()
                for name in found[0]
            }
        )
        write_csv(out, rows)
        print(run["arm"], run["seed"], flush=True)


def wrong_share(folder: RunFolder, epoch: int) -> float:
    """The share of the clips of an epoch that the model in training classified wrongly."""
    steps = [line for line in folder.read_metrics() if line["epoch"] == epoch and "correct" in line]
    return 1 - sum(step["correct"] for step in steps) / sum(step["clips"] for step in steps)


def attended(model: nn.Module, batches: list[Batch]) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
    """Of every clip its id, the shares [T] of its attention, and what is measured of it."""
    for batch in batches:
        maps, scores = attend(model, batch.clips, batch.labels)
        shares = frame_shares(maps)
        for id, label, share, spread, score in zip(
            batch.ids, batch.labels.tolist(), shares, entropy(shares), scores, strict=True
        ):
            yield (
                id,
                share,
                {
                    "top1": float(score.argmax() == label),
                    "loss": -score[label].log().item(),
                    "entropy": spread.item(),
                    "top_share": share.max().item(),
                },
            )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
