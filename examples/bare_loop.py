"""TAF in your own training loop: three lines more than plain fine-tuning."""

import torch

import taf_fast

torch.manual_seed(0)
model = taf_fast.models.build("tsm_resnet18", num_classes=4, num_segments=8)
taf_fast.add_adversarial_bn(model)
step = taf_fast.TAFStep(model, taf_fast.TemporalAugment(), composition="wrong", compile=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

for _ in range(3):
    clips = torch.randint(0, 256, (8, 8, 64, 64, 3), dtype=torch.uint8)  # decoded frames [B,T,H,W,3]
    labels = torch.randint(0, 4, (8,))
    out = step(clips, labels)
    optimizer.zero_grad()
    out["loss"].backward()
    optimizer.step()
    print(f"loss {out['loss']:.3f}, {out['attacked']} of {len(labels)} clips attacked")

taf_fast.strip_adversarial_bn(model)
torch.save(model.state_dict(), "fine_tuned.pth")
