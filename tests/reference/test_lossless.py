"""Self-speculation is lossless: greedy output of linear and quadratic mode is the AR output, token for token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.prompts import prompts
from tests.scale import scaled, spread
from vllm_nld.reference import ReferenceModel, generate

LINEAR = [
    pytest.param({"mode": "linear", "threshold": threshold, "lora": lora}, id=f"linear-{threshold}-{name}")
    for threshold in (0.0, 0.9)
    for lora, name in ((True, "lora"), (False, "no-lora"))
]
TREES = [pytest.param({"mode": "linear", "tree_nodes": nodes}, id=f"tree-{nodes}") for nodes in (1, 12, 40)]
QUADRATIC = [
    pytest.param({"mode": "quadratic"} | options, id=f"quadratic-{name}")
    for name, options in (("full", {}), ("no-lora", {"lora": False}), ("sparse", {"groups": 2}))
]
SPECULATIVE = spread([*LINEAR, *TREES, *QUADRATIC])


@pytest.mark.parametrize("block_length", [2, 3, 8, 32])
@pytest.mark.parametrize("options", SPECULATIVE)
def test_greedy_output_is_the_ar_output(any_model: ReferenceModel, options: dict, block_length: int) -> None:
    count, limit = (2, 5) if block_length == 32 else (5, 10)  # a random model's long blocks take many passes
    for prompt in prompts(any_model, count, seed=block_length):
        ar = generate(any_model, prompt, mode="ar", max_new_tokens=limit, ignore_eos=True)
        found = generate(any_model, prompt, max_new_tokens=limit, block_length=block_length, ignore_eos=True, **options)
        assert found.tokens == ar.tokens


@pytest.mark.parametrize("options", SPECULATIVE)
def test_every_limit(agreeable: ReferenceModel, options: dict) -> None:
    prompt = [0, 1, 2, 0]
    ar = generate(agreeable, prompt, mode="ar", max_new_tokens=14, ignore_eos=True).tokens
    for limit in range(1, 15):
        found = generate(agreeable, prompt, max_new_tokens=limit, block_length=5, ignore_eos=True, **options)
        assert found.tokens == ar[:limit]
        assert 1 + sum(found.rounds) == limit


@pytest.mark.parametrize("block_length", [2, 5, 12])
@pytest.mark.parametrize("options", SPECULATIVE)
def test_eos_at_every_position(model: ReferenceModel, options: dict, block_length: int) -> None:
    """Whichever AR output token is the EOS, every mode ends at its first occurrence."""
    prompt, limit = [7, 8, 9], 6
    ar = generate(model, prompt, mode="ar", max_new_tokens=limit, ignore_eos=True).tokens
    for eos in dict.fromkeys(ar):
        found = generate(model, prompt, max_new_tokens=limit, block_length=block_length, eos_token_ids=[eos], **options)
        assert found.tokens == ar[: ar.index(eos) + 1]


@settings(max_examples=scaled(60), deadline=None)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    options=st.sampled_from(
        [
            {"mode": "linear", "threshold": 0.0},
            {"mode": "linear", "threshold": 0.5},
            {"mode": "linear", "tree_nodes": 9},
            {"mode": "quadratic"},
            {"mode": "quadratic", "groups": 1},
        ]
    ),
    block_length=st.integers(2, 9),
    limit=st.integers(1, 16),
    eos=st.sampled_from([(), (0,), (1,), (2,), (3,), (0, 2)]),
    budget=st.one_of(st.none(), st.integers(0, 8)),
)
def test_any_request(agreeable: ReferenceModel, prompt, options, block_length, limit, eos, budget) -> None:
    """EOS, limits and thinking budget combined, on a model whose drafts are often accepted and may be EOS or a tag."""
    common = {"max_new_tokens": limit, "eos_token_ids": eos, "thinking_budget": budget}
    common |= {"think_start_id": 1, "think_end_id": 0}
    ar = generate(agreeable, prompt, mode="ar", **common)
    found = generate(agreeable, prompt, block_length=block_length, **options, **common)
    assert found.tokens == ar.tokens


@pytest.mark.parametrize("options", SPECULATIVE)
def test_end_of_context(agreeable: ReferenceModel, options: dict) -> None:
    """A block that would exceed max_position_embeddings is shortened, and the last token is still right."""
    context = agreeable.config.max_position_embeddings
    prompt = [index * index % 4 for index in range(context - 9)]
    ar = generate(agreeable, prompt, mode="ar", max_new_tokens=9, ignore_eos=True)
    found = generate(agreeable, prompt, max_new_tokens=9, block_length=8, ignore_eos=True, **options)
    assert found.tokens == ar.tokens
