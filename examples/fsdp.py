"""TAF with sharded parameters (FSDP2): fully_shard the step, once and as a whole.

torchrun --nproc_per_node 2 examples/fsdp.py
"""

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
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
# Not a part of the model alone: a rank without attacked clips would leave the others waiting for it.
fully_shard(step)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)  # of the sharded parameters

for epoch in range(2):
    sampler.set_epoch(epoch)
    for clips, labels in loader:
        out = step(clips, labels)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        print(f"rank {dist.get_rank()}: loss {out['loss']:.3f}, {out['attacked']} clips attacked")

taf_fast.strip_adversarial_bn(model)
# All ranks gather; rank 0 gets the result.
weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if dist.get_rank() == 0:
    torch.save(weights, "fine_tuned.pth")
dist.destroy_process_group()
