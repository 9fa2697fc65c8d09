"""TAF for a timm model over frames, with mixed precision and an exponential moving average of the weights.

python examples/timm_loop.py
"""

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import taf_fast


class FrameNet(nn.Module):
    """Averages the logits of a clip's frames: [B,T,3,H,W] -> [B,classes]."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, clips):
        return self.backbone(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
backbone = timm.create_model("resnet18", num_classes=4, channels=(8, 8, 16, 16))  # pretrained=True
net = taf_fast.add_adversarial_bn(FrameNet(backbone)).to(device)
model = taf_fast.adapt(
    net,
    # With backbone.set_grad_checkpointing(): "backbone.layer4.1". timm then calls the blocks, not the stage.
    layer="backbone.layer4",
    num_segments=4,
    mean=backbone.default_cfg["mean"],
    std=backbone.default_cfg["std"],
)
step = taf_fast.TAFStep(model, taf_fast.TemporalAugment(), composition="wrong", compile=False)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
scaler = torch.amp.GradScaler(device)
ema = ModelEmaV3(net, decay=0.9)  # after add_adversarial_bn, so that it has the same keys

for _ in range(3):
    clips = torch.randint(0, 256, (4, 4, 64, 64, 3), dtype=torch.uint8, device=device)  # [B,T,H,W,3]
    labels = torch.randint(0, 4, (4,), device=device)
    with torch.autocast(device, torch.bfloat16):
        out = step(clips, labels)
    optimizer.zero_grad()
    scaler.scale(out["loss"]).backward()
    scaler.step(optimizer)
    scaler.update()
    ema.update(net)
    print(f"loss {out['loss']:.3f}, {out['attacked']} of {len(labels)} clips attacked")

taf_fast.strip_adversarial_bn(ema.module)
torch.save(ema.module.state_dict(), "fine_tuned.pth")
