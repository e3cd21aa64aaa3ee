"""The draft adapter in the model: B·A·x beside projections, in draft passes of modes that use it.

Other forwards don't contain it, see `draft_pathway`, but for verifying forwards with rows of masks. Because one CUDA
graph serves passes with the adapter and passes without, its output is multiplied by a switch, a number per row on the
device: the adapter's scale where it is on, 0 where it is off. So neither torch.compile nor a graph can bake either
state in. The adapter is separate from the base weight, which may be quantized, and from user LoRA.

Tensor parallelism: o_proj and down_proj are row-parallel, so A is sharded on its input like the weight, and B·A·x joins
the partial sum before the all-reduce. The others are column-parallel, so B is sharded on its output. vLLM computes q, k
and v at once, and gate and up: their adapters become one, with the A's stacked and the B's on a diagonal.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_nld.model.adapter import Adapter, features
from vllm_nld.model.checkpoint import CheckpointError

PROJECTIONS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}  # vLLM's, and the targets of an adapter that each one computes
ROW_PARALLEL = ("o_proj", "down_proj")


class DraftLora(nn.Module):
    """One projection's adapter, made of vLLM's linear layers, which use the platform's best kernel."""

    switch: torch.Tensor  # [most tokens, 1], shared by all layers

    def __init__(
        self,
        down: torch.Tensor,  # [r, in], A
        up: torch.Tensor,  # [out, r], B
        switch: torch.Tensor,  # [most tokens, 1]
    ) -> None:
        super().__init__()
        self.down, self.up = _linear(down), _linear(up)
        self.register_buffer("switch", switch, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, in] -> [T, out], one of them this rank's share
        """The adapter's output for x; zeros where it is off."""
        low, _ = self.down(x)
        out, _ = self.up(low)
        return out * self.switch[: x.shape[0]]


def _linear(weight: torch.Tensor) -> ReplicatedLinear:
    """A linear layer without bias, ready to run."""
    with weight.device:
        layer = ReplicatedLinear(weight.shape[1], weight.shape[0], bias=False, params_dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    layer.quant_method.process_weights_after_loading(layer)
    return layer


class DraftAdapter:
    """All layers' adapters and their switch. Run draft passes inside `with adapter.on(): ...`.

    in_rows: it is part of verifying forwards, until it is switched off there; see `by_row`.
    """

    def __init__(self, adapter: Adapter, config: Any, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self.adapter, self.features = adapter, features(config)
        self.copies = max(1, get_tensor_model_parallel_world_size() // config.num_key_value_heads)  # of k and v
        self.switch = torch.zeros(tokens, 1, device=device, dtype=dtype)
        self.is_on = False
        self.in_rows = False

    def layer(self, index: int) -> dict[str, DraftLora]:
        """Read one layer's adapter; this rank's share, by vLLM's projections."""
        found = {}
        for projection, targets in PROJECTIONS.items():
            if set(targets) & set(self.adapter.targets):
                downs, ups = zip(*(self._share(index, target) for target in targets), strict=True)
                down, up = torch.cat(downs), torch.block_diag(*ups)
                found[projection] = DraftLora(down.to(self.switch), up.to(self.switch), self.switch)
        return found

    def _share(self, index: int, target: str) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's A and B of a projection; of rank 0 if it has no adapter."""
        if target in self.adapter.targets:
            down, up = self.adapter.read(index, target)
        else:
            inputs, outputs = self.features[target]
            down, up = torch.zeros(0, inputs), torch.zeros(outputs, 0)
        copies = self.copies if target in ("k_proj", "v_proj") else 1
        shares, rank = get_tensor_model_parallel_world_size() // copies, get_tensor_model_parallel_rank() // copies
        if (down.shape[1] if target in ROW_PARALLEL else len(up)) % shares:
            raise CheckpointError(
                f"{self.adapter.path} cannot be split over {shares} ranks", "change --tensor-parallel-size"
            )
        if target in ROW_PARALLEL:
            return down.chunk(shares, dim=1)[rank].contiguous(), up
        return down, up.chunk(shares)[rank]

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """On inside, off again afterwards. Both are queued writes, so nothing waits for the device."""
        self.switch.fill_(self.adapter.scale)
        self.is_on = True
        try:
            yield
        finally:
            self.switch.zero_()
            self.is_on = False

    def by_row(self, rows: np.ndarray) -> None:  # [T] bool
        """On in some rows of the step's verifying forward, off in all others."""
        self.in_rows = True
        self.switch.zero_()
        scale = torch.from_numpy(rows).to(self.switch.dtype) * self.adapter.scale
        self.switch[: len(rows), 0] = async_tensor_h2d(scale, self.switch.device)

    def not_by_row(self) -> None:
        """No part of the step's verifying forward."""
        self.in_rows = False
