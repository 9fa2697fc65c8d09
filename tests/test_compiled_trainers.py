"""Trainers that compile what they train: the step stays as it is, and its numbers too."""

import copy
from functools import partial

import pytest
import torch
from literal_step import check_recorded, recorded_steps
from reference.splits import Split
from reference.temporal_augment import Net, clips_in_range
from torch.utils.data import DataLoader, TensorDataset

from taf_fast import TAFStep, TemporalAugment, add_adversarial_bn


class SplitNet(Split):
    def features(self, clips):
        return self.module.features(clips)

    def head(self, features):
        return self.module.head(features)


@pytest.mark.slow
@pytest.mark.parametrize("compile_engines", [False, True])
def test_a_compiled_lightning_module_takes_literal_steps(generator, monkeypatch, tmp_path, compile_engines):
    lightning = pytest.importorskip("lightning")
    torch._dynamo.reset()
    monkeypatch.chdir(tmp_path)

    class Module(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.taf = TAFStep(add_adversarial_bn(net), TemporalAugment(), compile=compile_engines)

        def training_step(self, batch, _index):
            clips, labels = batch
            return self.taf(clips * 1, labels)["loss"] * 1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    net = Net().double()
    plain = copy.deepcopy(net)
    clips = clips_in_range(net, 12, 4, 9, generator)
    loader = DataLoader(TensorDataset(clips, torch.randint(0, 5, (12,), generator=generator)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    with recorded_steps(monkeypatch) as steps:
        trainer.fit(torch.compile(Module(net)), loader)
    assert len(steps) == 3
    reference = SplitNet(plain, net.mean, net.std)
    assert any([check_recorded(step, reference) for step in steps])
