"""TAF in several processes: DistributedDataParallel wraps the step, not the model.

torchrun --nproc_per_node 2 examples/ddp.py
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import taf_fast

dist.init_process_group("gloo")  # "nccl" if every process has a GPU

torch.manual_seed(0)
clips = torch.randint(0, 256, (16, 4, 32, 32, 3), dtype=torch.uint8)  # decoded frames [N,T,H,W,3]
data = TensorDataset(clips, torch.randint(0, 4, (16,)))
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=4, sampler=sampler)

model = taf_fast.models.build("tsm_resnet18", num_classes=4, num_segments=4)  # load your weights here
taf_fast.add_adversarial_bn(model)
step = taf_fast.TAFStep(model, taf_fast.TemporalAugment(), composition="wrong", compile=False)
# Each rank keeps its own running statistics.
step = DistributedDataParallel(step, broadcast_buffers=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

for epoch in range(2):
    sampler.set_epoch(epoch)
    for clips, labels in loader:
        out = step(clips, labels)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        print(f"rank {dist.get_rank()}: loss {out['loss']:.3f}, {out['attacked']} clips attacked")

if dist.get_rank() == 0:
    taf_fast.strip_adversarial_bn(model)
    torch.save(model.state_dict(), "fine_tuned.pth")
dist.destroy_process_group()
