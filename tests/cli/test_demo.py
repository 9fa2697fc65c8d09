"""The demo in seconds: it leaves all promised files and can be continued."""

import json

import pytest

from taf_fast.cli import demo
from taf_fast.files import read_csv


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "_TRAIN_PER_CLASS", 2)
    monkeypatch.setattr(demo, "_VAL_PER_CLASS", 1)
    monkeypatch.setattr(demo, "_BASELINE", demo._BASELINE | dict(size=32, batch_size=8, epochs=1))
    monkeypatch.setattr(demo, "_FINETUNE", demo._FINETUNE | dict(epochs=1))


@pytest.mark.slow
def test_demo(small, tmp_path, capsys):
    assert demo.demo(tmp_path / "demo")
    printed = capsys.readouterr().out
    for word in ("top-1", "top-5", "loss", "overhead", "attacked", "baseline", "plainly", "with TAF"):
        assert word in printed
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert set(results) == {"baseline", "plain", "taf", "taf_overhead"}
    assert 0 < results["taf"]["attacked_share"] <= 1 and results["plain"]["attacked_share"] == 0
    for picture, models in (("loss", {"plain", "taf"}), ("attention", {"baseline", "taf"})):
        assert (tmp_path / "demo" / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
        column = "run" if picture == "loss" else "model"
        assert {row[column] for row in read_csv(tmp_path / "demo" / f"{picture}.csv")} == models
    for run in ("baseline", "plain", "taf"):
        left = {path.name for path in (tmp_path / "demo" / run).iterdir()}
        assert {"config.yaml", "metrics.jsonl", "state.safetensors", "model.safetensors"} <= left

    weights = (tmp_path / "demo" / "taf" / "model.safetensors").read_bytes()
    assert demo.demo(tmp_path / "demo")
    assert (tmp_path / "demo" / "taf" / "model.safetensors").read_bytes() == weights
