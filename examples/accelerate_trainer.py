"""TAF in Hugging Face Accelerate: prepare the step instead of the model.

accelerate launch examples/accelerate_trainer.py

In several processes on a CPU:

ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/accelerate_trainer.py
"""

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch.utils.data import DataLoader, TensorDataset

import taf_fast

# Each process keeps its own running statistics.
accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])

torch.manual_seed(0)
clips = torch.randint(0, 256, (16, 4, 32, 32, 3), dtype=torch.uint8)  # decoded frames [N,T,H,W,3]
data = TensorDataset(clips, torch.randint(0, 4, (16,)))
loader = DataLoader(data, batch_size=4, shuffle=True)

model = taf_fast.models.build("tsm_resnet18", num_classes=4, num_segments=4)  # load your weights here
taf_fast.add_adversarial_bn(model)
step = taf_fast.TAFStep(model, taf_fast.TemporalAugment(), composition="wrong", compile=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
step, optimizer, loader = accelerator.prepare(step, optimizer, loader)

for _ in range(2):
    for clips, labels in loader:
        out = step(clips, labels)
        optimizer.zero_grad()
        accelerator.backward(out["loss"])
        optimizer.step()
        accelerator.print(f"loss {out['loss']:.3f}, {out['attacked']} of {len(labels)} clips attacked")

taf_fast.strip_adversarial_bn(model)
accelerator.save(model.state_dict(), "fine_tuned.pth")
accelerator.end_training()
