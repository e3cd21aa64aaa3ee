"""Several processes, one per GPU, as torchrun starts them.

    torchrun --nproc-per-node 4 --module vllm_nld.adapter.train MODEL --prompts ... --out ... --shard

Each process takes its share of a step's conversations. It holds the whole model, or, after `shard`, a share of the
frozen weights, and gathers a layer when it computes it. The adapter is small, so every process holds all of it.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from vllm_nld.reference.model import ReferenceModel

PATIENCE = timedelta(days=1)  # the first process may let a server write answers while the others wait


def connect(world: int) -> int:
    """Connect the processes, if there are several. Returns this one's rank."""
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def first_alone(rank: int, world: int) -> Iterator[None]:
    """The first process goes first, and the others follow when it is through. They find the files that it wrote."""
    if world > 1 and rank > 0:
        dist.barrier()
    yield
    if world > 1 and rank == 0:
        dist.barrier()


def shard(model: ReferenceModel, device: torch.device) -> None:
    """Move this process's share of each frozen weight to the device, layer by layer, and all of the adapter."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for lora in model.loras():
        lora.to(device)
    adapter = {weight for name, weight in model.named_parameters() if "lora" in name}
    for part in (*model.encoder.layers, model):
        fully_shard(part, mesh=mesh, ignored_params=adapter)
    register_fsdp_forward_method(model, "logits")


def anyone(more: bool) -> bool:
    """Whether any process has more to do: processes that share weights do the same number of passes."""
    found = torch.tensor(int(more))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)
