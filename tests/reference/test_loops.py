"""Each loop against its naive, cache-free counterpart: same tokens, NFE and rounds."""

import pytest
import torch

from tests.reference import naive
from tests.reference.prompts import prompts
from vllm_nld.reference import KVCache, ReferenceModel, generate, masks
from vllm_nld.reference.draft import fill

LIMIT = 13


def test_ar(any_model: ReferenceModel) -> None:
    for prompt in prompts(any_model, 4):
        found = generate(any_model, prompt, mode="ar", max_new_tokens=LIMIT, ignore_eos=True)
        assert (found.tokens, found.nfe, list(found.rounds)) == naive.ar(any_model, prompt, LIMIT)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("block_length", [2, 3, 8, 32])
def test_diffusion(any_model: ReferenceModel, block_length: int, threshold: float) -> None:
    for stop_ids in ((), (2, 11)):
        for prompt in prompts(any_model, 2):
            found = generate(
                any_model,
                prompt,
                mode="diffusion",
                max_new_tokens=LIMIT,
                block_length=block_length,
                threshold=threshold,
                eos_token_ids=stop_ids,
            )
            expected = naive.diffusion(any_model, prompt, LIMIT, block_length, threshold, stop_ids)
            assert (found.tokens, found.nfe, list(found.rounds)) == expected


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "no-lora"])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("block_length", [2, 3, 8])
def test_linear(any_model: ReferenceModel, block_length: int, threshold: float, lora: bool) -> None:
    for prompt in prompts(any_model, 2):
        found = generate(
            any_model,
            prompt,
            mode="linear",
            max_new_tokens=LIMIT,
            block_length=block_length,
            threshold=threshold,
            lora=lora,
            ignore_eos=True,
        )
        expected = naive.linear(any_model, prompt, LIMIT, block_length, threshold, lora)
        assert (found.tokens, found.nfe, list(found.rounds)) == expected


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "no-lora"])
@pytest.mark.parametrize(("block_length", "nodes"), [(2, 1), (2, 9), (3, 5), (6, 3), (6, 31)])
def test_tree(any_model: ReferenceModel, block_length: int, nodes: int, lora: bool) -> None:
    for prompt in prompts(any_model, 3):
        found = generate(
            any_model,
            prompt,
            mode="linear",
            max_new_tokens=LIMIT,
            block_length=block_length,
            tree_nodes=nodes,
            lora=lora,
            ignore_eos=True,
        )
        expected = naive.tree(any_model, prompt, LIMIT, block_length, nodes, lora)
        assert (found.tokens, found.nfe, list(found.rounds)) == expected


@pytest.mark.parametrize("block_length", [2, 3, 8])
def test_quadratic(any_model: ReferenceModel, block_length: int) -> None:
    limit = 24 // block_length + 6
    for prompt in prompts(any_model, 2 if any_model.config.vocab_size > 4 else 6):
        found = generate(
            any_model, prompt, mode="quadratic", max_new_tokens=limit, block_length=block_length, ignore_eos=True
        )
        expected = naive.quadratic(any_model, prompt, limit, block_length)
        assert (found.tokens, found.nfe, list(found.rounds)) == expected


def test_fused_round_equals_one_forward_per_acceptance_length(model: ReferenceModel) -> None:
    """Compares the logits of each group's AR row and masks, not just the chosen tokens."""
    context, drafts, mask_id = prompts(model, 2)[-1], [5, 6, 7], model.config.mask_token_id
    k, start = len(drafts), len(context)
    cache = KVCache(2)
    with torch.no_grad():
        model(torch.tensor([context]), cache)
        fused = torch.tensor([[token for draft in drafts for token in [draft] + [mask_id] * k]])
        positions = start + (torch.arange(k)[:, None] + torch.arange(k + 1)).flatten()
        hidden = model(fused, cache, positions=positions, mask=masks.quadratic_groups(k, cached=start))[0]
        found = model.logits(hidden).unflatten(0, (k, k + 1))
        for group in range(k):
            clean = context + drafts[: group + 1]
            expected = naive.dense(model, clean + [mask_id] * k, bidirectional_from=len(clean))
            torch.testing.assert_close(found[group], expected[len(clean) - 1 :], atol=1e-4, rtol=1e-4)


def test_rounds_of_every_length_occur(agreeable: ReferenceModel) -> None:
    """Otherwise the comparisons above don't cover accepted drafts."""
    for mode in ("linear", "quadratic"):
        seen = set[int]()
        for prompt in prompts(agreeable, 12):
            found = generate(agreeable, prompt, mode=mode, max_new_tokens=40, block_length=4, ignore_eos=True)
            seen |= set(found.rounds[:-1])  # the last round may be truncated
        assert seen == {1, 2, 3, 4}


def test_draft_adapter_is_on_in_draft_passes_only(model: ReferenceModel) -> None:
    calls = list[tuple[bool, bool]]()

    def record(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, bool]) -> None:
        calls.append((kwargs.get("causal", True), kwargs.get("lora", False)))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        for mode in ("ar", "diffusion", "linear", "quadratic"):
            calls.clear()
            generate(model, [1, 2, 3], mode=mode, max_new_tokens=6, block_length=4, ignore_eos=True)
            with_lora = {causal for causal, lora in calls if lora}
            assert with_lora == ({False} if mode == "linear" else set()), mode
            if mode == "linear":
                assert all(lora for causal, lora in calls if not causal)
    finally:
        handle.remove()


def test_draft_adapter_changes_drafts(model: ReferenceModel) -> None:
    with torch.no_grad():
        with_lora, _ = fill(model, KVCache(2), 5, block_length=16, threshold=0.0, lora=True)
        without, _ = fill(model, KVCache(2), 5, block_length=16, threshold=0.0, lora=False)
    assert with_lora != without


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_prompt_logits_are_never_computed(model: ReferenceModel, mode: str, monkeypatch) -> None:
    rows = list[int]()
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: rows.append(hidden.numel() // 64) or logits(hidden))
    generate(model, list(range(1, 120)), mode=mode, max_new_tokens=5, block_length=4, ignore_eos=True)
    assert max(rows) <= 4 * 5
