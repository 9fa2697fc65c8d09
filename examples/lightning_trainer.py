"""TAF in Lightning's Trainer: the LightningModule's training_step calls the step.

python examples/lightning_trainer.py
"""

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

import taf_fast


class TAF(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        taf_fast.add_adversarial_bn(model)
        augment = taf_fast.TemporalAugment()
        self.taf = taf_fast.TAFStep(model, augment, composition="wrong", compile=False)

    def training_step(self, batch, batch_index):
        clips, labels = batch
        out = self.taf(clips, labels)
        print(f"rank {self.global_rank}: loss {out['loss']:.3f}, {out['attacked']} clips attacked")
        return out["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


torch.manual_seed(0)
clips = torch.randint(0, 256, (16, 4, 32, 32, 3), dtype=torch.uint8)  # decoded frames [N,T,H,W,3]
loader = DataLoader(TensorDataset(clips, torch.randint(0, 4, (16,))), batch_size=4, shuffle=True)
model = taf_fast.models.build("tsm_resnet18", num_classes=4, num_segments=4)  # load your weights here

trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    devices=2,
    strategy=DDPStrategy(broadcast_buffers=False),  # each rank keeps its own running statistics
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(TAF(model), loader)

if trainer.is_global_zero:
    taf_fast.strip_adversarial_bn(model)
    torch.save(model.state_dict(), "fine_tuned.pth")
