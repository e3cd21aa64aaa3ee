"""The draft adapter in the model: B·A·x on o_proj, in draft passes of modes that use it.

Other forwards don't contain it, see `draft_pathway`, but for verifying forwards with rows of masks. Because one CUDA
graph serves passes with the adapter and passes without, its output is multiplied by a switch, a number per row on the
device: the adapter's scale where it is on, 0 where it is off. So neither torch.compile nor a graph can bake either
state in. The adapter is separate from the base weight, which may be quantized, and from user LoRA.

Tensor parallelism: o_proj is row-parallel, so A is sharded on its input like the weight, and B·A·x joins the partial
sum before the all-reduce.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_nld.model.adapter import Adapter
from vllm_nld.model.checkpoint import CheckpointError


class DraftLora(nn.Module):
    """One layer's adapter, made of vLLM's linear layers, which use the platform's best kernel."""

    switch: torch.Tensor  # [most tokens, 1], shared by all layers

    def __init__(
        self,
        down: torch.Tensor,  # [r, in / TP], A
        up: torch.Tensor,  # [hidden, r], B
        switch: torch.Tensor,  # [most tokens, 1]
    ) -> None:
        super().__init__()
        self.down, self.up = _linear(down), _linear(up)
        self.register_buffer("switch", switch, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, in / TP] -> [T, hidden]
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

    def __init__(self, adapter: Adapter, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self.adapter = adapter
        self.switch = torch.zeros(tokens, 1, device=device, dtype=dtype)
        self.is_on = False
        self.in_rows = False

    def layer(self, index: int) -> DraftLora:
        """Read one layer's adapter and keep this rank's share."""
        down, up = self.adapter.read(index)
        ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        if down.shape[1] % ranks:
            raise CheckpointError(
                f"{self.adapter.path} cannot be split over {ranks} ranks", "change --tensor-parallel-size"
            )
        share = down.chunk(ranks, dim=1)[rank].contiguous()
        return DraftLora(share.to(self.switch), up.to(self.switch), self.switch)

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
