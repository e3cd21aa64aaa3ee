"""Groups of masks in the worker: rows of the verifying forward that draft the next block.

The draft tokens of such a request are a chain of drafts and then groups of masks, so scheduling, KV slots and
preemption are vLLM's, and verified rows lie where a chain has them. Each group continues the chain after its end: it is
of use if exactly the drafts up to there are accepted. What only we know of groups is in tables by state slot:

    groups.lay(...)     after drafting: where the next step's groups end
    groups.begin(...)   before the forward: which rows are masks; only the others are verified
    groups.chosen(...)  after sampling: the group that continues what was accepted

Letters in shapes: R requests, N state slots, K drafts of the longest block, G groups, L rows of logits.
"""

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch


def likeliest_ends(
    confidence: torch.Tensor,  # [R, K] float64, the probability of each draft; 0 where there is none
    count: int,
) -> torch.Tensor:  # [R, count] int64
    """The likeliest numbers of accepted drafts, the likeliest first; of equal ones the smaller first.

    A draft is taken to be accepted with its confidence, so exactly i are with c_1 · … · c_i · (1 - c_(i + 1)).
    """
    ones, none = torch.ones_like(confidence[:, :1]), torch.zeros_like(confidence[:, :1])
    reached = torch.cat([ones, confidence.cumprod(dim=1)], dim=1)
    likely = reached * (1 - torch.cat([confidence, none], dim=1))
    return likely.sort(dim=1, descending=True, stable=True).indices[:, :count]


class MaskGroups:
    """The groups of every state slot."""

    def __init__(self, slots: int, most: int, device: torch.device) -> None:
        self.used = False  # whether there have been any
        self.chain = np.zeros(slots, dtype=np.int64)  # drafts before the first group
        self.size = np.ones(slots, dtype=np.int64)  # masks per group
        self.laid = np.zeros(slots, dtype=np.int64)  # groups among the slot's draft tokens
        self.stands = np.zeros(slots, dtype=np.int64)  # and those that this step has whole
        self.masks: np.ndarray | None = None  # [R], rows of masks of this step's requests; None: the step has none
        self.ends = torch.zeros(slots, max(most, 1), dtype=torch.int32, device=device)

    def forget(self, slot: int) -> None:
        """A slot has a new request, whose first draft tokens may be vLLM's placeholders."""
        self.laid[slot] = self.stands[slot] = 0

    def lay(
        self,
        slots: np.ndarray,  # [R]
        chain: np.ndarray,  # [R]
        count: np.ndarray,  # [R], groups
        size: np.ndarray,  # [R], masks per group
        ends: torch.Tensor,  # [R, G] int64
    ) -> None:
        """Groups of masks follow the chains; none if the count is 0."""
        self.chain[slots], self.laid[slots], self.size[slots] = chain, count, size
        if count.any():
            self.used = True
            self.ends[async_tensor_h2d(slots, self.ends.device), : ends.shape[1]] = ends.to(self.ends)

    def begin(self, input_batch: InputBatch) -> np.ndarray | None:  # [R]
        """The draft tokens of each request that are verified, those that are no masks; None if the step has no masks.

        Groups that vLLM has cut count as none.
        """
        self.masks = None
        if not self.used:
            return None
        slots, drafts = input_batch.idx_mapping_np[: input_batch.num_reqs], input_batch.num_draft_tokens_per_req
        self.stands[slots] = 0
        if drafts is None or not self.laid[slots].any():
            return None
        drafts = drafts[: input_batch.num_reqs]
        chain = np.where(self.laid[slots] > 0, np.minimum(self.chain[slots], drafts), drafts)
        if (chain == drafts).all():
            return None
        whole = (drafts - chain) // self.size[slots]
        self.stands[slots] = np.minimum(whole, self.laid[slots])
        self.masks = drafts - chain
        return chain

    def chosen(
        self,
        slots: np.ndarray,  # [R]
        kept: torch.Tensor,  # [R] int, rows that were accepted, including the anchor
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [R] int64 and [R] bool
        """The group that continues what was accepted, and whether there is one."""
        plan = async_tensor_h2d(np.stack([slots, self.stands[slots]]), self.ends.device)
        place = torch.arange(self.ends.shape[1], device=self.ends.device)
        fits = (self.ends[plan[0]] == (kept - 1)[:, None]) & (place < plan[1][:, None])
        return fits.int().argmax(dim=1), fits.any(dim=1)


def only_verified(input_batch: InputBatch, drafts: np.ndarray) -> None:  # [R]
    """Leave the rows of masks out of a batch's rows of logits. Their drafts remain scheduled."""
    before = input_batch.cu_num_logits_np
    counts = (drafts + 1).astype(before.dtype)
    after = np.concatenate([before[:1], counts.cumsum(dtype=before.dtype)])
    rows = np.arange(after[-1]) + np.repeat(before[:-1] - after[:-1], counts)
    kept, starts = (async_tensor_h2d(x, input_batch.logits_indices.device) for x in (rows, after))
    input_batch.cu_num_logits_np, input_batch.cu_num_logits = after, starts
    input_batch.logits_indices = input_batch.logits_indices[kept]
    input_batch.expanded_idx_mapping = input_batch.expanded_idx_mapping[kept]
    input_batch.expanded_local_pos = input_batch.expanded_local_pos[kept]


def mask_rows(input_batch: InputBatch, drafts: np.ndarray) -> np.ndarray:  # [R] -> [T] bool
    """Which rows of a step are masks: those after a request's verified drafts."""
    count = input_batch.num_reqs
    given, scheduled = input_batch.num_draft_tokens_per_req, input_batch.num_scheduled_tokens[:count]
    assert given is not None
    unverified = given[:count] - drafts
    place = np.arange(scheduled.sum()) - np.repeat(input_batch.query_start_loc_np[:count], scheduled)
    return place >= np.repeat(scheduled - unverified, scheduled)
