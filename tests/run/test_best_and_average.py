"""The moving average, the best epoch, early stopping and more epochs, in runs that resume bit for bit."""

import copy
import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch
from run_command import finetune_arguments
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel

from taf_fast import add_adversarial_bn
from taf_fast.data import DataError
from taf_fast.errors import CheckpointError, RunError
from taf_fast.measure.evaluate import Evaluation, predict, score
from taf_fast.run.average import moving_average
from taf_fast.run.best import Best
from taf_fast.run.checkpoint import load_state, save_state
from taf_fast.run.config import FinetuneConfig
from taf_fast.run.finetune import finetune
from taf_fast.run.folder import RunFolder
from taf_fast.run.trained import open_trained

SMALL = dict(model="tsm_resnet18", num_segments=2, size=32, batch_size=8)  # 3 steps an epoch
ALL = dict(epochs=2, lr=1e-3, schedule="cosine", warmup_epochs=1, optimizer="adamw", ema=0.6)
ALL |= dict(keep_best="loss", checkpoint_every=4)
PLAIN = dict(augment="none", lr=0.01, schedule="constant", keep_best="loss", patience=1)


def config(dataset, out, **values):
    return FinetuneConfig(data=dataset, out=out, **SMALL | values)


def measured(out):
    times = ("step_seconds", "wait_seconds", "time")
    return [{k: v for k, v in line.items() if k not in times} for line in RunFolder(out).read_metrics()]


def scores(out):
    return [line for line in measured(out) if "val_loss" in line]


def assert_same_run(out, reference):
    for name in ("model.safetensors", "best.safetensors", "state.safetensors"):
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    assert measured(out) == measured(reference)


@pytest.fixture
def at_step():
    """Call ``act`` after the optimiser's step of that number in this process."""
    hooks = []

    def install(number, act):
        count = iter(range(1, 1000))
        hooks.append(register_optimizer_step_post_hook(lambda *_: next(count) == number and act()))

    yield install
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A run with everything at once, and its model after every step."""
    out, steps = tmp_path_factory.mktemp("runs") / "finished", []
    update = AveragedModel.update_parameters

    def recorded(average, model):
        steps.append({name: value.double() for name, value in model.state_dict().items()})
        update(average, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AveragedModel, "update_parameters", recorded)
        finetune(config(dataset, out, **ALL))
    return out, steps


def averages(steps, decay):
    average = steps[0]
    for now in steps:
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
        yield average


@pytest.mark.slow
def test_the_average_is_evaluated_and_saved(dataset, finished):
    """Weights and statistics of both sets of norms, against the recurrence in float64."""
    out, steps = finished
    state, expected = load_file(out / "state.safetensors"), list(averages(steps, 0.6))
    assert any(".adversarial.running_var" in name for name in expected[-1])
    for name, value in expected[-1].items():
        average = state[f"average.module.{name}"]
        if "num_batches" in name:
            assert torch.equal(average, state[f"model.{name}"])
        else:
            torch.testing.assert_close(average.double(), value, rtol=1e-5, atol=1e-6)
    result = json.loads((out / "result.json").read_text())
    epoch = result["best"]["epoch"]
    for file, average in (("model", expected[-1]), ("best", expected[3 * epoch + 2])):
        weights = load_file(out / f"{file}.safetensors")
        assert weights.keys() == {name for name in average if ".adversarial." not in name}
        for name, value in weights.items():
            if "num_batches" not in name:
                torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    losses = [line["val_loss"] for line in scores(out)]
    assert [line["best_epoch"] for line in scores(out)] == [0, losses.index(min(losses))]
    assert result["best"]["evaluation"]["loss"] == losses[epoch] == min(losses)
    for file, evaluation in (("model", result["evaluation"]), ("best", result["best"]["evaluation"])):
        trained = open_trained(dataset, out / f"{file}.safetensors", torch.device("cpu"))
        found = score(predict(trained.model, trained.loader, trained.device))
        assert dataclasses.asdict(found) == pytest.approx(evaluation)


@pytest.mark.slow
def test_stopped_killed_and_resumed_equals_uninterrupted(dataset, finished, tmp_path, at_step):
    """SIGTERM in the first epoch, and an end without warning in the second, after a state within it."""

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    at_step(5, kill)
    run = config(dataset, tmp_path / "run", **ALL)
    assert finetune(run) is None
    with pytest.raises(Killed):
        finetune(run, resume=True)
    assert [line["step"] for line in measured(run.out) if "loss" in line] == [1, 2, 3, 4]
    assert not (run.out / "model.safetensors").exists()
    finetune(run, resume=True)
    assert_same_run(run.out, finished[0])


def scripted(patch, *values):
    """Let the validation losses of epoch after epoch be ``values``."""
    rest = iter(values)
    patch.setattr(
        "taf_fast.run.training.score",
        lambda predictions: dataclasses.replace(score(predictions), loss=next(rest, 9.0)),
    )


@pytest.fixture(scope="module")
def short(dataset, tmp_path_factory):
    """A run of one epoch, after which its loss is 2."""
    out = tmp_path_factory.mktemp("runs") / "short"
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch, 2.0)
        finetune(config(dataset, out, epochs=1, **PLAIN))
    return out


@pytest.mark.slow
def test_a_run_ends_early_and_one_of_fewer_epochs_goes_on(dataset, short, tmp_path, monkeypatch, capsys):
    """A run that is resumed for more epochs is the one that had them from the start."""
    early, other = tmp_path / "early", shutil.copytree(short, tmp_path / "other")
    scripted(monkeypatch, 2.0, 3.0)
    finetune(config(dataset, early, epochs=4, **PLAIN))
    assert "ended after epoch 2: no better loss since epoch 1" in capsys.readouterr().out
    assert [line["best_epoch"] for line in scores(early)] == [0, 0]
    best = json.loads((early / "result.json").read_text())["best"]
    assert (best["measure"], best["epoch"], best["evaluation"]["loss"]) == ("loss", 0, 2.0)

    shorter = {path.name: path.read_bytes() for path in other.iterdir()}
    assert shorter["model.safetensors"] == (early / "best.safetensors").read_bytes()
    # A kill between the state and the weights of its epoch leaves these to the next start.
    (other / "best.safetensors").unlink()
    scripted(monkeypatch, 3.0)
    finetune(config(dataset, other, epochs=4, **PLAIN), resume=True)
    assert_same_run(other, early)
    assert RunFolder(other).read_config().epochs == 4
    aside = {path.name: path.read_bytes() for path in (other / "after_epoch_1").iterdir()}
    results = ("model.safetensors", "best.safetensors", "result.json")
    results += ("predictions.csv", "predictions.columns.txt")
    assert aside == {name: shorter[name] for name in results}

    # Nothing is left to do for the one that ended early.
    finetune(config(dataset, other, epochs=8, **PLAIN), resume=True)
    assert_same_run(other, early)
    assert len(list(other.glob("after_*"))) == 1
    with pytest.raises(RunError, match="epochs: 8 there, 4 now"):
        finetune(config(dataset, other, epochs=4, **PLAIN), resume=True)
    (other / "best.safetensors").write_bytes((early / "best.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="best.safetensors is truncated"):
        finetune(config(dataset, other, epochs=8, **PLAIN), resume=True)
    (other / "best.safetensors").unlink()
    with pytest.raises(RunError, match="best.safetensors does not exist, expected the weights after epoch 1"):
        finetune(config(dataset, other, epochs=8, **PLAIN), resume=True)


@pytest.mark.slow
def test_a_run_goes_on_without_its_results(dataset, short, tmp_path, at_step):
    """A longer run that fails has no final weights, and those of the shorter one are kept."""
    out = shutil.copytree(short, tmp_path / "run")

    def spoil():
        raise RunError("diverged")

    at_step(1, spoil)
    with pytest.raises(RunError, match="diverged"):
        finetune(config(dataset, out, epochs=2, **PLAIN), resume=True)
    assert not (out / "model.safetensors").exists() and RunFolder(out).read_result() is None
    for name in ("model.safetensors", "result.json"):
        assert (out / "after_epoch_1" / name).read_bytes() == (short / name).read_bytes()


@pytest.mark.slow
def test_an_epoch_that_could_not_be_validated_is_validated_later(dataset, short, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def fail(*_):
        error = DataError("the disk is away")
        error.known_to_all_ranks = True
        raise error

    with monkeypatch.context() as patch, pytest.raises(DataError, match="the disk is away"):
        patch.setattr("taf_fast.run.training.predict", fail)
        finetune(config(dataset, out, epochs=1, **PLAIN))
    assert not scores(out)
    scripted(monkeypatch, 2.0)
    finetune(config(dataset, out, epochs=1, **PLAIN), resume=True)
    assert_same_run(out, short)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_diverged_run_has_no_final_weights(dataset, tmp_path, error, optimizer):
    out = tmp_path / "run"
    options = SMALL | dict(epochs=2, lr=1e12, optimizer=optimizer, ema=0.9, keep_best="top1")
    message = error(*finetune_arguments(dataset, out, **options), "--augment", "none")
    assert "expected finite values" in message or "expected a finite number" in message
    assert not (out / "model.safetensors").exists() and not (out / "result.json").exists()


def test_the_average_of_both_sets_of_norms(generator):
    model = add_adversarial_bn(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    average = moving_average(model, 0.75)
    steps = []
    for _ in range(4):
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
            else:
                value += 7
        steps.append({name: value.double() for name, value in model.state_dict().items()})
        average.update_parameters(model)
    assert any("adversarial.running_mean" in name for name in steps[0])
    *_, expected = averages(steps, 0.75)
    for name, value in average.module.state_dict().items():
        whole = not value.is_floating_point()
        torch.testing.assert_close(value.double(), steps[-1][name] if whole else expected[name])


def test_a_state_has_an_average_or_has_none(tmp_path):
    model = nn.Linear(3, 2)
    optimizer, average = torch.optim.SGD(model.parameters(), 0.1), moving_average(model, 0.5)
    average.update_parameters(model)
    save_state(tmp_path / "with", model, optimizer, {}, {}, average)
    save_state(tmp_path / "without", model, optimizer, {}, {})
    again = moving_average(copy.deepcopy(model), 0.5)
    load_state(tmp_path / "with", model, optimizer, again)
    assert again.n_averaged == 1
    with pytest.raises(CheckpointError, match="it has a moving average of the model"):
        load_state(tmp_path / "with", model, optimizer)
    with pytest.raises(CheckpointError, match="it has no moving average of the model"):
        load_state(tmp_path / "without", model, optimizer, average)


@pytest.mark.parametrize(
    "measure, values, epochs",
    [
        ("top1", (0.5, 0.5, 0.75, 0.25), (0, 0, 2, 2)),
        ("top5", (0.5, 0.25, 0.75, 1.0), (0, 0, 2, 3)),
        ("loss", (2.0, 2.0, 1.5, 1.75), (0, 0, 2, 2)),
    ],
)
def test_the_first_of_the_best(measure, values, epochs):
    other = {"top1": 0.0, "top5": 0.0, "loss": 0.0, "clips": 8}
    evaluations = [Evaluation(**other | {measure: value}) for value in values]
    best = Best(measure, 0, evaluations[0])
    for epoch, evaluation in enumerate(evaluations):
        best = best.or_better(epoch, evaluation)
        assert best == Best(measure, epochs[epoch], evaluations[epochs[epoch]])
