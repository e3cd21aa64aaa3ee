"""The GPU memory that training an adapter takes, computed before it starts.

estimate(SHAPES["8b"], rank=128, group=16, length=2048, block=32)["total"] / 1e9        # gigabytes
"""

from collections.abc import Collection

from vllm_nld.model.adapter import RELEASED, sizes
from vllm_nld.roofline.costs import BYTES
from vllm_nld.roofline.shapes import SHAPES, Shape

MASTER = 16  # bytes per adapter weight: fp32 weight, gradient and two moments of Adam
LOGITS = 20  # bytes per logit in a round: fp32, without the mask token, their logarithm, two gradients
LAYER_COPIES = 6  # of a row's hidden states that a layer's backward keeps, beside its inner ones
INNER_COPIES = 4  # of an MLP's inner values
SLACK = 1.5e9  # context, workspaces and fragments


def estimate(
    shape: Shape,
    rank: int,
    group: int,
    length: int,
    block: int,
    shares: int = 1,
    targets: Collection[str] = RELEASED,
) -> dict[str, float]:
    """Bytes by purpose, and their total. group: conversations at a time, of `length` tokens at most.

    shares: processes that the frozen weights are split over. Embeddings, head and two layers are gathered while in use.
    targets: projections with an adapter.
    """
    rows, tokens = group * block, group * length
    queries, keys = (heads * shape.head_dim for heads in (shape.heads, shape.kv_heads))
    wide = sizes(shape.hidden, shape.intermediate, queries, keys)
    adapter = shape.layers * rank * sum(sum(wide[target]) for target in targets)
    base: float = shape.layers * shape.layer_parameters + 2 * shape.head_parameters
    if shares > 1:
        base = base / shares + 2 * shape.layer_parameters + 2 * shape.head_parameters
    inner = LAYER_COPIES * shape.hidden + INNER_COPIES * shape.intermediate
    cached = tokens * shape.kv_values * BYTES
    repeated = cached * shape.heads // shape.kv_heads  # keys and values for every query head, one layer at a time
    parts = {
        "weights, bf16": BYTES * base,
        "adapter, gradients, optimizer": MASTER * adapter,
        "prefixes' keys and values": shape.layers * cached,
        "activations": BYTES * (shape.layers * rows * shape.hidden + max(rows, tokens) * inner) + 2 * repeated,
        "logits": LOGITS * rows * shape.vocabulary,
        "other": SLACK,
    }
    return {**parts, "total": sum(parts.values())}


def table(
    own: Shape,
    rank: int,
    group: int,
    length: int,
    block: int,
    shares: int = 1,
    targets: Collection[str] = RELEASED,
) -> str:
    """The estimate for the model in detail, and the totals of the released ones."""
    parts = estimate(own, rank, group, length, block, shares, targets)
    detail = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items() if name != "total")
    totals = ", ".join(
        f"{name} {estimate(shape, rank, group, length, block, shares, targets)['total'] / 1e9:.0f}"
        for name, shape in SHAPES.items()
    )
    each = f", weights split over {shares} GPUs" if shares > 1 else ""
    head = f"GPU memory for {group} conversations of up to {length} tokens at a time, rank {rank}{each}, in GB"
    return f"{head}: {parts['total'] / 1e9:.1f} ({detail}). Released models: {totals}."
