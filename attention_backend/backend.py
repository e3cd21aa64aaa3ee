"""The attention backend of NLD models: the platform's own kernel, and one for row masks beside it.

Registered with vLLM as CUSTOM. The model asks vLLM which backend fits its heads and dtype, and wraps that one:

    backend = AttentionBackendEnum.CUSTOM.get_class().over(chosen)

The wrapper rejects kernels that cannot run a bidirectional pass over the paged cache, hands steps with a row mask
(`rows.py`) to the platform's kernel for them, and defines the output if there is no metadata (vLLM's profile run). A
step without a mask costs one look at its metadata.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata

from attention_backend.moves import KeptRows
from attention_backend.rows import attached


@dataclass(frozen=True, slots=True)
class Kernel:
    """A backend whose kernel supports `causal=False` over a paged cache (checked in its source)."""

    per_request_causal: bool  # whether it accepts that per request
    masked: dict[str, str]  # modules of the kernels for row masks beside it, by name
    movable: bool = True  # whether its cache is a tensor of tokens, so that `moves.py` can move rows in place


CPU = {"auto": "attention_backend.kernels.cpu"}
GPU = dict.fromkeys(("auto", "triton"), "attention_backend.kernels.gpu")
GPU["xformers"] = "attention_backend.kernels.xformers"
KERNELS = {
    "CPU_ATTN": Kernel(per_request_causal=True, masked=CPU, movable=False),
    "TRITON_ATTN": Kernel(per_request_causal=True, masked=GPU),
    "FLASH_ATTN": Kernel(per_request_causal=False, masked=GPU),
}


def mask_obstacle(impl: Any) -> str | None:
    """Why a layer's attention cannot run row masks, as the end of a sentence; None if it can."""
    if impl.kv_cache_dtype not in ("auto", "float16", "bfloat16"):
        return f"its KV cache is quantized (--kv-cache-dtype {impl.kv_cache_dtype})"
    windows = impl.sliding_window if isinstance(impl.sliding_window, tuple) else (impl.sliding_window,)
    for name, used in (
        ("a sliding window", any(window not in (-1, None) for window in windows)),
        ("ALiBi", impl.alibi_slopes is not None),
        ("a soft cap on its logits", bool(impl.logits_soft_cap)),
        ("attention sinks", impl.sinks is not None),
        ("context parallelism", impl.total_cp_world_size > 1),
    ):
        if used:
            return f"it uses {name}"
    return None


class BlockMaskImpl:
    """Mixed into the kernel's attention implementation."""

    attend_masked: Callable[..., None]  # the platform's kernel for row masks

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,  # [T, H, D]
        key: torch.Tensor,  # [T, G, D]
        value: torch.Tensor,  # [T, G, D]
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,  # [T, H, D], written
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Call the kernels that the step needs. Without metadata each token sees only itself and gets its value."""
        if attn_metadata is None:
            return output.copy_(value.repeat_interleave(output.shape[1] // value.shape[1], dim=1))
        mask = attached(attn_metadata)
        if mask is None:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)  # type: ignore[misc]  # the kernel's class comes next in the MRO
        obstacle = mask_obstacle(self)
        if any(option is not None for option in (*args, *kwargs.values())):
            obstacle = "its output is quantized inside the kernel (fuse_attn_quant)"
        if obstacle is not None:
            raise ValueError(f"{type(self).__name__} cannot run row masks: {obstacle}")

        def kernel(metadata: Any) -> None:
            super(BlockMaskImpl, self).forward(layer, query, key, value, kv_cache, metadata, output, *args, **kwargs)  # type: ignore[misc]  # see above

        self.keep(key, value)
        self.attend_masked(layer, query, kv_cache, attn_metadata, mask, output, kernel)
        return output

    def keep(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Called with the keys and values of a step with masks, see `moves`."""


class BlockMaskBuilder:
    """Mixed into the kernel's metadata builder."""

    per_request_causal: bool

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Any:
        """Call the kernel's builder. Raises ValueError if the batch mixes masks and the kernel doesn't support that."""
        if isinstance(common_attn_metadata.causal, torch.Tensor) and not self.per_request_causal:
            raise ValueError(
                "this attention kernel runs a batch either causally or bidirectionally, not both: split the batch or "
                "serve with --attention-backend TRITON_ATTN"
            )
        return super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]  # see above


class BlockMaskBackend(AttentionBackend):
    """The class that vLLM registers; `over` builds the one that a layer uses."""

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> Any:
        raise NotImplementedError("BlockMaskBackend needs a kernel: BlockMaskBackend.over(backend)")

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        raise NotImplementedError("BlockMaskBackend needs a kernel: BlockMaskBackend.over(backend)")

    @classmethod
    def over(cls, kernel: type[AttentionBackend], mask_kernel: str = "auto") -> type[AttentionBackend]:
        """Wrap a platform's backend. Raises ValueError if its kernel cannot run a bidirectional pass."""
        return _over(kernel, mask_kernel)  # type: ignore[arg-type]  # a class is hashable


@cache
def _over(kernel: type[AttentionBackend], mask_kernel: str) -> type[AttentionBackend]:
    name = kernel.get_name()
    if name not in KERNELS or not kernel.supports_non_causal():
        raise ValueError(
            f"attention backend {name} cannot run the bidirectional passes that draft blocks: "
            "omit --attention-backend, or set it to FLASH_ATTN or TRITON_ATTN"
        )
    attributes = {"attend_masked": importlib.import_module(KERNELS[name].masked[mask_kernel]).attend}
    bases = (*(() if KERNELS[name].movable else (KeptRows,)), BlockMaskImpl, kernel.get_impl_cls())
    impl: type = type(f"BlockMask{kernel.get_impl_cls().__name__}", bases, attributes)
    attributes = {"per_request_causal": KERNELS[name].per_request_causal}
    builder: type = type(
        f"BlockMask{kernel.get_builder_cls().__name__}", (BlockMaskBuilder, kernel.get_builder_cls()), attributes
    )

    class OverKernel(kernel):  # type: ignore[misc, valid-type]  # the base is a value
        @staticmethod
        def get_name() -> str:
            return BlockMaskBackend.get_name()

        @staticmethod
        def get_impl_cls() -> Any:
            return impl

        @staticmethod
        def get_builder_cls() -> Any:
            return builder

    OverKernel.__name__ = OverKernel.__qualname__ = f"BlockMask{kernel.__name__}"
    return OverKernel
