"""TAF in mmengine's Runner: a model whose "loss" mode is the step, around a recognizer as MMAction2 has them.

python examples/mmengine_runner.py
"""

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

import taf_fast

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class Recognizer2D(nn.Module):  # with MMAction2: MODELS.build(config.model)
    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.cls_head = nn.Linear(16, num_classes)

    def forward(self, inputs, data_samples=None, mode="tensor", stage="backbone"):
        x = self.backbone(inputs.view((-1, *inputs.shape[2:])))
        if stage == "head":
            x = self.cls_head(x.mean((2, 3))).unflatten(0, inputs.shape[:2]).mean(1)
        return x


class ActionDataPreprocessor(BaseDataPreprocessor):  # as MMAction2's
    def forward(self, data, training=False):
        data = self.cast_data(data)
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        return data | {"inputs": (torch.stack(data["inputs"]) - mean) / std}


class TAFRecognizer(BaseModel):
    def __init__(self, recognizer, num_segs):
        super().__init__(ActionDataPreprocessor())
        taf_fast.add_adversarial_bn(recognizer)
        model = taf_fast.adapt(
            recognizer,
            layer="backbone",  # "backbone.layer4" of a ResNet
            num_segments=num_segs,
            mean=[v / 255 for v in MEAN],
            std=[v / 255 for v in STD],
            call=lambda module, clips: module(clips, stage="head"),
        )
        self.recognizer = recognizer
        self.taf = taf_fast.TAFStep(model, taf_fast.TemporalAugment(), composition="wrong", compile=False)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode != "loss":
            return self.recognizer(inputs, data_samples, mode)
        out = self.taf(inputs, torch.cat([sample.gt_label for sample in data_samples]))
        # The Runner sums what has "loss" in its name.
        return {"loss": out["loss"], "attacked": out["attacked"].double()}


class Clips(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        frames = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        return {"inputs": frames, "data_samples": BaseDataElement(gt_label=torch.tensor([index % 4]))}


torch.manual_seed(0)
model = TAFRecognizer(Recognizer2D(num_classes=4), num_segs=4)
runner = Runner(
    model,
    work_dir="work_dir",
    train_dataloader=dict(dataset=Clips(), batch_size=4, sampler=dict(type="DefaultSampler")),
    train_cfg=dict(by_epoch=True, max_epochs=2),
    optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9)),
)
runner.train()
taf_fast.strip_adversarial_bn(model.recognizer)
torch.save(model.recognizer.state_dict(), "fine_tuned.pth")
