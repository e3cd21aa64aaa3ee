"""Denoising: what is committed stays, passes are bounded, and EOS and block edges behave."""

import pytest
import torch

from tests.reference.prompts import prompts
from vllm_nld.reference import KVCache, ReferenceModel, generate
from vllm_nld.reference.draft import commit, fill, stopped


def denoised_blocks(model: ReferenceModel, prompt: list[int], **how) -> tuple[list[list[torch.Tensor]], list[int], int]:
    """The blocks that denoising forwards read, grouped by block, with the output's tokens and NFE."""
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
        tokens, nfe = generate(model, prompt, mode="diffusion", ignore_eos=True, **how)
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
def test_passes_of_a_block(model: ReferenceModel, block_length: int) -> None:
    """Threshold 0 takes one pass a block, threshold 1 one a masked token, any other one a number between."""
    limit = 3 * block_length + 1
    for prompt in prompts(model, 3):
        for threshold, low, high in (
            (0.0, 1, 1),
            (1.0, block_length - 1, block_length - 1),
            (0.5, 1, block_length - 1),
        ):
            how = {"max_new_tokens": limit, "block_length": block_length, "threshold": threshold}
            blocks, tokens, nfe = denoised_blocks(model, prompt, **how)
            assert len(tokens) == limit and len(blocks) == 3
            assert all(low <= len(passes) <= high for passes in blocks)
            assert nfe == sum(len(passes) for passes in blocks) + len(blocks)


def test_the_default_threshold_is_the_released_one(model: ReferenceModel) -> None:
    how = {"mode": "diffusion", "max_new_tokens": 20, "block_length": 8}
    assert generate(model, [5, 6], **how) == generate(model, [5, 6], threshold=0.9, **how)


def test_first_token_is_the_ar_argmax(model: ReferenceModel) -> None:
    for prompt in prompts(model, 3):
        ar = generate(model, prompt, mode="ar", max_new_tokens=1)
        found = generate(model, prompt, mode="diffusion", max_new_tokens=1)
        assert found.tokens == ar.tokens
        assert (found.nfe, found.rounds, found.tpf) == (0, (), 1.0)  # the prefill is not counted


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_shorter_limit_is_a_prefix(model: ReferenceModel, limit: int) -> None:
    """Block edges: one more token allowed never changes those before it."""
    how = {"mode": "diffusion", "block_length": 4, "threshold": 0.6, "ignore_eos": True}
    longest = generate(model, [3, 1, 4], max_new_tokens=12, **how)
    assert generate(model, [3, 1, 4], max_new_tokens=limit, **how).tokens == longest.tokens[:limit]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_eos_ends_the_output(model: ReferenceModel, threshold: float) -> None:
    """Each token of the output in turn made the EOS: the output is a prefix that ends with it, at no more forwards."""
    how = {"mode": "diffusion", "block_length": 6, "threshold": threshold, "max_new_tokens": 13}
    whole = generate(model, [3, 1, 4], ignore_eos=True, **how)
    for eos in dict.fromkeys(whole.tokens):
        found = generate(model, [3, 1, 4], eos_token_ids=[eos], **how)
        assert found.tokens == whole.tokens[: whole.tokens.index(eos) + 1]
        assert found.nfe <= whole.nfe


def test_eos_stops_denoising_only_with_no_mask_before_it() -> None:
    block = torch.tensor([11, 5, 11, 100, 11])
    undecided = torch.tensor([False, False, False, True, False])
    assert stopped(block, undecided, (11,)) == 2
    assert stopped(block, torch.tensor([False, True, False, True, False]), (11,)) is None
    assert stopped(block, undecided, ()) is None
    assert stopped(torch.tensor([11, 5, 6]), torch.zeros(3, dtype=torch.bool), (11,)) is None  # the anchor is no news


def test_commit() -> None:
    confidence = torch.tensor([1.0, 0.2, 0.95, 0.9, 0.3], dtype=torch.float64)
    masked = torch.tensor([False, True, True, True, True])
    assert commit(confidence, masked, 0.9).tolist() == [False, False, True, True, False]
    assert commit(confidence, masked, 1.0).tolist() == [False, False, True, False, False]  # the best one at least
    assert commit(confidence, masked, 0.0).tolist() == masked.tolist()


def test_the_mask_token_is_never_committed(agreeable: ReferenceModel, monkeypatch) -> None:
    """Even where it is the argmax of every row; the confidence still comes from the softmax that has it."""
    logits = agreeable.logits
    bias = torch.tensor([0.0, 0.0, 0.0, 50.0])
    monkeypatch.setattr(agreeable, "logits", lambda hidden: logits(hidden) + bias)
    with torch.no_grad():
        tokens, passes = fill(agreeable, KVCache(2), 1, block_length=6, threshold=0.5)
    assert 3 not in tokens
    assert passes == 5  # no confidence reaches the threshold: the mask token has nearly all of the probability


def test_a_mask_token_in_the_prompt_is_a_token_like_any_other(model: ReferenceModel) -> None:
    mask_id = model.config.mask_token_id
    with torch.no_grad():
        tokens, passes = fill(model, KVCache(2), mask_id, block_length=4, threshold=1.0)
    assert len(tokens) == 3 and passes == 3


def test_filling_leaves_the_cache_as_it_was(model: ReferenceModel) -> None:
    cache = KVCache(2)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3, 4]]), cache)
        before = [keys.clone() for keys in cache.keys + cache.values]
        fill(model, cache, 5, block_length=6, threshold=0.9)
    assert cache.length == 4
    assert all(torch.equal(a, b) for a, b in zip(before, cache.keys + cache.values, strict=True))
