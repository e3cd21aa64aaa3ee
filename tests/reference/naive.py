"""The loops again, greedy and without a cache: every pass recomputes the whole sequence under a dense mask.

Written from the specification, not from the loops under test. Each returns (tokens, nfe, rounds). Quadratic mode runs
one forward per acceptance length instead of one fused forward.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch

from vllm_nld.reference import ReferenceModel

Outcome = tuple[list[int], int, list[int]]


class RowLora(torch.nn.Module):
    """The draft adapter on some rows only, because a draft pass sees a prefix that was computed without it."""

    def __init__(self, inner: torch.nn.Module, first_row: int) -> None:
        super().__init__()
        self.inner, self.first_row = inner, first_row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        out[:, : self.first_row] = 0
        return out


@contextmanager
def lora_from(model: ReferenceModel, first_row: int) -> Iterator[None]:
    """Apply the adapter only to rows from `first_row` on."""
    before = [(module, target, module.loras[target]) for module, target in model.adapted() if target in module.loras]
    for module, target, lora in before:
        module.loras[target] = RowLora(lora, first_row)
    try:
        yield
    finally:
        for module, target, lora in before:
            module.loras[target] = lora


def dense(
    model: ReferenceModel, tokens: list[int], bidirectional_from: int | None = None, lora: bool = False
) -> torch.Tensor:
    """[T, V] logits; rows from `bidirectional_from` on see everything, the others are causal."""
    mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    first = len(tokens) if bidirectional_from is None else bidirectional_from
    mask[first:] = True
    with lora_from(model, first):
        return model.logits(model(torch.tensor([tokens]), mask=mask, lora=lora)[0])


def cut(tokens: list[int], limit: int, stop_ids: tuple[int, ...]) -> list[int]:
    """The tokens up to the first stop token, at most `limit` of them."""
    for index, token in enumerate(tokens[:limit]):
        if token in stop_ids:
            return tokens[: index + 1]
    return tokens[:limit]


def ended(tokens: list[int], limit: int, stop_ids: tuple[int, ...]) -> bool:
    return len(tokens) >= limit or any(token in stop_ids for token in tokens)


def ar(model: ReferenceModel, prompt: list[int], limit: int, stop_ids: tuple[int, ...] = ()) -> Outcome:
    tokens: list[int] = []
    while not ended(tokens, limit, stop_ids):
        tokens.append(int(dense(model, prompt + tokens)[-1].argmax()))
    return tokens, len(tokens), []


def denoise(
    model: ReferenceModel,
    context: list[int],
    block_length: int,
    threshold: float,
    lora: bool,
    stop_ids: tuple[int, ...] = (),
) -> tuple[list[int], int]:
    """Fill block_length - 1 masks after the context, whose last token is the block's anchor."""
    mask_id, filled, passes = model.config.mask_token_id, dict[int, int](), 0
    first, end = len(context), len(context) + block_length - 1
    while len(filled) < block_length - 1:
        tokens = context + [filled.get(position, mask_id) for position in range(first, end)]
        logits = dense(model, tokens, bidirectional_from=first - 1, lora=lora).double()
        passes += 1
        found = {}
        for position in set(range(first, end)) - filled.keys():
            row = logits[position]
            order = row.argsort(descending=True).tolist()
            token = order[0] if order[0] != mask_id else order[1]
            found[position] = (float(row.softmax(-1)[token]), token)
        best = max(found, key=lambda position: found[position][0])
        filled |= {p: token for p, (sure, token) in found.items() if sure >= threshold or p == best}
        solid = []
        for position in range(first, end):
            if position not in filled:
                break
            solid.append(filled[position])
            if filled[position] in stop_ids:
                return solid, passes
    return [filled[position] for position in range(first, end)], passes


def diffusion(
    model: ReferenceModel,
    prompt: list[int],
    limit: int,
    block_length: int,
    threshold: float,
    stop_ids: tuple[int, ...] = (),
) -> Outcome:
    tokens, nfe, rounds = [int(dense(model, prompt)[-1].argmax())], 0, []
    while not ended(tokens, limit, stop_ids):
        block, passes = denoise(model, prompt + tokens, block_length, threshold, False, stop_ids)
        before = len(tokens)
        tokens = cut(tokens + block, limit, stop_ids)
        nfe += passes + 1
        if not ended(tokens, limit, stop_ids):
            tokens.append(int(dense(model, prompt + tokens)[-1].argmax()))
        rounds.append(len(tokens) - before)
    return tokens, nfe, rounds


def linear(
    model: ReferenceModel,
    prompt: list[int],
    limit: int,
    block_length: int,
    threshold: float,
    lora: bool,
    stop_ids: tuple[int, ...] = (),
) -> Outcome:
    tokens, nfe, rounds = [int(dense(model, prompt)[-1].argmax())], 1, []
    while not ended(tokens, limit, stop_ids):
        drafts, passes = denoise(model, prompt + tokens, block_length, threshold, lora)
        verdict = dense(model, prompt + tokens + drafts)[-block_length:].argmax(-1).tolist()
        accepted = 0
        while accepted < len(drafts) and verdict[accepted] == drafts[accepted]:
            accepted += 1
        nfe += passes + 1
        before = len(tokens)
        tokens = cut(tokens + verdict[: accepted + 1], limit, stop_ids)
        rounds.append(len(tokens) - before)
    return tokens, nfe, rounds


def tree(model: ReferenceModel, prompt: list[int], limit: int, block_length: int, nodes: int, lora: bool) -> Outcome:
    """Scores every path of candidates, keeps the likeliest, and follows what AR answers through them."""
    mask_id, tokens = model.config.mask_token_id, [int(dense(model, prompt)[-1].argmax())]
    answer, nfe, rounds = ar(model, prompt, limit + block_length)[0], 1, []
    while len(tokens) < limit:
        context = prompt + tokens
        logits = dense(model, context + [mask_id] * (block_length - 1), len(context) - 1, lora)[-block_length + 1 :]
        logits[:, mask_id] = float("-inf")
        values, ids = (x.tolist() for x in logits.log_softmax(-1).topk(4, dim=-1))
        scores: dict[tuple[int, ...], float] = {}
        for depth in range(1, block_length):
            for ranks in product(range(4), repeat=depth):
                path = tuple(ids[place][rank] for place, rank in enumerate(ranks))
                scores[path] = sum(values[place][rank] for place, rank in enumerate(ranks))
        real = [path for path in scores if scores[path] > -math.inf]
        kept = set(sorted(real, key=scores.__getitem__, reverse=True)[:nodes])
        depth = 0
        while tuple(answer[len(tokens) : len(tokens) + depth + 1]) in kept:
            depth += 1
        nfe += 2
        before = len(tokens)
        tokens = answer[: min(before + depth + 1, limit)]
        rounds.append(len(tokens) - before)
    return tokens, nfe, rounds


def quadratic(
    model: ReferenceModel,
    prompt: list[int],
    limit: int,
    block_length: int,
    lora: bool = False,
    groups: int | None = None,
) -> Outcome:
    """One forward per acceptance length, of all of them or of the `groups` likeliest."""
    k, mask_id = block_length, model.config.mask_token_id

    def predict(context: list[int], masked: int) -> tuple[list[int], list[float]]:
        """The AR token after the context, the candidates of all masks but the first, and how probable these are."""
        logits = dense(model, context + [mask_id] * masked, bidirectional_from=len(context), lora=lora)
        sure, rows = logits.double().softmax(-1), logits.clone()
        rows[len(context) :, mask_id] = float("-inf")
        tokens = rows.argmax(-1).tolist()
        first = len(context) - 1
        return [tokens[first], *tokens[first + 2 :]], [float(sure[i, tokens[i]]) for i in range(first + 2, len(sure))]

    def draft(context: list[int]) -> tuple[list[int], list[float]]:
        """As linear mode does: the context's last token is part of the block."""
        logits = dense(model, context + [mask_id] * (k - 1), len(context) - 1, lora)[len(context) :]
        sure = logits.double().softmax(-1)
        logits[:, mask_id] = float("-inf")
        tokens = logits.argmax(-1).tolist()
        return [context[-1], *tokens], [float(row[token]) for row, token in zip(sure, tokens, strict=True)]

    def expected(confidence: list[float]) -> set[int]:
        """The likeliest numbers of accepted drafts."""
        chance = {
            i: math.prod(confidence[:i]) * (1 - confidence[i] if i < len(confidence) else 1)
            for i in range(len(confidence) + 1)
        }
        return set(sorted(chance, key=lambda i: -chance[i])[:groups])

    nfe, rounds = 1, list[int]()
    (first, *_), _ = drafted = predict(prompt, k)
    tokens = [first]
    while len(tokens) < limit:
        nfe += 1
        base, (block, confidence) = tokens[:-1], drafted
        nexts = [predict(prompt + base + block[: i + 1], k) for i in range(k)]
        a = 1
        while a < k and nexts[a - 1][0][0] == block[a]:
            a += 1
        before = len(tokens)
        tokens = (base + block[:a] + [nexts[a - 1][0][0]])[:limit]
        rounds.append(len(tokens) - before)
        drafted = nexts[a - 1]
        if groups is not None and a - 1 not in expected(confidence) and len(tokens) < limit:
            nfe, drafted = nfe + 1, draft(prompt + tokens)
    return tokens, nfe, rounds
