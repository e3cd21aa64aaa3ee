"""Walks through answers in rounds, as linear self-speculation decodes them, for training and for measuring alike.

    group = Group.of(model, conversations)                     # one causal pass, adapter off: the prefixes' KV
    for step in rounds(model, group, lora=True):
        step.loss.backward()                                   # of all blocks of the round
        step.emitted                                           # tokens of each block, bonus token included

A round drafts one block per answer: its anchor, which is the last accepted token, and masks. The answers are the AR
pathway's, so a draft is accepted if it is the answer's token, and the next block starts behind the accepted ones. A
position's loss counts as much as it is probable that decoding reaches it: the product of the probabilities of the right
tokens before it in the block. What comes after the end of an answer doesn't count.

Letters in shapes: N answers that still decode, L tokens of the longest conversation, B block length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from vllm_nld.adapter.conversations import Conversation
from vllm_nld.nano.batches import IGNORED, Batch, pad
from vllm_nld.nano.objective import clean_pass, noisy_pass
from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import without

CHUNK = 1024  # rows whose logits are computed at a time


class Prefix(KVCache):
    """KV that a pass reads and doesn't add to. So layers can be computed twice, as checkpointed activations are."""

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self.keys[layer], keys], dim=2), torch.cat([self.values[layer], values], dim=2)

    def of_rows(self, rows: torch.Tensor) -> "Prefix":
        """The KV of some sequences, [n] int64."""
        return Prefix(self.num_layers, [k[rows] for k in self.keys], [v[rows] for v in self.values])


@dataclass(frozen=True, slots=True)
class Group:
    """Conversations that are walked through together."""

    ids: torch.Tensor  # [N, L] int64, padded on the right
    lengths: torch.Tensor  # [N] int64
    starts: torch.Tensor  # [N] int64, index of each first anchor
    prefix: Prefix
    agreement: float  # share of answer tokens that are the AR pathway's likeliest

    @classmethod
    @torch.no_grad()
    def of(cls, model: ReferenceModel, conversations: Sequence[Conversation]) -> "Group":
        """Compute the prefixes."""
        ids = pad([list(one.ids) for one in conversations], 0)
        starts = torch.tensor([len(one.prompt) for one in conversations])
        lengths = torch.tensor([len(one.ids) for one in conversations])
        none = torch.zeros(len(ids), 0, dtype=torch.int64)
        offset = torch.zeros(len(ids), dtype=torch.int64)
        hidden, cache = clean_pass(model, Batch(ids, ids, none, none, none, none, none, offset, 0))
        place = torch.arange(ids.shape[1] - 1)
        answered = (place >= starts[:, None] - 1) & (place < lengths[:, None] - 1)  # rows that predict the answer
        labels, rows = ids[:, 1:][answered], hidden[:, :-1][answered].split(CHUNK)
        predicted = torch.cat([model.logits(some).argmax(-1) for some in rows])
        agreement = (predicted == labels).float().mean().item()
        return cls(ids, lengths, starts, Prefix(cache.num_layers, cache.keys, cache.values), agreement)


@dataclass(frozen=True, slots=True)
class Round:
    """One block of each answer that still decodes.

    rows: which answers of the group. emitted: their tokens. accepted, drafted: of them drafts, and drafts within the
    answer. loss: the sum over the blocks.
    """

    rows: list[int]
    emitted: list[int]
    accepted: list[int]
    drafted: list[int]
    loss: torch.Tensor


def rounds(
    model: ReferenceModel,
    group: Group,
    lora: bool,
    block_length: int | None = None,
    anyone: Callable[[bool], bool] = bool,
) -> Iterator[Round]:
    """Every round until all answers are decoded. lora: draft with the adapter.

    anyone: whether any process still has answers, given whether this one has. While another one has, this one drafts a
    block without drafts, because processes that share the model's weights must do the same number of passes.
    """
    block_length = block_length or model.config.block_size
    prefix, starts, ids, lengths = group.prefix, group.starts, group.ids, group.lengths
    rows = torch.arange(len(ids))
    while anyone(len(going := (starts < lengths - 1).nonzero().flatten()) > 0):
        done = not len(going)
        going = going if len(going) else torch.zeros(1, dtype=torch.int64)
        if len(going) < len(rows):
            rows, starts, ids, lengths = rows[going], starts[going], ids[going], lengths[going]
            prefix = prefix.of_rows(going)
        batch, inside = blocks(ids, lengths, starts, block_length, model.config.mask_token_id)
        right, likely = drafts(model, batch, prefix, inside, lora)
        accepted = (likely & inside).long().cumprod(-1).sum(-1)
        left = lengths - 1 - starts
        emitted = torch.minimum(accepted + 1, left)
        loss = weighted(right, inside)
        drafted = inside.sum(-1)
        counts = torch.stack([rows, emitted, accepted, drafted])[:, : 0 if done else None]
        indices, got, kept, tried = counts.tolist()  # one look at the device
        yield Round(indices, got, kept, tried, loss)
        starts = starts + emitted


def blocks(
    ids: torch.Tensor,  # [N, L] int64
    lengths: torch.Tensor,  # [N] int64
    starts: torch.Tensor,  # [N] int64
    block_length: int,
    mask_id: int,
) -> tuple[Batch, torch.Tensor]:  # and [N, B - 1] bool, the drafts within the answer
    """The anchors and their masks, in the form of nano's training batches."""
    places = torch.arange(block_length)
    index = starts[:, None] + places  # [N, B]
    tokens = ids.gather(1, index.clamp(max=ids.shape[1] - 1))
    inside = (index < lengths[:, None]) & (places > 0)
    labels = torch.where(inside, tokens, IGNORED)
    noisy = torch.where(places > 0, mask_id, tokens)
    offset = torch.zeros(len(ids), dtype=torch.int64)
    own = starts[:, None].expand_as(index)
    batch = Batch(ids, ids, noisy, labels, inside.float(), index, own, offset, block_length)
    return batch, inside[:, 1:]


def drafts(
    model: ReferenceModel,
    batch: Batch,
    prefix: Prefix,
    inside: torch.Tensor,  # [N, B - 1] bool
    lora: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # [N, B - 1] float32, log-probability of the right token; bool, if likeliest
    """One draft pass. Logits are computed for drafts within the answer only; the mask token is no candidate."""
    hidden = noisy_pass(model, batch, prefix, lora)[:, 1:]
    logits = without(model.logits(hidden[inside]), model.config.mask_token_id)
    labels = batch.noisy_labels[:, 1:][inside]
    found = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    right = torch.zeros(inside.shape).masked_scatter(inside, found)
    return right, torch.zeros_like(inside).masked_scatter(inside, logits.argmax(-1) == labels)


def weighted(
    right: torch.Tensor,  # [N, B - 1] float32, log-probability of each right token
    inside: torch.Tensor,  # [N, B - 1] bool
) -> torch.Tensor:
    """The sum of losses, each times the probability that decoding reaches its position."""
    return -(reach(right) * right * inside).sum()


def reach(right: torch.Tensor) -> torch.Tensor:  # [N, B - 1] of [N, B - 1]
    """The probability that all drafts before a position are accepted; a weight, so it has no gradient."""
    before = right.detach().cumsum(-1).roll(1, dims=-1)
    before[:, 0] = 0
    return before.exp()


@torch.no_grad()
def trace(
    model: ReferenceModel,
    group: Group,
    lora: bool,
    block_length: int | None = None,
    anyone: Callable[[bool], bool] = bool,
) -> list[list[tuple[int, int, int]]]:
    """Emitted, accepted and drafted tokens of each round, for each conversation of the group."""
    found: list[list[tuple[int, int, int]]] = [[] for _ in range(len(group.ids))]
    for step in rounds(model, group, lora, block_length, anyone):
        for row, *counts in zip(step.rows, step.emitted, step.accepted, step.drafted, strict=True):
            found[row].append((counts[0], counts[1], counts[2]))
    return found
