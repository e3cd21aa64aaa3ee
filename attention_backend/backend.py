"""The attention backend of NLD models: the platform's best kernel, for causal and bidirectional passes.

Registered with vLLM as CUSTOM. A model asks vLLM which backend fits its heads and dtype, and puts this one over it:

    backend = AttentionBackendEnum.CUSTOM.get_class().over(chosen)

It adds three things: a refusal of kernels that cannot run a bidirectional pass over the paged cache, a refusal of masks
that the kernel cannot serve, and a defined output where there is no metadata (vLLM's profile run).
"""

from functools import cache
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata

# Backends whose kernels were read for `causal=False` over a paged cache, and whether they take it per request as well.
PER_REQUEST_CAUSAL = {"CPU_ATTN": True, "TRITON_ATTN": True, "FLASH_ATTN": False}


class BlockMaskImpl:
    """Mixed into the kernel's implementation."""

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
        """As the kernel; without metadata each token sees itself only, so its output is its value."""
        if attn_metadata is None:
            return output.copy_(value.repeat_interleave(output.shape[1] // value.shape[1], dim=1))
        return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)  # type: ignore[misc]  # the kernel's class comes next in the MRO


class BlockMaskBuilder:
    """Mixed into the kernel's metadata builder."""

    per_request_causal: bool

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Any:
        """As the kernel's. Raises ValueError for a mixture of masks that the kernel has no argument for."""
        if isinstance(common_attn_metadata.causal, torch.Tensor) and not self.per_request_causal:
            raise ValueError(
                "this attention kernel runs a batch either causally or bidirectionally: split the batch, "
                "or serve with --attention-backend TRITON_ATTN"
            )
        return super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]  # see above


class BlockMaskBackend(AttentionBackend):
    """The name under which vLLM knows the backend; `over` makes the class that a layer uses."""

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
        """This backend on top of a platform's backend. Raises ValueError for one without a bidirectional pass."""
        return _over(kernel)  # type: ignore[arg-type]  # a class is hashable


@cache
def _over(kernel: type[AttentionBackend]) -> type[AttentionBackend]:
    name = kernel.get_name()
    if name not in PER_REQUEST_CAUSAL or not kernel.supports_non_causal():
        raise ValueError(
            f"attention backend {name} cannot run the bidirectional passes that draft blocks: "
            "leave --attention-backend open, or choose FLASH_ATTN or TRITON_ATTN"
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
