"""Random steps for kernels: requests with prefixes of any length, some with a mask, and their paged KV."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from attention_backend.masks import Block, BlockCausal, Causal, Mask, QuadraticGroups, Tree
from attention_backend.reference import attend_step
from attention_backend.rows import RowMask, step_mask

trees = st.lists(st.integers(0, 10**6), max_size=40).map(
    lambda picks: Tree((-1, *(pick % (token + 1) for token, pick in enumerate(picks))))
)
groups = st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=6), st.integers(1, 6)).map(
    lambda drawn: QuadraticGroups(drawn[0], tuple(end % drawn[0] for end in drawn[1]), drawn[2])
)
masks = st.one_of(
    st.builds(Causal, st.integers(1, 40)),
    st.builds(Block, st.integers(1, 40)),
    st.builds(BlockCausal, st.integers(1, 40), st.integers(1, 12)),
    groups,
    trees,
)


@dataclass(frozen=True, slots=True, repr=False)
class Step:
    """The rows of a step and the KV that they attend to. The last page of the cache belongs to no request."""

    prefixes: list[int]  # cached tokens per request
    masks: list[Mask | None]  # None: plainly causal
    lengths: list[int]  # rows per request
    page_size: int
    dtype: torch.dtype
    query: torch.Tensor  # [T, H, D]
    keys: list[torch.Tensor]  # [S, G, D] per request
    values: list[torch.Tensor]
    table: torch.Tensor  # [R, W] int32, pages in random order; unused entries hold a page of another request

    def __repr__(self) -> str:
        """Without the numbers."""
        heads = f"{self.query.shape[1]} heads over {self.keys[0].shape[1]} of {self.query.shape[2]}"
        return f"{self.masks} after {self.prefixes}, pages of {self.page_size}, {heads}, {self.dtype}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints."""
        printer.text(repr(self))

    @property
    def mask(self) -> RowMask | None:
        """With noise for the rows of requests without a mask, whose bits nobody may read."""
        mask = step_mask(self.masks, self.lengths)
        if mask is not None:
            mask.bits[self.plain_rows()] = 0x2AAAAAAA
        return mask

    def plain_rows(self) -> torch.Tensor:  # [T] bool
        """The rows of requests without a mask."""
        plain = torch.tensor([mask is None for mask in self.masks])
        return plain.repeat_interleave(torch.tensor(self.lengths))

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5

    @property
    def pages(self) -> int:
        return int(self.table.max()) + 2

    def starts(self) -> torch.Tensor:  # [R + 1] int32
        return torch.tensor([0, *self.lengths]).cumsum(0).int()

    def totals(self) -> torch.Tensor:  # [R] int32
        return torch.tensor([p + t for p, t in zip(self.prefixes, self.lengths, strict=True)], dtype=torch.int32)

    def slots(self, request: int) -> torch.Tensor:  # [S] int64
        position = torch.arange(len(self.keys[request]))
        return self.table[request, position // self.page_size].long() * self.page_size + position % self.page_size

    def expected(self) -> torch.Tensor:  # [T, H, D] float32
        return attend_step(self.query, self.keys, self.values, self.lengths, self.mask, self.scale)


@st.composite
def steps(
    draw: st.DrawFn,
    page_sizes: list[int],
    masks: st.SearchStrategy[Mask] = masks,
    requests: int = 4,  # at most
    heads: tuple[tuple[int, int], ...] = ((4, 2), (4, 4), (6, 1), (8, 2)),  # H, G
    head_sizes: tuple[int, ...] = (32, 64, 128),
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
) -> Step:
    """At least one request has a mask. Prefixes end at, before and after page edges."""
    page_size, head_size = draw(st.sampled_from(page_sizes)), draw(st.sampled_from(head_sizes))
    query_heads, groups = draw(st.sampled_from(heads))
    dtype = draw(st.sampled_from(dtypes))
    edges = st.builds(lambda page, off: max(0, page * page_size + off), st.integers(0, 3), st.integers(-1, 1))
    prefix = st.one_of(edges, st.integers(0, 4 * page_size))
    given = draw(st.lists(st.one_of(st.none(), masks), min_size=1, max_size=requests))
    if all(mask is None for mask in given):
        given[draw(st.integers(0, len(given) - 1))] = draw(masks)
    lengths = [draw(st.integers(1, 12)) if mask is None else mask.length for mask in given]
    prefixes = [draw(prefix) for _ in given]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    totals = [p + t for p, t in zip(prefixes, lengths, strict=True)]
    width = -(-max(totals) // page_size) + draw(st.integers(0, 2))
    return Step(
        prefixes,
        given,
        lengths,
        page_size,
        dtype,
        random(sum(lengths), query_heads, head_size),
        [random(total, groups, head_size) for total in totals],
        [random(total, groups, head_size) for total in totals],
        torch.randperm(len(given) * width, generator=generator).view(len(given), width).int(),
    )


def assert_close(output: torch.Tensor, step: Step) -> None:
    """Equal to the reference, up to the rounding of the dtype."""
    bound = 2e-5 if step.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(output.float(), step.expected(), atol=bound, rtol=bound)
