"""Draft trees in the worker: grown from a draft pass, verified by the next target forward, walked by its samples.

A tree's nodes are its request's draft tokens, so scheduling, KV slots and preemption are vLLM's. What only we know of a
tree is `parents`, in a table by state slot. Its rows need three things of the step that verifies them:

    trees.mask(...)     before the forward: each row sees its ancestors, at the position that its depth says
    trees.walk(...)     after sampling: the path that the samples take, the last of which is the bonus token
    trees.accepted(...) before the next draft: the rows whose KV moves to the slots of an ordinary sequence

Letters in shapes: M trees, N state slots, K nodes of the largest tree, B tokens per block, L rows of logits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.triton_utils import triton
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from attention_backend.rows import RowMask, words
from spec_worker.mask_groups import MaskGroups
from spec_worker.tree_kernels import CAUSAL, GROUPS, TREE, grow_trees_kernel, mask_rows_kernel, walk_trees_kernel

TOP = 4  # candidates per position


@dataclass(frozen=True, slots=True)
class Ranked:
    """The likeliest tokens of C positions."""

    tokens: torch.Tensor  # [C, TOP] int64
    log_probs: torch.Tensor  # [C, TOP] float32, descending


def rank(logits: torch.Tensor) -> Ranked:  # [C, V], -inf for tokens that are no candidates
    """The likeliest tokens of each row, with their share of all candidates."""
    top, tokens = logits.topk(TOP, dim=-1)
    return Ranked(tokens, top.float() - logits.float().logsumexp(dim=-1, keepdim=True))


class Trees:
    """The trees of every state slot."""

    def __init__(
        self,
        slots: int,
        nodes: int,  # K
        block_length: int,
        most_tokens: int,  # of a step
        mask_token_id: int,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        self.block_length, self.mask_token_id, self.max_model_len = block_length, mask_token_id, max_model_len
        self.used = False  # whether there has been any tree
        self.grown = np.zeros(slots, dtype=bool)  # the slot's draft tokens are a tree
        self.stands = np.zeros(slots, dtype=bool)  # and this step verifies it
        self.parents = torch.full((slots, nodes + 1), -1, dtype=torch.int32, device=device)
        self.tokens = torch.zeros(slots, nodes, dtype=torch.int64, device=device)
        self.path = torch.zeros(slots, block_length, dtype=torch.int32, device=device)  # rows of the last walk
        self.bits = torch.zeros(most_tokens, words(nodes + 1), dtype=torch.int32, device=device)

    @property
    def rows(self) -> int:
        """P, the rows of the largest tree."""
        return self.parents.shape[1]

    def forget(self, slot: int) -> None:
        """A slot has a new request, whose first draft tokens may be vLLM's placeholders."""
        self.grown[slot] = False

    def grow(
        self,
        slots: np.ndarray,  # [M]
        nodes: np.ndarray,  # [M], at least 1
        blocks: np.ndarray,  # [M], rows of `starts`
        lengths: np.ndarray,  # [M], tokens per block
        starts: torch.Tensor,  # [*] int64, positions of the anchors
        first: np.ndarray,  # [M], each block's first row of `ranked`
        ranked: Ranked,
    ) -> None:
        """Grow trees from the candidates of blocks' positions."""
        plan = np.stack([slots, nodes, blocks, lengths, first]).astype(np.int64)
        grow_trees_kernel[(len(slots),)](
            self.parents,
            self.tokens,
            async_tensor_h2d(plan, self.parents.device),
            starts,
            ranked.tokens,
            ranked.log_probs,
            len(slots),
            self.rows,
            self.mask_token_id,
            self.max_model_len,
            TOP=TOP,
            WIDTH=triton.next_power_of_2(int(nodes.max()) + 1),
        )
        self.grown[slots] = self.used = True

    def mask(self, input_batch: InputBatch, groups: MaskGroups, every: bool) -> RowMask | None:
        """The mask of a step's trees and of its groups of masks, whose rows get their positions; None without either.

        every: include requests that have neither, as a CUDA graph needs it.
        """
        if not (self.used or groups.used or every):
            return None
        count, drafts = input_batch.num_reqs, input_batch.num_draft_tokens_per_req
        index = input_batch.idx_mapping_np[:count]
        trees = np.zeros(count, dtype=bool) if drafts is None else self.grown[index] & (drafts[:count] > 0)
        self.stands[index] = trees
        kinds = np.where(trees, TREE, np.where(groups.stands[index] > 0, GROUPS, CAUSAL))
        requests = np.arange(count) if every else np.flatnonzero(kinds)
        if not len(requests):
            return None
        lengths = input_batch.num_scheduled_tokens[requests]
        slots = index[requests]
        rows = [input_batch.query_start_loc_np[requests], lengths, slots, kinds[requests]]
        plan = [*rows, groups.chain[slots], groups.size[slots]]
        width = self.bits.shape[1]
        mask_rows_kernel[(len(requests), int(lengths.max()))](
            self.bits,
            input_batch.positions,
            async_tensor_h2d(np.stack(plan).astype(np.int64), self.bits.device),
            self.parents,
            groups.ends,
            len(requests),
            self.rows,
            groups.ends.shape[1],
            width,
            self.max_model_len - 1,
            WORDS=triton.next_power_of_2(width),
            TREE=TREE,
            GROUPS=GROUPS,
        )
        return RowMask(self.bits, requests)

    def walk(
        self,
        requests: np.ndarray,  # [M]
        slots: np.ndarray,  # [M]
        sampled: torch.Tensor,  # [L] int64, the sample after each row
        tokens: torch.Tensor,  # [L] int32, the token of each row
        cu_num_logits: torch.Tensor,  # [R + 1] int32
        out: torch.Tensor,  # [R, K + 1] int64, written for these requests
        lengths: torch.Tensor,  # [R] int32, written for these requests
    ) -> torch.Tensor:  # [L] int64
        """Follow the samples through trees and chains. Returns the rows of logits, each tree's path first."""
        order = torch.arange(len(sampled), device=sampled.device)
        walk_trees_kernel[(len(requests),)](
            out,
            out.stride(0),
            lengths,
            self.path,
            order,
            async_tensor_h2d(np.stack([requests, slots, self.stands[slots]]).astype(np.int64), out.device),
            self.parents,
            cu_num_logits,
            sampled,
            tokens,
            len(requests),
            self.rows,
            self.block_length,
            WIDTH=triton.next_power_of_2(self.rows),
        )
        return order

    def accepted(
        self,
        input_batch: InputBatch,
        num_sampled: torch.Tensor,  # [R] int32
    ) -> tuple[torch.Tensor, torch.Tensor] | None:  # two of [M * (B - 1)] int64
        """Rows of the step, and the rows whose slots get their KV; None if the step has no tree.

        Places past the end of a path name the anchor, which stays.
        """
        index = input_batch.idx_mapping_np[: input_batch.num_reqs]
        requests = np.flatnonzero(self.stands[index]) if self.used else ()
        if not len(requests):
            return None
        plan = np.stack([requests, index[requests], input_batch.query_start_loc_np[requests]]).astype(np.int64)
        request, slot, first = async_tensor_h2d(plan, self.path.device)
        depth = torch.arange(1, self.block_length, device=self.path.device)
        kept = depth < num_sampled[request][:, None]
        source = first[:, None] + self.path[slot, 1:].long().where(kept, 0)
        target = first[:, None] + depth.where(kept, 0)
        return source.flatten(), target.flatten()
