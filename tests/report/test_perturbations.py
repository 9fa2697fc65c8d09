"""Sizes of perturbations and the attention to the perturbed clips against loops, and the picture."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from reference.attention import grad_cam, shares
from reference.temporal_augment import Net

import taf_fast
from taf_fast.data import ClipLoader, read_ssv2, scan
from taf_fast.errors import RunError
from taf_fast.measure.attention import attention
from taf_fast.measure.perturbations import perturb, perturbation_rows
from taf_fast.models.pixels import to_model_input
from taf_fast.report.perturbations import perturbations_figure, setting
from taf_fast.report.strips import seen

KINDS = ["clean", "cross-entropy attack", "temporal augmentation"]


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("normalised", [True, False])
def test_rows_and_picture_of_known_perturbations(seed, generator, normalised):
    torch.manual_seed(seed)
    net = Net().eval()
    # All channels count for all classes, so that attention is positive.
    torch.nn.init.uniform_(net.fc.weight, 0.1, 1)
    if not normalised:
        net.mean = net.std = None
    std = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1) if normalised else 1
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1) if normalised else 0
    clip = torch.randint(60, 190, (1, 4, 12, 12, 3), dtype=torch.uint8, generator=generator)
    label = torch.tensor([3])
    sizes = torch.rand(4, generator=generator) * 0.2
    noise = sizes.view(4, 1, 1, 1) * torch.randn(4, 3, 12, 12, generator=generator).clamp(-1, 0.5)
    drawn = []

    def augment(model, x, labels, generator):
        drawn.append(torch.rand(1, generator=generator).item())
        return x + noise / std

    pixels, maps, scores = perturb(net, clip, label, {"one": augment, "two": augment})
    assert drawn[0] == drawn[1]  # both draw the same labels
    rows = perturbation_rows(pixels, maps)
    clean = clip[0].movedim(-1, 1) / 255
    assert list(pixels) == list(maps) == ["clean", "one", "two"]
    for kind, moved in (("clean", clean), ("one", clean + noise), ("two", clean + noise)):
        torch.testing.assert_close(pixels[kind], moved, rtol=0, atol=1e-6)
        expected = shares(grad_cam(net, (moved - mean) / std, 3))
        of_kind = [row for row in rows if row["kind"] == kind]
        assert [row["frame"] for row in of_kind] == list(range(4))
        for frame, row in enumerate(of_kind):
            size = (moved - clean)[frame].abs().max().item()
            assert row["linf"] == pytest.approx(size, abs=1e-6)
            assert row["share"] == pytest.approx(expected[frame], abs=1e-5)

        logits = net(((moved - mean) / std)[None])
        torch.testing.assert_close(scores[kind], logits.softmax(1)[0], rtol=0, atol=1e-5)

    classes = [f"class {n}" for n in range(len(scores["clean"]))]
    found = {kind: seen(maps[kind], scores[kind], 3, classes) for kind in maps}
    title = setting(64 / 255, 0.0625, 2)
    assert title == "epsilon 64/255, step size 15.9375/255, K = 2"
    figure = perturbations_figure(pixels, found, "class 3", [2, 4, 6, 9], title)
    assert len(figure.axes) == 7 and figure.get_suptitle() == title
    for i, kind in enumerate(pixels):
        plain, attended = figure.axes[2 * i : 2 * i + 2]
        best = int(scores[kind].argmax())
        if best == 3:
            said = f'predicted and true "class 3" ({100 * scores[kind][3]:.0f} %)'
        else:
            said = f'predicted "class {best}" ({100 * scores[kind][best]:.0f} %), '
            said += f'true "class 3" ({100 * scores[kind][3]:.0f} %)'
        assert plain.get_title(loc="left") == f"{kind}: {said}" and len(plain.images) == 1
        assert attended.get_title(loc="left") == f"attention, {kind}: {said}"
        shown = plain.images[0].get_array()[:, :12]
        assert np.abs(shown / 255.0 - pixels[kind][0].movedim(0, -1).numpy()).max() < 0.6 / 255
        grey = plain.images[0].get_array() @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(attended.images[0].get_array(), grey)
        shown_shares = [f"{100 * row['share']:.0f} %" for row in rows if row["kind"] == kind]
        words = [f"frame {n}\n{share}" for n, share in zip([2, 4, 6, 9], shown_shares, strict=True)]
        assert [text.get_text() for text in attended.get_xticklabels()] == words


@pytest.mark.slow
def test_perturbations_command(dataset, runs, tmp_path, output):
    clips = scan(read_ssv2(dataset, "validation"))
    weights, out = runs[1] / "model.safetensors", tmp_path / "perturbations.png"
    arguments = ["perturbations", "--data", dataset, "--checkpoint", weights, "--device", "cpu", "--out", out]
    sizes = ["--epsilon", 3 / 255, "--step-size", 2 / 255, "--steps", 2]
    output(*arguments, "--clip", clips.clips[4].id, *sizes)
    rows = read(out.with_suffix(".csv"))
    assert [row["kind"] for row in rows] == [kind for kind in KINDS for _ in range(8)]

    model = taf_fast.models.build("tsm_resnet18", 8, 8)
    taf_fast.models.load(model, weights)
    model.eval()
    batch = list(ClipLoader(clips, 8, 64, 1, train=False))[4]
    options = dict(epsilon=3 / 255, step_size=2 / 255, steps=2)
    for kind, augment in (
        ("cross-entropy attack", taf_fast.CrossEntropyAugment(**options)),
        ("temporal augmentation", taf_fast.TemporalAugment(**options)),
    ):
        generator = torch.Generator().manual_seed(0)
        moved = augment(model, batch.clips, batch.labels, generator)
        found = [row for row in rows if row["kind"] == kind]
        expected = shares(attention(model, moved, batch.labels)[0])
        np.testing.assert_allclose([float(row["share"] or 1 / 8) for row in found], expected, atol=1e-3)
        reached = [float(row["linf"]) for row in found]
        assert max(reached) == pytest.approx(3 / 255, abs=1e-5)
    clean = [row for row in rows if row["kind"] == "clean"]
    expected = shares(attention(model, batch.clips, batch.labels)[0])
    np.testing.assert_allclose([float(row["share"] or 1 / 8) for row in clean], expected, atol=1e-4)
    scores = model(to_model_input(model, batch.clips)).softmax(1)[0].detach()
    best, label = int(scores.argmax()), int(batch.labels)
    for name, value in (("score", scores[best]), ("true_score", scores[label]), ("epsilon", 3 / 255)):
        assert [float(row[name]) for row in clean] == [pytest.approx(float(value), abs=1e-3)] * 8
    assert {row["predicted"] for row in clean} == {clips.classes[best]}
    assert {float(row["linf"]) for row in clean} == {0}
    with Image.open(out) as image:
        image.load()
        assert image.width > 8 * 100 and image.height > 6 * 100


@pytest.mark.slow
def test_the_paper_s_sizes_are_the_default_and_nothing_is_random(dataset, runs, tmp_path, output):
    contents = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.png"
        weights = runs[0] / "model.safetensors"
        output("perturbations", "--data", dataset, "--checkpoint", weights, "--out", out, "--device", "cpu")
        contents.append(out.with_suffix(".csv").read_bytes())
    assert contents[0] == contents[1]
    for kind in KINDS[1:]:
        sizes = [float(row["linf"]) for row in read(tmp_path / "one.csv") if row["kind"] == kind]
        assert max(sizes) == pytest.approx(32 / 255, abs=1e-5)


def test_perturbations_names_what_it_cannot_do(dataset, runs, tmp_path, error):
    weights, out = runs[0] / "model.safetensors", tmp_path / "perturbations.png"
    arguments = ["perturbations", "--data", dataset, "--checkpoint", weights, "--out", out]
    assert "'nothing': no such clip" in error(*arguments, "--clip", "nothing")
    assert "are 64/255, got -1.0" in error(*arguments, "--epsilon", -1)
    assert "steps must be at least 1, got 0" in error(*arguments, "--steps", 0)
    assert "does not exist" in error(*arguments[:3], "--checkpoint", tmp_path / "no.pth", *arguments[5:])
    assert not list(tmp_path.iterdir())


def test_a_model_without_features_of_every_frame_is_named():
    model = taf_fast.models.build("tam_resnet18", 5, 8, temporal_stride=True).eval()
    clip = torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(RunError, match="have 1 frames, expected one for each of the clip's 8"):
        perturb(model, clip, torch.tensor([0]), {"ta": taf_fast.TemporalAugment()})
