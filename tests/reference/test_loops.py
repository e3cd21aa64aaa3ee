"""Each loop against its naive, cache-free counterpart: same tokens, NFE and rounds."""

from itertools import product
from typing import Any

import pytest
import torch

from tests.reference import naive
from tests.reference.prompts import prompts
from tests.scale import spread
from vllm_nld.reference import KVCache, ReferenceModel, generate, masks
from vllm_nld.reference.draft import fill
from vllm_nld.reference.quadratic import likeliest_ends

LIMIT = 13
LORA = (True, False)


def test_ar(any_model: ReferenceModel) -> None:
    for prompt in prompts(any_model, 4):
        found = generate(any_model, prompt, mode="ar", max_new_tokens=LIMIT, ignore_eos=True)
        assert (found.tokens, found.nfe, list(found.rounds)) == naive.ar(any_model, prompt, LIMIT)


@pytest.mark.parametrize(("block_length", "threshold"), spread([*product((2, 3, 8, 32), (0.0, 0.4, 0.9, 1.0))]))
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


@pytest.mark.parametrize(("block_length", "threshold", "lora"), spread([*product((2, 3, 8), (0.0, 0.4, 0.9), LORA)]))
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


@pytest.mark.parametrize(
    ("shape", "lora"), spread([*product(((2, 1), (2, 9), (3, 5), (6, 3), (6, 31)), LORA)]), ids=str
)
def test_tree(any_model: ReferenceModel, shape: tuple[int, int], lora: bool) -> None:
    block_length, nodes = shape
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


@pytest.mark.parametrize(
    ("shape", "lora"), spread([*product(((2, 0), (3, 0), (8, 0), (2, 1), (3, 2), (3, 3), (8, 3)), LORA)]), ids=str
)
def test_quadratic(any_model: ReferenceModel, shape: tuple[int, int], lora: bool) -> None:
    """The full form, and the sparse one, whose draft forwards are counted too."""
    block_length, groups = shape
    limit = 24 // block_length + 6
    for prompt in prompts(any_model, 2 if any_model.config.vocab_size > 4 else 6):
        found = generate(
            any_model,
            prompt,
            mode="quadratic",
            max_new_tokens=limit,
            block_length=block_length,
            groups=groups,
            lora=lora,
            ignore_eos=True,
        )
        sparse = groups if 0 < groups < block_length else None
        expected = naive.quadratic(any_model, prompt, limit, block_length, lora, sparse)
        assert (found.tokens, found.nfe, list(found.rounds)) == expected


def test_groups_hit_and_miss(agreeable: ReferenceModel) -> None:
    """Otherwise the comparison above covers one of the two only. More groups hit more often."""
    common: dict[str, Any] = {"mode": "quadratic", "max_new_tokens": 40, "block_length": 4, "ignore_eos": True}
    passes = []
    for groups in (1, 2, 3, 4):
        found = [generate(agreeable, prompt, groups=groups, **common) for prompt in prompts(agreeable, 8)]
        passes.append(sum(one.nfe - 1 - len(one.rounds) for one in found))
        assert passes[-1] < sum(len(one.rounds) for one in found)
    assert passes[0] > passes[1] > passes[2] > passes[3] == 0, "the last one is the full form"


def test_likeliest_ends() -> None:
    assert likeliest_ends([0.9, 0.5, 0.9], 2) == [1, 3]  # 0.1, 0.45, 0.045, 0.405
    assert likeliest_ends([0.9, 0.5, 0.9], 4) == [1, 3, 0, 2]
    assert likeliest_ends([1.0, 1.0], 3) == [2, 0, 1]
    assert likeliest_ends([0.2], 1) == [0]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "no-lora"])
def test_fused_round_equals_one_forward_per_acceptance_length(model: ReferenceModel, lora: bool) -> None:
    """Compares the logits of each group's AR row and masks, not just the chosen tokens."""
    context, drafts, mask_id = prompts(model, 2)[-1], [5, 6, 7], model.config.mask_token_id
    k, start, ends = len(drafts), len(context), [2, 0, 1]
    cache = KVCache(2)
    with torch.no_grad():
        model(torch.tensor([context]), cache)
        fused = torch.tensor([drafts + [mask_id] * k * len(ends)])
        positions = start + torch.tensor([*range(k), *(end + 1 + p for end in ends for p in range(k))])
        mask = masks.quadratic_groups(k, ends, k, cached=start)
        rows = lora and torch.arange(fused.shape[1]) >= k
        found = model.logits(model(fused, cache, positions=positions, mask=mask, lora=rows)[0])
        for group, end in enumerate(ends):
            clean = context + drafts[: end + 1]
            expected = naive.dense(model, clean + [mask_id] * k, bidirectional_from=len(clean), lora=lora)
            own = found[[end, *range(k + group * k, k + (group + 1) * k)]]
            torch.testing.assert_close(own, expected[len(clean) - 1 :], atol=1e-4, rtol=1e-4)


def test_rounds_of_every_length_occur(agreeable: ReferenceModel) -> None:
    """Otherwise the comparisons above don't cover accepted drafts."""
    for mode in ("linear", "quadratic"):
        seen = set[int]()
        for prompt in prompts(agreeable, 12):
            found = generate(agreeable, prompt, mode=mode, max_new_tokens=40, block_length=4, ignore_eos=True)
            seen |= set(found.rounds[:-1])  # the last round may be truncated
        assert seen == {1, 2, 3, 4}


def test_draft_adapter_is_on_where_masks_are_drafted_only(model: ReferenceModel) -> None:
    """Wherever there is no mask it is off; an anchor in a draft pass, which sees its masks, is the exception."""
    calls = list[tuple[torch.Tensor, dict[str, Any]]]()

    def record(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args[0][0], kwargs))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    mask_id = model.config.mask_token_id
    try:
        for mode, groups in (("ar", 0), ("diffusion", 0), ("linear", 0), ("quadratic", 0), ("quadratic", 2)):
            calls.clear()
            common: dict[str, Any] = {"max_new_tokens": 6, "block_length": 4, "ignore_eos": True}
            generate(model, [1, 2, 3], mode=mode, groups=groups, **common)  # type: ignore[arg-type]  # a str
            on = [(tokens, how) for tokens, how in calls if how.get("lora", False) is not False]
            assert bool(on) == (mode in ("linear", "quadratic"))
            for tokens, how in on:
                if "mask" in how:
                    assert mode == "quadratic" and how["lora"].equal(tokens == mask_id)
                else:
                    assert not how["causal"] and how["lora"] is True and (tokens[1:] == mask_id).all()
            if mode == "linear":
                assert all(how["lora"] for _, how in calls if not how.get("causal", True))
            calls.clear()
            generate(model, [1, 2, 3], mode=mode, groups=groups, lora=False, **common)  # type: ignore[arg-type]
            assert all(how.get("lora", False) is False for _, how in calls)
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
