"""Groups of masks at the likeliest ends of a draft tree, decoded by the reference: what would a forward yield?

The served form of quadratic mode verifies a chain, and its groups continue after some of the chain's tokens. Here the
forward verifies a tree, and the groups continue after some of its nodes, which see what their node sees. A chain is the
tree whose positions have one candidate each, so both kinds are counted by the same code. Nothing is timed.

    counts = Counts()
    decode(model, prompt, Shape(block_length=32, nodes=64, groups=4), output, counts)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vllm_nld.reference import KVCache, ReferenceModel, masks
from vllm_nld.reference.generation import Output
from vllm_nld.reference.sampling import target_probs, without
from vllm_nld.reference.tree import TOP, Tree, grow, walk


@dataclass(frozen=True, slots=True)
class Shape:
    """What a forward has: a tree, or a chain if nodes is 0, and groups of masks."""

    block_length: int  # B: the anchor and the deepest path; also the masks of a group
    nodes: int
    groups: int

    @property
    def rows(self) -> int:
        """Rows of a verifying forward: the anchor's, the drafts' and the masks'."""
        return 1 + (self.nodes or self.block_length - 1) + self.groups * self.block_length


@dataclass(slots=True)
class Counts:
    """Sums over all rounds."""

    rounds: int = 0
    tokens: int = 0  # that rounds emitted
    passes: int = 0  # draft passes: nothing continued what was accepted
    hits: int = 0  # rounds that had to be continued, and were
    expected: float = 0.0  # as many hits as the probabilities of the chosen ends let expect in these rounds
    lengths: list[int] = field(default_factory=list)  # tokens of each round


def drafted_tree(anchor: int, logits: torch.Tensor, shape: Shape, mask_id: int) -> tuple[Tree, list[float]]:
    """The tree of a draft, [D, V] logits, and for each of its rows the probability that a walk ends there.

    A walk ends at a row if it reaches it and goes to none of its children.
    """
    shares, candidates = without(logits, mask_id).log_softmax(dim=-1).topk(TOP if shape.nodes else 1, dim=-1)
    tokens, log_probs = candidates.tolist(), shares.tolist()
    tree = grow(anchor, tokens, log_probs, shape.nodes or len(tokens))
    reached, left = [1.0], [1.0]
    for row, depth in enumerate(tree.depths()[1:], start=1):
        rank = tokens[depth - 1].index(tree.tokens[row])
        reached.append(reached[tree.parents[row]] * math.exp(log_probs[depth - 1][rank]))
        left.append(reached[row])
        left[tree.parents[row]] -= reached[row]
    return tree, left


def likeliest(chances: Sequence[float], count: int) -> list[int]:
    """The rows at which a walk ends most probably; of equal ones the earlier first."""
    return sorted(range(len(chances)), key=lambda row: -chances[row])[:count]


def mask_of(tree: Tree, ends: Sequence[int], size: int, cached: int) -> torch.Tensor:  # [T, S] bool
    """Each row of the tree sees its ancestors; a mask what its group's end sees, and its whole group."""
    own, count = masks.tree(tree.parents), len(tree.tokens)
    among = torch.zeros(count + len(ends) * size, count + len(ends) * size, dtype=torch.bool)
    among[:count, :count] = own
    for group, end in enumerate(ends):
        rows = slice(count + group * size, count + (group + 1) * size)
        among[rows, :count] = own[end]
        among[rows, rows] = True
    return torch.cat([torch.ones(len(among), cached, dtype=torch.bool), among], dim=1)


def first_drafts(model: ReferenceModel, cache: KVCache, prompt: list[int], size: int, output: Output) -> torch.Tensor:
    """The first token, and the logits of the drafts after it, from masks beside the prompt: [B - 1, V]."""
    length, mask_id = len(prompt), model.config.mask_token_id
    tokens = torch.tensor([prompt + [mask_id] * size])
    lora = torch.arange(length + size) >= length
    hidden = model(tokens, cache, mask=masks.prompt_with_masks(length, size), lora=lora)[0, length - 1 :]
    cache.truncate(length)
    logits = model.logits(hidden)
    output.emit(int(logits[0].argmax()))
    return logits[2:]


def draft_pass(model: ReferenceModel, cache: KVCache, anchor: int, size: int) -> torch.Tensor:  # [B - 1, V]
    """The logits of a draft pass. The cache is left unchanged."""
    start = cache.length
    tokens = torch.tensor([[anchor] + [model.config.mask_token_id] * (size - 1)])
    logits = model.logits(model(tokens, cache, causal=False, lora=True)[0, 1:])
    cache.truncate(start)
    return logits


@torch.no_grad()
def decode(model: ReferenceModel, prompt: list[int], shape: Shape, output: Output, counts: Counts) -> None:
    """Greedy decoding, as quadratic mode with groups at a tree's ends would. Without groups each round has a pass."""
    cache, size, mask_id = KVCache(model.config.num_hidden_layers), shape.block_length, model.config.mask_token_id
    found: torch.Tensor | None
    if shape.groups:
        found = first_drafts(model, cache, prompt, size, output)
    else:
        output.emit(int(model.logits(model(torch.tensor([prompt]), cache)[0, -1]).argmax()))
        found = None
    while not output.done:
        if found is None:
            found = draft_pass(model, cache, output.tokens[-1], size)
            counts.passes += 1
        tree, chances = drafted_tree(output.tokens[-1], found, shape, mask_id)
        ends, start, count = likeliest(chances, shape.groups), cache.length, len(tree.tokens)
        depths = torch.tensor(tree.depths())
        after = [depths[end] + 1 + torch.arange(size) for end in ends]
        hidden = model(
            torch.tensor([[*tree.tokens, *[mask_id] * (size * len(ends))]]),
            cache,
            positions=start + torch.cat([depths, *after]),
            mask=mask_of(tree, ends, size, start),
            lora=torch.arange(count + size * len(ends)) >= count,
        )[0]
        path = walk(tree, target_probs(model.logits(hidden[:count]), 0), output)
        cache.keep(torch.cat([torch.arange(start), start + torch.tensor(path)]))
        counts.rounds += 1
        counts.tokens += len(path)
        counts.lengths.append(len(path))
        found = None
        if not output.done:
            counts.expected += sum(chances[end] for end in ends)
            if path[-1] in ends:
                counts.hits += 1
                masks_of_end = hidden[count:].unflatten(0, (len(ends), size))[ends.index(path[-1])]
                found = model.logits(masks_of_end[1:])
