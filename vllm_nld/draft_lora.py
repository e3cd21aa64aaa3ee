"""The draft adapter in the model: B·A·x on o_proj, in linear mode's draft passes only.

Other forwards do not have it, see `draft_pathway`. There, a switch, one number on the device, multiplies what the
adapter adds: its scale where drafts are made, 0 where a block is denoised. The graph is the same in both, so
torch.compile and CUDA graphs cannot bake either state in. On a CPU, where reading the switch waits for nothing, the
products are left out while it is 0. It stays apart from the base weight, which may be quantised, and from user LoRA.

Tensor parallelism: o_proj is row-parallel, so A is sharded on its input like the weight, and B·A·x joins the partial
sum before the all-reduce.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.utils.torch_utils import direct_register_custom_op

from vllm_nld.adapter import Adapter
from vllm_nld.checkpoint import CheckpointError


def add_draft_lora(
    out: torch.Tensor,  # [T, hidden], is added to
    x: torch.Tensor,  # [T, in / TP]
    down: torch.Tensor,  # [r, in / TP], A
    up: torch.Tensor,  # [hidden, r], B
    switch: torch.Tensor,  # [1]
) -> None:
    """out += switch · B·A·x. An operator of its own, as the compiler would trace the look at the switch away."""
    if switch.is_cpu and not switch.item():
        return
    out += F.linear(F.linear(x, down), up) * switch


def _fake_add_draft_lora(
    out: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, switch: torch.Tensor
) -> None:
    return


LIBRARY = torch.library.Library("nld", "FRAGMENT")
direct_register_custom_op(
    "add_draft_lora", add_draft_lora, mutates_args=["out"], fake_impl=_fake_add_draft_lora, target_lib=LIBRARY
)


class DraftLora(nn.Module):
    """One layer's adapter; its tensors are buffers, so that a loader of model weights leaves them alone."""

    down: torch.Tensor  # [r, in / TP], A
    up: torch.Tensor  # [hidden, r], B
    switch: torch.Tensor  # [1], shared by all layers

    def __init__(self, down: torch.Tensor, up: torch.Tensor, switch: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("switch", switch, persistent=False)

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> None:  # [T, hidden], [T, in / TP]
        """Add what the adapter has to say of x, while it is on."""
        torch.ops.nld.add_draft_lora(out, x, self.down, self.up, self.switch)


class DraftAdapter:
    """All layers' adapters and their switch. `with adapter.on(): ...` makes a draft pass."""

    def __init__(self, adapter: Adapter, device: torch.device, dtype: torch.dtype) -> None:
        self.adapter = adapter
        self.switch = torch.zeros(1, device=device, dtype=dtype)

    def layer(self, index: int) -> DraftLora:
        """Read one layer's adapter and keep this rank's share."""
        down, up = self.adapter.read(index)
        ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        if down.shape[1] % ranks:
            raise CheckpointError(f"{self.adapter.path} cannot be split over {ranks} ranks", "change the TP size")
        share = down.chunk(ranks, dim=1)[rank].contiguous()
        return DraftLora(share.to(self.switch), up.to(self.switch), self.switch)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Adapter on inside, off again after; both are writes in the device's order, without waiting for it."""
        self.switch.fill_(self.adapter.scale)
        try:
            yield
        finally:
            self.switch.zero_()
