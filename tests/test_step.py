"""TAFStep against a literal implementation of Eq. 7."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference.step import share_all_but_batch_norm, taf_losses
from reference.temporal_augment import Net, clips_in_range

from taf_fast import PlainStep, TAFStep, TemporalAugment, add_adversarial_bn, models, strip_adversarial_bn
from taf_fast.augment import CleanForward
from taf_fast.augment.replay import Recording

ATTACK = dict(epsilon=64 / 255, step_size=32 / 255, steps=1, num_frames=4, denominator="max")


def make(generator, batch=6, **options):
    """Return a network, clips and labels; some clips are classified correctly and some wrongly."""
    torch.manual_seed(generator.initial_seed())
    net = Net(segments=4, **options).double()
    net.fc.weight.data *= 4
    x = clips_in_range(net, batch, 4, 9, generator)
    predicted = copy.deepcopy(net)(x).argmax(1)
    labels = torch.where(torch.arange(batch) % 3 == 0, predicted, (predicted + 1) % 5)
    return net, x, labels


def rows_of(composition, batch):
    return [i for i in range(batch) if composition == "all" or (i % 3 == 0) == (composition == "correct")]


@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
@pytest.mark.parametrize("attack_bn", ["frozen", "batch"])
@pytest.mark.parametrize("composition", ["wrong", "all", "correct"])
def test_equals_the_paper(generator, composition, attack_bn, form):
    net, x, labels = make(generator)
    clean, adversarial = copy.deepcopy(net), copy.deepcopy(net)
    share_all_but_batch_norm(clean, adversarial)
    rows = rows_of(composition, 6)
    # Attack labels other than the true ones: the adversarial loss must not use them.
    augment = TemporalAugment(**ATTACK, attack_bn=attack_bn, label="random")
    targets = augment.attack_labels(torch.zeros(6, 5), labels, torch.Generator().manual_seed(1))
    loss, clean_loss, adv_loss, certain = taf_losses(
        clean, adversarial, x, labels, targets, rows, 0.7, attack_bn=attack_bn, **ATTACK
    )
    loss.backward()
    assert certain.all()

    step = TAFStep(add_adversarial_bn(net), augment, 0.7, composition, compile=False)
    out = getattr(step, form)(x, labels, torch.Generator().manual_seed(1))
    if form == "forward":
        out["loss"].backward()
    expected = {"loss": loss, "clean_loss": clean_loss, "adv_loss": adv_loss}
    for name, value in expected.items():
        torch.testing.assert_close(out[name].detach(), value.detach(), rtol=1e-10, atol=0)
    assert out["attacked"] == len(rows)
    assert not out["logits"].requires_grad

    for name, parameter in clean.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-12)
    for norm in ("bn1", "bn2"):
        twin = net.get_submodule(norm).adversarial
        reference = adversarial.get_submodule(norm)
        torch.testing.assert_close(twin.weight.grad, reference.weight.grad, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(twin.bias.grad, reference.bias.grad, rtol=1e-8, atol=1e-12)
        for value in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(twin, value), getattr(reference, value), rtol=1e-10, atol=0)
    for name, value in strip_adversarial_bn(net).state_dict().items():
        torch.testing.assert_close(value, clean.state_dict()[name], rtol=1e-10, atol=0)


def test_any_head(generator):
    net, x, labels = make(generator, deep_head=True)
    clean, adversarial = copy.deepcopy(net), copy.deepcopy(net)
    share_all_but_batch_norm(clean, adversarial)
    loss, *_ = taf_losses(
        clean, adversarial, x, labels, labels, rows_of("wrong", 6), 0.4, attack_bn="frozen", **ATTACK
    )
    loss.backward()
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(**ATTACK, label="true"), 0.4, compile=False)
    out = step.accumulate_grads(x, labels)
    torch.testing.assert_close(out["loss"], loss.detach(), rtol=1e-10, atol=0)
    for name, parameter in clean.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", ["forward", "accumulate_grads"])
def test_no_clip_chosen(generator, form):
    net, x, labels = make(generator)
    labels = copy.deepcopy(net)(x).argmax(1)
    plain = copy.deepcopy(net)
    (0.7 * F.cross_entropy(plain(x), labels)).backward()
    out = getattr(TAFStep(add_adversarial_bn(net), TemporalAugment(), compile=False), form)(x, labels)
    if form == "forward":
        out["loss"].backward()
    assert out["attacked"] == 0 and out["adv_loss"] == 0
    torch.testing.assert_close(out["loss"].detach(), 0.7 * out["clean_loss"])
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).grad, parameter.grad)
    twins = [*net.bn1.adversarial.parameters(), *net.bn2.adversarial.parameters()]
    assert all(torch.equal(twin.grad, torch.zeros_like(twin)) for twin in twins)
    # They share memory, and are gradients like any other.
    net.zero_grad(set_to_none=False)
    twins[0].grad += 1
    assert not any(twin.grad.any() for twin in twins[1:])
    assert net.bn1.adversarial.num_batches_tracked == 0


@pytest.mark.parametrize("closed_form", [False, True])
def test_a_clip_without_a_finite_attack_loss_stays_and_is_counted(generator, closed_form):
    net, x, labels = make(generator)
    if closed_form:
        net.linear_head = (torch.nn.Dropout(0.0), net.fc)
    with torch.no_grad(), Recording() as recording:
        features = net.features(x)
    features[1] = float("inf")
    clean = CleanForward(recording, (features,))
    moved, failed = TemporalAugment(label="true").attack(net, x, labels, clean)
    assert failed.tolist() == [False, True, False, False, False, False]
    assert torch.equal(moved[1], x[1]) and moved.isfinite().all() and not torch.equal(moved[0], x[0])
    step = TAFStep(add_adversarial_bn(make(generator)[0]), TemporalAugment(), compile=False)
    assert step(x, labels)["failed"] == 0


def test_fifty_steps_of_training(generator):
    """Return the losses and weights after textbook steps."""
    net, _, _ = make(generator)
    clean, adversarial = copy.deepcopy(net), copy.deepcopy(net)
    share_all_but_batch_norm(clean, adversarial)
    twins = [p for name in ("bn1", "bn2") for p in adversarial.get_submodule(name).parameters()]
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(**ATTACK, label="true"), 0.7, compile=False)
    expected = torch.optim.SGD([*clean.parameters(), *twins], lr=0.02, momentum=0.9)
    actual = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    batches = [clips_in_range(net, 6, 4, 9, generator) for _ in range(3)]
    attacked = []
    for index in range(50):
        x, labels = batches[index % 3], torch.randint(0, 5, (6,), generator=generator)
        with torch.no_grad():
            rows = (copy.deepcopy(clean)(x).argmax(1) != labels).nonzero().flatten().tolist()
        attacked.append(len(rows))
        expected.zero_grad(), actual.zero_grad()
        if rows:
            loss, *_ = taf_losses(
                clean, adversarial, x, labels, labels, rows, 0.7, attack_bn="frozen", **ATTACK
            )
        else:
            loss = 0.7 * F.cross_entropy(clean(x), labels) + sum(0 * twin.sum() for twin in twins)
        loss.backward()
        out = step.accumulate_grads(x, labels)
        assert out["attacked"] == len(rows)
        torch.testing.assert_close(out["loss"], loss.detach(), rtol=1e-6, atol=1e-9)
        expected.step(), actual.step()
    assert len(set(attacked)) > 2
    for name, parameter in clean.named_parameters():
        torch.testing.assert_close(net.get_parameter(name), parameter, rtol=1e-5, atol=1e-8)


def test_label_of_the_attack_follows_the_generator(generator):
    net, x, labels = make(generator)
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(), composition="all", compile=False)
    losses = [step(x, labels, torch.Generator().manual_seed(s))["adv_loss"].item() for s in (1, 1, 2, 3, 4)]
    assert losses[0] == losses[1] and len(set(losses)) > 1


def test_dropout_stays_active(generator):
    torch.manual_seed(generator.initial_seed())
    net = models.build("tsm_resnet18", 4, 4, dropout=0.5)
    step = TAFStep(add_adversarial_bn(net), TemporalAugment(), composition="all", compile=False)
    x = torch.randn(2, 4, 3, 32, 32, generator=generator)
    labels = torch.tensor([0, 3])
    out = step.accumulate_grads(x, labels)
    assert out["loss"].isfinite() and all(p.grad is not None for p in net.parameters())


def test_uint8_clips(generator):
    net, _, labels = make(generator)
    net = add_adversarial_bn(net.float())
    frames = torch.randint(0, 256, (6, 4, 9, 9, 3), dtype=torch.uint8, generator=generator)
    floats = (frames.float().movedim(-1, 2) / 255 - net.mean.view(3, 1, 1)) / net.std.view(3, 1, 1)
    step = TAFStep(net, TemporalAugment(label="true"), compile=False)
    a, b = step(frames, labels), step(floats, labels)
    torch.testing.assert_close(a["clean_loss"], b["clean_loss"], rtol=1e-4, atol=1e-5)
    assert a["attacked"] == b["attacked"]


def test_alpha_one_and_zero(generator):
    net, x, labels = make(generator)
    for alpha, name in ((1.0, "clean_loss"), (0.0, "adv_loss")):
        dual = add_adversarial_bn(copy.deepcopy(net))
        out = TAFStep(dual, TemporalAugment(label="true"), alpha, compile=False)(x, labels)
        torch.testing.assert_close(out["loss"].detach(), out[name])


def test_plain_step(generator):
    net, x, labels = make(generator)
    reference = copy.deepcopy(net)
    loss = F.cross_entropy(reference(x), labels)
    loss.backward()
    out = PlainStep(net, compile=False).accumulate_grads(x, labels)
    torch.testing.assert_close(out["loss"], loss.detach())
    torch.testing.assert_close(net.conv1.weight.grad, reference.conv1.weight.grad)


@pytest.mark.slow
def test_compiled_equals_eager_and_compiles_a_bounded_number_of_times(generator):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net, x, labels = make(generator, batch=8)
    net, x = net.float(), x.float()
    eager_net = add_adversarial_bn(copy.deepcopy(net))
    eager = TAFStep(eager_net, TemporalAugment(label="true"), compile=False)
    compiled = TAFStep(add_adversarial_bn(net), TemporalAugment(label="true"), compile=True)
    graphs = torch._dynamo.utils.counters["stats"]
    seen = []
    for wrong in (3, 5, 1, 7, 0, 3):
        with torch.no_grad():
            predicted = copy.deepcopy(eager_net)(x).argmax(1)
        labels = torch.where(torch.arange(8) < wrong, (predicted + 1) % 5, predicted)
        for form in ("forward", "accumulate_grads"):
            eager_net.zero_grad(), net.zero_grad()
            a, b = getattr(eager, form)(x, labels), getattr(compiled, form)(x, labels)
            if form == "forward":
                a["loss"].backward(), b["loss"].backward()
            assert a["attacked"] == b["attacked"] == wrong
            for name in ("loss", "clean_loss", "adv_loss", "logits"):
                torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
            for p, q in zip(eager_net.parameters(), net.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None)
                if p.grad is not None:
                    torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
        seen.append(graphs["unique_graphs"])
    # Clean path, adversarial path for several clips and for one.
    assert seen[-1] <= 4 and seen[-1] == seen[2]

    # Frames of another size, because Inductor cannot compile channels_last frames for arbitrary sizes.
    x = clips_in_range(eager_net, 8, 4, 13, generator).float().movedim(2, -1).contiguous().movedim(-1, 2)
    with torch.no_grad():
        labels = copy.deepcopy(eager_net)(x).argmax(1)  # nothing is attacked, which compiles one graph less
    a, b = eager.accumulate_grads(x, labels), compiled.accumulate_grads(x, labels)
    torch.testing.assert_close(a["clean_loss"], b["clean_loss"], rtol=1e-4, atol=1e-5)
    assert graphs["unique_graphs"] > seen[-1]


def test_errors(generator, monkeypatch):
    net, x, labels = make(generator)
    augment = TemporalAugment()
    with pytest.raises(ValueError, match="add_adversarial_bn"):
        TAFStep(net, augment)
    add_adversarial_bn(net)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
            TAFStep(net, augment, alpha=alpha)
    with pytest.raises(ValueError, match="composition must be one of wrong, all, correct, got 'both'"):
        TAFStep(net, augment, composition="both")
    monkeypatch.setattr("taf_fast.step._world_size", lambda: 2)
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(make(generator)[0])
        TAFStep(add_adversarial_bn(synchronised), augment)
    monkeypatch.undo()
    step = TAFStep(net, augment, compile=False)
    bad, before = x.clone(), copy.deepcopy(net.state_dict())
    bad[4, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"clips \[4\]"):
        step(bad, labels)
    # The bad batch changed nothing in the model.
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="int64 labels"):
        step(x, labels[:3])
