"""Denoising: committed tokens stay, passes are bounded, and EOS and block edges are handled."""

import pytest
import torch

from tests.reference.prompts import prompts
from vllm_nld.reference import KVCache, ReferenceModel, generate
from vllm_nld.reference.draft import commit, fill, stop_index


def denoised_blocks(
    model: ReferenceModel, prompt: list[int], **options
) -> tuple[list[list[torch.Tensor]], list[int], int]:
    """The input of each denoising forward, grouped by block, with the output's tokens and NFE."""
    blocks = list[list[torch.Tensor]]()
    fresh = True

    def record(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, bool]) -> None:
        nonlocal fresh
        if kwargs.get("causal", True):
            fresh = True
            return
        if fresh:
            blocks.append([])
            fresh = False
        blocks[-1].append(args[0][0])

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        tokens, nfe = generate(model, prompt, mode="diffusion", ignore_eos=True, **options)
    finally:
        handle.remove()
    return blocks, tokens, nfe


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
def test_a_committed_token_never_changes(model: ReferenceModel, threshold: float) -> None:
    mask_id = model.config.mask_token_id
    for prompt in prompts(model, 4):
        blocks, tokens, _ = denoised_blocks(model, prompt, max_new_tokens=25, block_length=8, threshold=threshold)
        for index, passes in enumerate(blocks):
            final = torch.tensor(tokens[8 * index : 8 * index + 8])
            for earlier in passes:
                shown = earlier[: len(final)]
                assert torch.equal(shown[shown != mask_id], final[shown != mask_id])
            undecided = [int((one[1:] == mask_id).sum()) for one in passes]
            assert undecided[0] == 7
            assert all(later < earlier for earlier, later in zip(undecided, undecided[1:], strict=False))


@pytest.mark.parametrize("block_length", [2, 3, 8])
def test_passes_per_block(model: ReferenceModel, block_length: int) -> None:
    """Threshold 0 takes one pass per block, threshold 1 one pass per masked token, others something in between."""
    limit = 3 * block_length + 1
    for prompt in prompts(model, 3):
        for threshold, low, high in (
            (0.0, 1, 1),
            (1.0, block_length - 1, block_length - 1),
            (0.5, 1, block_length - 1),
        ):
            options = {"max_new_tokens": limit, "block_length": block_length, "threshold": threshold}
            blocks, tokens, nfe = denoised_blocks(model, prompt, **options)
            assert len(tokens) == limit and len(blocks) == 3
            assert all(low <= len(passes) <= high for passes in blocks)
            assert nfe == sum(len(passes) for passes in blocks) + len(blocks)


def test_default_threshold_is_the_released_default(model: ReferenceModel) -> None:
    options = {"mode": "diffusion", "max_new_tokens": 20, "block_length": 8}
    assert generate(model, [5, 6], **options) == generate(model, [5, 6], threshold=0.9, **options)


def test_first_token_is_the_ar_argmax(model: ReferenceModel) -> None:
    for prompt in prompts(model, 3):
        ar = generate(model, prompt, mode="ar", max_new_tokens=1)
        found = generate(model, prompt, mode="diffusion", max_new_tokens=1)
        assert found.tokens == ar.tokens
        assert (found.nfe, found.rounds, found.tpf) == (0, (), 1.0)  # the prefill is not counted


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_shorter_limit_is_a_prefix(model: ReferenceModel, limit: int) -> None:
    """Block edges: a higher limit never changes the tokens before it."""
    options = {"mode": "diffusion", "block_length": 4, "threshold": 0.6, "ignore_eos": True}
    longest = generate(model, [3, 1, 4], max_new_tokens=12, **options)
    assert generate(model, [3, 1, 4], max_new_tokens=limit, **options).tokens == longest.tokens[:limit]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_eos_ends_the_output(model: ReferenceModel, threshold: float) -> None:
    """Whichever output token is the EOS, the output is the prefix that ends with it and takes no more forwards."""
    options = {"mode": "diffusion", "block_length": 6, "threshold": threshold, "max_new_tokens": 13}
    whole = generate(model, [3, 1, 4], ignore_eos=True, **options)
    for eos in dict.fromkeys(whole.tokens):
        found = generate(model, [3, 1, 4], eos_token_ids=[eos], **options)
        assert found.tokens == whole.tokens[: whole.tokens.index(eos) + 1]
        assert found.nfe <= whole.nfe


def test_eos_stops_denoising_only_with_no_mask_before_it() -> None:
    block = torch.tensor([11, 5, 11, 100, 11])
    undecided = torch.tensor([False, False, False, True, False])
    assert stop_index(block, undecided, (11,)) == 2
    assert stop_index(block, torch.tensor([False, True, False, True, False]), (11,)) is None
    assert stop_index(block, undecided, ()) is None
    anchor_only = torch.tensor([11, 5, 6])  # the anchor was emitted by an earlier round, so it doesn't count
    assert stop_index(anchor_only, torch.zeros(3, dtype=torch.bool), (11,)) is None


def test_commit() -> None:
    confidence = torch.tensor([1.0, 0.2, 0.95, 0.9, 0.3], dtype=torch.float64)
    masked = torch.tensor([False, True, True, True, True])
    assert commit(confidence, masked, 0.9).tolist() == [False, False, True, True, False]
    assert commit(confidence, masked, 1.0).tolist() == [False, False, True, False, False]  # at least the best one
    assert commit(confidence, masked, 0.0).tolist() == masked.tolist()


def test_the_mask_token_is_never_committed(agreeable: ReferenceModel, monkeypatch) -> None:
    """Even if it is every row's argmax. The confidence still comes from the softmax that includes it."""
    logits = agreeable.logits
    bias = torch.tensor([0.0, 0.0, 0.0, 50.0])
    monkeypatch.setattr(agreeable, "logits", lambda hidden: logits(hidden) + bias)
    with torch.no_grad():
        tokens, passes = fill(agreeable, KVCache(2), 1, block_length=6, threshold=0.5)
    assert 3 not in tokens
    assert passes == 5  # no confidence reaches the threshold, because the mask token has nearly all the probability


def test_mask_token_as_anchor_is_an_ordinary_token(model: ReferenceModel) -> None:
    mask_id = model.config.mask_token_id
    with torch.no_grad():
        tokens, passes = fill(model, KVCache(2), mask_id, block_length=4, threshold=1.0)
    assert len(tokens) == 3 and passes == 3


def test_fill_leaves_the_cache_unchanged(model: ReferenceModel) -> None:
    cache = KVCache(2)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3, 4]]), cache)
        before = [keys.clone() for keys in cache.keys + cache.values]
        fill(model, cache, 5, block_length=6, threshold=0.9)
    assert cache.length == 4
    assert all(torch.equal(a, b) for a, b in zip(before, cache.keys + cache.values, strict=True))
