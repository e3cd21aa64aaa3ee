"""The attention backend of NLD models: the platform's own kernel, for causal and bidirectional passes.

Registered with vLLM as CUSTOM. The model asks vLLM which backend fits its heads and dtype, and wraps that one:

    backend = AttentionBackendEnum.CUSTOM.get_class().over(chosen)

The wrapper rejects kernels that cannot run a bidirectional pass over the paged cache, rejects masks that the kernel
does not support, and defines the output if there is no metadata (vLLM's profile run).
"""

from functools import cache
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata

# Backends whose kernels support `causal=False` over a paged cache (checked in their source), and whether they accept it
# per request.
PER_REQUEST_CAUSAL = {"CPU_ATTN": True, "TRITON_ATTN": True, "FLASH_ATTN": False}


class BlockMaskImpl:
    """Mixed into the kernel's attention implementation."""

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
        """Call the kernel. Without metadata each token sees only itself, so its output is its value."""
        if attn_metadata is None:
            return output.copy_(value.repeat_interleave(output.shape[1] // value.shape[1], dim=1))
        return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)  # type: ignore[misc]  # the kernel's class comes next in the MRO


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
    def over(cls, kernel: type[AttentionBackend]) -> type[AttentionBackend]:
        """Wrap a platform's backend. Raises ValueError if its kernel cannot run a bidirectional pass."""
        return _over(kernel)  # type: ignore[arg-type]  # a class is hashable


@cache
def _over(kernel: type[AttentionBackend]) -> type[AttentionBackend]:
    name = kernel.get_name()
    if name not in PER_REQUEST_CAUSAL or not kernel.supports_non_causal():
        raise ValueError(
            f"attention backend {name} cannot run the bidirectional passes that draft blocks: "
            "omit --attention-backend, or set it to FLASH_ATTN or TRITON_ATTN"
        )
    impl: type = type(f"BlockMask{kernel.get_impl_cls().__name__}", (BlockMaskImpl, kernel.get_impl_cls()), {})
    attributes = {"per_request_causal": PER_REQUEST_CAUSAL[name]}
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
