"""TAF in transformers' Trainer: its model's loss is the step's.

python examples/transformers_trainer.py
"""

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, VideoMAEConfig, VideoMAEForVideoClassification

import taf_fast


class TAF(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        model = taf_fast.adapt(
            classifier,
            layer="videomae.encoder.layer.0",  # the last but one: layer 10 of the base model
            num_segments=4,
            layout="[B,T/2*n,C]",
            mean=[0.485, 0.456, 0.406],
            std=[0.229, 0.224, 0.225],
        )
        taf_fast.add_adversarial_bn(model)  # VideoMAE has no batch norm: both paths are the same
        self.classifier = classifier
        augment = taf_fast.TemporalAugment(num_frames=2)
        self.taf = taf_fast.TAFStep(model, augment, composition="wrong", compile=False)

    def forward(self, pixel_values, labels):
        if not self.training:
            return self.classifier(pixel_values, labels=labels)
        out = self.taf(pixel_values, labels)
        return {"loss": out["loss"], "logits": out["logits"]}


class Clips(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):  # with real videos: VideoMAEImageProcessor(frames)
        draw = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(4, 3, 32, 32, generator=draw), "labels": index % 4}


torch.manual_seed(0)
config = VideoMAEConfig(
    image_size=32,
    patch_size=16,
    num_frames=4,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    num_labels=4,
)
model = TAF(VideoMAEForVideoClassification(config))  # or .from_pretrained(...)
model.classifier.gradient_checkpointing_enable()  # optional: half the memory, the same numbers
arguments = TrainingArguments(
    "output",
    num_train_epochs=2,
    per_device_train_batch_size=4,
    learning_rate=1e-3,
    save_strategy="no",
    report_to="none",
)
trainer = Trainer(model, arguments, train_dataset=Clips(), eval_dataset=Clips())
trainer.train()
print(f"loss after training {trainer.evaluate()['eval_loss']:.3f}")
torch.save(model.classifier.state_dict(), "fine_tuned.pth")
