"""The backend on the CPU: vLLM's kernel over a paged cache equals the dense reference, or raises a clear error."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attention_backend.backend import BlockMaskBackend, mask_obstacle
from attention_backend.masks import Block, Causal, Mask, Tree, kernel_causal
from attention_backend.reference import attend, gather
from attention_backend.rows import step_mask

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs the CPU kernel")

H, G, D, P = 4, 2, 32, 32  # query heads, key/value heads, head size, tokens per KV block


@pytest.fixture(scope="module")
def backend() -> Any:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return BlockMaskBackend.over(CPUAttentionBackend)


@pytest.fixture(scope="module")
def impl(backend: Any) -> Any:
    config = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm.v1.attention.backends.cpu_attn.get_current_vllm_config", lambda: config)
        return backend.get_impl_cls()(H, D, D**-0.5, G, None, None, "auto")


@pytest.mark.parametrize("cached", [0, 5, 31, 32, 100])
@pytest.mark.parametrize("mask", [Causal(8), Block(8), Block(32), Causal(1)], ids=str)
def test_output_equals_the_reference(mask: Mask, cached: int, impl: Any) -> None:
    """Two requests of different lengths with their KV blocks out of order."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata, _get_attn_isa

    generator = torch.Generator().manual_seed(cached)
    prefixes = [cached, cached + 3]
    tokens, total = mask.length, [prefix + mask.length for prefix in prefixes]
    table = torch.tensor([[5, 1, 7, 2, 9], [4, 8, 3, 6, 10]], dtype=torch.int32)
    cache = torch.zeros(11, G, P, 2 * D)
    isa = _get_attn_isa(torch.float32, P, D, "auto")
    layer = SimpleNamespace(isa=isa, _k_scale_float=1.0, _v_scale_float=1.0)
    keys = [torch.randn(length, G, D, generator=generator) for length in total]
    values = [torch.randn(length, G, D, generator=generator) for length in total]
    query = torch.randn(2 * tokens, H, D, generator=generator)
    for request, length in enumerate(total):
        position = torch.arange(length)
        slots = table[request, position // P].long() * P + position % P
        impl.do_kv_cache_update(layer, keys[request], values[request], cache, slots)
    starts = torch.tensor([0, tokens, 2 * tokens], dtype=torch.int32)
    lengths = torch.tensor(total, dtype=torch.int32)
    causal = kernel_causal(mask)
    schedule = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=2,
        num_heads=H,
        num_kv_heads=G,
        head_dim=D,
        seq_lens=lengths,
        dtype=torch.float32,
        query_start_loc=starts,
        causal=causal,
        sliding_window_size=-1,
        isa=isa,
        enable_kv_split=False,
    )
    metadata = CPUAttentionMetadata(
        2 * tokens, tokens, starts, max(total), lengths, table, torch.zeros(0), schedule, causal
    )
    output = torch.full((2 * tokens, H, D), float("nan"))
    new = [torch.cat([x[-tokens:] for x in xs]) for xs in (keys, values)]
    impl.forward(layer, query, new[0], new[1], cache, metadata, output)
    for request in range(2):
        rows = slice(request * tokens, (request + 1) * tokens)
        expected = attend(query[rows], keys[request], values[request], mask.dense(prefixes[request]), D**-0.5)
        torch.testing.assert_close(output[rows], expected, atol=1e-5, rtol=1e-5)


def test_gather_follows_the_block_table() -> None:
    cache = torch.arange(4 * 3).view(4, 1, 3, 1).float()
    assert gather(cache, torch.tensor([2, 0]), 5).flatten().tolist() == [6, 7, 8, 0, 1]


def test_without_metadata_each_token_sees_itself(impl: Any) -> None:
    value = torch.randn(6, G, D)
    output = impl.forward(None, torch.randn(6, H, D), value, value, None, None, torch.full((6, H, D), float("nan")))
    torch.testing.assert_close(output, attend(output, value, value, torch.eye(6, dtype=torch.bool), 1.0))


def test_registered_as_the_custom_backend() -> None:
    from vllm.plugins import load_general_plugins
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    load_general_plugins()
    assert AttentionBackendEnum.CUSTOM.get_class() is BlockMaskBackend
    with pytest.raises(NotImplementedError, match="needs a kernel"):
        BlockMaskBackend.get_impl_cls()


def test_causal_only_kernel_is_rejected(backend: Any) -> None:
    class Other(backend):  # type: ignore[misc]
        @staticmethod
        def get_name() -> str:
            return "ROCM_ATTN"

    with pytest.raises(ValueError, match="ROCM_ATTN cannot run the bidirectional.*TRITON_ATTN"):
        BlockMaskBackend.over(Other)


def test_mixed_batch_is_rejected_if_the_kernel_does_not_support_it(backend: Any) -> None:
    builder_class = backend.get_builder_cls()
    builder = builder_class.__new__(builder_class)
    builder.per_request_causal = False
    common = SimpleNamespace(causal=torch.tensor([True, False]))
    with pytest.raises(ValueError, match="either causally or bidirectionally"):
        builder.build(0, common)


PLAIN = {
    "kv_cache_dtype": "auto",
    "sliding_window": -1,
    "alibi_slopes": None,
    "logits_soft_cap": 0,
    "sinks": None,
    "total_cp_world_size": 1,
}


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"kv_cache_dtype": "fp8_e4m3"}, "its KV cache is quantized (--kv-cache-dtype fp8_e4m3)"),
        ({"sliding_window": 128}, "it uses a sliding window"),
        ({"sliding_window": (127, 0)}, "it uses a sliding window"),
        ({"alibi_slopes": torch.ones(4)}, "it uses ALiBi"),
        ({"logits_soft_cap": 30.0}, "it uses a soft cap on its logits"),
        ({"sinks": torch.ones(4)}, "it uses attention sinks"),
        ({"total_cp_world_size": 2}, "it uses context parallelism"),
        ({"sliding_window": (-1, -1), "kv_cache_dtype": "bfloat16"}, None),
        ({}, None),
    ],
)
def test_what_the_kernels_do_not_compute_is_an_obstacle(difference: dict[str, Any], message: str | None) -> None:
    assert mask_obstacle(SimpleNamespace(**PLAIN | difference)) == message


@pytest.mark.parametrize(
    ("difference", "options", "message"),
    [
        ({"sinks": torch.ones(4)}, {}, "it uses attention sinks"),
        ({}, {"output_scale": torch.ones(1)}, "its output is quantized"),
    ],
)
def test_an_obstacle_is_an_error(
    difference: dict[str, Any], options: dict[str, Any], message: str, backend: Any
) -> None:
    """No row may be computed with another mask than its own."""
    impl_class = backend.get_impl_cls()
    impl = impl_class.__new__(impl_class)
    vars(impl).update(PLAIN | difference)
    metadata = SimpleNamespace(row_mask=step_mask([Tree((-1, 0, 0))], [3]))
    rows = torch.zeros(3, H, D)
    with pytest.raises(ValueError, match=f"cannot run row masks: {message}"):
        impl.forward(None, rows, rows[:, :G], rows[:, :G], None, metadata, rows, **options)
