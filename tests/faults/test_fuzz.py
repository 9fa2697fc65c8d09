"""Drawn contents: annotations, recipes, configurations, checkpoints and the values of commands. Each is used,
or refused with one error."""

import json
import math
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from faults.commands import often
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from taf_fast.cli.train import OPTIONS
from taf_fast.data import read_dataset
from taf_fast.errors import CheckpointError, DataError, RunError, UserError
from taf_fast.run.config import FIELDS, FinetuneConfig
from taf_fast.run.folder import RunFolder
from taf_fast.run.model import build_model
from taf_fast.run.recipes import read_recipe
from taf_fast.run.values import declaration
from taf_fast.sweep.plan import read_sweep

drawn = settings(
    max_examples=often(10, 400),
    deadline=None,
    # The fixtures only count, and write the same file again.
    suppress_health_check=list(HealthCheck),
)

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "0", "-1", "64/255", "1/0", "nan", "inf", "1e999999999", "[/]", "=1+1", "\udcff", "a" * 5000]
    ),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([-1, 0, 2**31, 2**63, 10**400, math.nan, math.inf, -math.inf, 1e308, 5e-324]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


@contextmanager
def in_time(seconds=60):
    """No parser hangs; the alarm interrupts it wherever it is in Python."""

    def late(*_):
        raise AssertionError(f"still runs after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_error(error: UserError) -> None:
    """It can be printed."""
    assert str(error).encode(errors="backslashreplace")


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))


@st.composite
def changed(draw, whole):
    """JSON values that are ``whole`` but for one to three places."""
    content = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while isinstance(place, (list, dict)) and place:
            key = draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
            inside = place[key]
            if isinstance(inside, (list, dict)) and inside and draw(st.integers(0, 3)):
                place = inside
                continue
            action = draw(st.sampled_from(["value", "remove", "name"]))
            if action == "value":
                place[key] = draw(values)
            elif action == "remove":
                del place[key]
            elif isinstance(place, dict):
                place[draw(texts)] = place.pop(key)
            break
    return content


def dumped(content) -> str:
    # Surrogates as they are in half of the parsers' inputs: json.dumps escapes them.
    return json.dumps(content)


@pytest.fixture
def copied(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "data")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["labels", "train", "validation"])
def test_annotations(fault, copied, part):
    file = next(copied.glob(f"*{part}.json"))
    whole = json.loads(file.read_text())

    @drawn
    @given(st.one_of(changed(whole), values))
    def check(content):
        write(file, dumped(content))
        with fault("fuzzed annotations"), in_time():
            try:
                for split in ("train", "validation"):
                    found = read_dataset(copied, split)
                    assert all(0 <= sample.label < len(found.classes) for sample in found.samples)
            except DataError as error:
                one_error(error)

    check()


@pytest.mark.slow
def test_lists_and_trees(fault, tmp_path):
    """Lines of any text as the official projects' lists."""
    root = tmp_path / "data"
    root.mkdir()

    @drawn
    @given(
        st.lists(st.one_of(texts, st.from_regex(r"[a-z/. ]{1,9} -?[0-9]{1,3} -?[0-9]{1,3}", fullmatch=True)))
    )
    def check(lines):
        for split in ("train", "val"):
            write(root / f"{split}_videofolder.txt", "\n".join(lines))
        write(root / "category.txt", "a\nb\nc")
        with fault("fuzzed lists"), in_time():
            try:
                read_dataset(root, "train")
            except DataError as error:
                one_error(error)

    check()


names = st.one_of(st.sampled_from(sorted(FIELDS)), texts)


@pytest.mark.slow
def test_recipes(fault, tmp_path):
    """A recipe gives a configuration, or one error."""
    file = tmp_path / "recipe.yaml"

    @drawn
    @given(st.one_of(st.dictionaries(names, st.one_of(values, numbers), max_size=4).map(yaml.dump), texts))
    def check(text):
        write(file, text)
        with fault("fuzzed recipes"), in_time():
            try:
                FinetuneConfig(**{"data": "d", "out": "o", "model": "tsm_resnet18"} | read_recipe(str(file)))
            except RunError as error:
                one_error(error)

    check()


@pytest.mark.slow
def test_plans_of_sweeps(fault, tmp_path):
    file = tmp_path / "plan.yaml"
    arms = {"plain": {"augment": "none"}, "TAF": {}}
    whole = {
        "values": {"lr": 0.01},
        "start": {"model": "tsm_resnet18"},
        "arms": arms,
        "measure": ["attention"],
    }

    @drawn
    @given(changed(whole))
    def check(content):
        write(file, yaml.dump(content))
        with fault("fuzzed plans of sweeps"), in_time():
            try:
                read_sweep(str(file), {"data": "d", "out": str(tmp_path / "out"), "checkpoint": None})
            except UserError as error:
                one_error(error)

    check()


@pytest.mark.slow
def test_configurations(fault, tmp_path):
    """The file of a run, with other values: what is read was in the file."""
    folder = RunFolder(tmp_path)
    FinetuneConfig(data="d", out=str(tmp_path), model="tsm_resnet18").write(folder.config)
    whole = yaml.safe_load(folder.config.read_text())

    @drawn
    @given(st.one_of(changed(whole), values))
    def check(content):
        write(folder.config, yaml.dump(content))
        with fault("fuzzed configurations"), in_time():
            try:
                found = folder.read_config()
            except RunError as error:
                one_error(error)
            else:
                assert {name: getattr(found, name) for name in ("lr", "epochs")} == {
                    name: content.get(name, FIELDS[name].default) for name in ("lr", "epochs")
                }

    check()


tensors = st.one_of(
    st.builds(
        lambda shape, kind, fill: torch.full(shape, fill).to(kind),
        st.lists(st.integers(0, 3), max_size=5),
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
        st.sampled_from([0.0, 1.0, math.nan, math.inf]),
    )
)
keys = st.one_of(
    st.sampled_from(
        ["conv1.weight", "fc.weight", "fc.bias", "module.new_fc.weight", "layer1.0.conv1.weight"]
    ),
    st.text(max_size=8),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_checkpoints(fault, dataset, whole, tmp_path, kind):
    """A model's tensors with some of them replaced, renamed or left out, and any header."""
    file, data = tmp_path / f"weights.{kind}", read_dataset(dataset, "validation")
    from safetensors import safe_open

    with safe_open(whole / "model.safetensors", framework="pt") as opened:
        header = json.loads(opened.metadata()["taf_fast"].partition(" ")[2])
        present = opened.keys()
        weights = {name: opened.get_tensor(name) for name in present}
    headers = st.one_of(changed(header).map(json.dumps), texts.filter(str.isprintable))

    @settings(drawn, max_examples=often(3, 100))
    @given(
        st.dictionaries(keys, tensors, max_size=3),
        st.sets(st.sampled_from(sorted(weights)), max_size=2),
        headers,
    )
    def check(others, removed, text):
        content = {name: tensor for name, tensor in weights.items() if name not in removed} | others
        try:
            if kind == "pth":
                torch.save({"state_dict": content}, file)
            else:
                save_file(content, file, metadata={"taf_fast": text})
        except (ValueError, UnicodeError):
            return  # such a file cannot be written
        with fault(f"fuzzed checkpoints ({kind})"), in_time():
            try:
                model = build_model(data, "tsm_resnet18", 8, checkpoint=file)
            except (RunError, CheckpointError) as error:
                one_error(error)
            else:
                assert all(torch.isfinite(value).all() for value in model.state_dict().values())
                assert not removed or all(name.endswith("num_batches_tracked") for name in removed)

    check()


flags = {name: declaration(FIELDS[name]).option or f"--{name.replace('_', '-')}" for name in OPTIONS}
given_texts = st.one_of(numbers.map(str), texts).filter(lambda text: "\0" not in text)


@pytest.mark.slow
def test_values_of_finetune(fault, commands, tmp_path):
    """Without data, so that values that can work end there."""
    nothing = tmp_path / "nothing"
    nothing.mkdir()

    @settings(drawn, max_examples=often(4, 200))
    @given(st.dictionaries(st.sampled_from(sorted(flags)), given_texts, min_size=1, max_size=3))
    def check(options):
        options = {flags[name].split("/")[0]: text for name, text in options.items()}
        arguments = {
            "--data": nothing,
            "--out": tmp_path / "out",
            "--model": "tsm_resnet18",
            "--device": "cpu",
        }
        arguments |= options | {"--data": nothing}
        with fault("fuzzed values of finetune"):
            flat = [part for option, text in arguments.items() for part in (option, text)]
            assert not commands.run(["finetune", *flat]).held()
            assert not (tmp_path / "out").exists()

    check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", often(["evaluate"], ["evaluate", "attention", "robustness", "perturbations"])
)
def test_values_of_measures(fault, commands, dataset, whole, tmp_path, command):
    options = ["--num-segments", "--size", "--device", "--threads", "--quarantine-limit", "--manifest"]
    options += ["--class-order", "--checkpoint", "--data"] + (
        ["--batch-size"] if command == "evaluate" else []
    )
    out = tmp_path / "out"

    @settings(drawn, max_examples=often(2, 30))
    @given(st.sampled_from(options), given_texts.filter(lambda text: not text.isdigit() or len(text) > 9))
    def check(option, text):
        arguments = {"--data": dataset, "--checkpoint": whole / "model.safetensors", "--device": "cpu"}
        flat = [part for pair in (arguments | {option: text}).items() for part in pair]
        with fault(f"fuzzed values of {command}"):
            assert commands.run([command, *flat, "--out", out]).held() == out.exists()
        out.unlink(missing_ok=True)

    check()
