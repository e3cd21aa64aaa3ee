"""Linear self-speculation with a draft tree: one bidirectional pass, and the likeliest paths that it knows of.

A draft pass gives a distribution for every position, and a chain of argmaxes uses one path of all that they span. A
tree takes the N likeliest nodes, where a node is a path of candidates and its probability their product. One causal
forward verifies all of them: each node sees the prefix and its ancestors, at the position that its depth says. NFE is
counted as in `linear.py`.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_nld.reference import masks
from vllm_nld.reference.ar import next_token
from vllm_nld.reference.generation import Output
from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import draw, target_probs, without
from vllm_nld.reference.settings import Settings

TOP = 4  # candidates per position


@dataclass(frozen=True, slots=True)
class Tree:
    """The rows of a verifying forward: row 0 is the anchor, the others are nodes, parents before their children.

    Raises ValueError if a row comes before its parent.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # rows; -1 for the anchor

    def __post_init__(self) -> None:
        if self.parents[0] != -1 or any(not 0 <= parent < row for row, parent in enumerate(self.parents[1:], start=1)):
            raise ValueError(f"each row of a tree needs one of the rows before it as its parent, not {self.parents}")

    def depths(self) -> list[int]:
        """The position of each row, relative to the anchor's."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return depths

    def child(self, row: int, token: int) -> int | None:
        """The child of a row that holds the token. Siblings hold different tokens."""
        for index, parent in enumerate(self.parents):
            if parent == row and self.tokens[index] == token:
                return index
        return None


def grow(
    anchor: int,
    candidates: Sequence[Sequence[int]],  # [D, TOP] the likeliest tokens of each position after the anchor
    log_probs: Sequence[Sequence[float]],  # [D, TOP], descending
    nodes: int,  # N, at most this many besides the anchor
) -> Tree:
    """The N likeliest nodes, in the order of their probabilities; of equal ones the one with the earlier parent first.

    The heap holds the likeliest child of each row that is not in the tree yet, so a parent comes before its children. A
    candidate of probability 0 is none.
    """
    tokens, parents, depths, totals = [anchor], [-1], [0], [0.0]
    heap: list[tuple[float, int, int]] = []  # the child's total, negated; the parent's row; the child's rank

    def offer(parent: int, rank: int) -> None:
        depth = depths[parent]
        if depth < len(candidates) and rank < len(candidates[depth]) and log_probs[depth][rank] > -math.inf:
            heapq.heappush(heap, (-(totals[parent] + log_probs[depth][rank]), parent, rank))

    offer(0, 0)
    while heap and len(tokens) <= nodes:
        total, parent, rank = heapq.heappop(heap)
        tokens.append(candidates[depths[parent]][rank])
        parents.append(parent)
        depths.append(depths[parent] + 1)
        totals.append(-total)
        offer(parent, rank + 1)
        offer(len(tokens) - 1, 0)
    return Tree(tuple(tokens), tuple(parents))


def draft(model: ReferenceModel, cache: KVCache, anchor: int, block_length: int, settings: Settings) -> Tree:
    """Draft with one pass over [anchor, mask x (B - 1)]. The cache is left unchanged.

    Candidates are compared by their share of all tokens but the mask, which verification never emits.
    """
    mask_id, start = model.config.mask_token_id, cache.length
    block = torch.tensor([[anchor] + [mask_id] * (block_length - 1)])
    logits = model.logits(model(block, cache, causal=False, lora=settings.lora)[0, 1:])
    cache.truncate(start)
    log_probs, candidates = without(logits, mask_id).log_softmax(dim=-1).topk(TOP, dim=-1)
    return grow(anchor, candidates.tolist(), log_probs.tolist(), settings.tree_nodes)


def walk(
    tree: Tree,
    probs: torch.Tensor,  # [N + 1, V] float64; the distribution of the token after each row
    output: Output,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Sample after each row of a path, and follow the child that holds the sample: every emitted token is a sample.

    Stops where no child does; the last sample is the bonus token. Returns the rows of the path, which become part of
    the sequence and keep their KV.
    """
    output.start_round()
    path, row = [], 0
    while True:
        path.append(row)
        token = output.emit(int(draw(probs[row], generator)) if output.forced is None else output.forced)
        child = tree.child(row, token)
        if output.done or child is None:
            return path
        row = child


def decode_tree(model: ReferenceModel, prompt: list[int], settings: Settings, output: Output) -> None:
    """Run the loop until `output` is done. Tokens follow the AR distribution; greedy output equals AR's exactly."""
    cache = KVCache(model.config.num_hidden_layers)
    output.emit(next_token(model, cache, prompt, settings, output.forced))
    output.nfe += 1
    while not output.done:
        start = cache.length
        block_length = min(settings.block_length, model.config.max_position_embeddings - start)
        tree = draft(model, cache, output.tokens[-1], block_length, settings)
        positions = start + torch.tensor(tree.depths())
        mask = masks.tree(tree.parents, cached=start)
        logits = model.logits(model(torch.tensor([tree.tokens]), cache, positions=positions, mask=mask)[0])
        output.nfe += 2
        path = walk(tree, target_probs(logits, settings.temperature), output, settings.generator)
        cache.keep(torch.cat([torch.arange(start), start + torch.tensor(path)]))
