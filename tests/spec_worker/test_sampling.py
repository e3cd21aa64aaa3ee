"""Sampled output follows the AR distribution, whether drafts are argmaxes or draws with their logits kept; in diffusion
mode it follows the reference's."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chi_square import fit
from tests.engines import engine
from tests.scale import scaled
from tests.spec_worker.conftest import linear, metric
from tests.tiny import write_tiny_checkpoint
from vllm_nld.reference import ReferenceModel
from vllm_nld.reference.model import KVCache
from vllm_nld.serving.settings import Settings

VOCAB, PROMPT = 16, [5, 9, 7, 3]
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "mask_token_id": VOCAB - 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "0.5, top-k, top-p": {"temperature": 0.5, "top_k": 8, "top_p": 0.9},
    "1": {"temperature": 1.0},
    "1.5, top-k, top-p": {"temperature": 1.5, "top_k": 10, "top_p": 0.8},
    "1, min-p, logit bias": {"temperature": 1.0, "min_p": 0.06, "logit_bias": {3: 1.5, 7: -2.0}},
}
MOST = 10_000  # completions of one request; vLLM takes 16 384
SAMPLES = scaled(20_000)  # a case and a way to draft


def drafter(path: Path, method: str) -> dict[str, Any]:
    """Engine options for blocks of 4 with argmax or sampled drafts."""
    speculative = {"method": "draft_model", "model": str(path), "num_speculative_tokens": 3}
    return linear(4) | {"speculative_config": speculative | {"draft_sample_method": method}}


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 tokens, so that all sequences of three can be counted."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("small"), **SMALL)


WAYS: dict[str, dict[str, Any]] = {"trees": {"tree_nodes": 6}, "groups": {"mode": "quadratic", "groups": 2}}


@pytest.fixture(scope="module", params=["greedy", "probabilistic", *WAYS])
def llm(request: pytest.FixtureRequest, small_checkpoint: Path) -> Iterator[Any]:
    """Without draft logits, with them, with trees and with groups of masks. Thousands of short requests are served."""
    way = WAYS.get(request.param)
    options = drafter(small_checkpoint, request.param) if way is None else linear(4, **way)
    options |= {"max_num_seqs": 500, "max_num_batched_tokens": 2000, "num_gpu_blocks_override": 1100}
    with engine(small_checkpoint, **options) as llm:
        yield llm


def shape(
    logits: torch.Tensor,  # [..., V]
    temperature: float,
    top_k: int = VOCAB,
    top_p: float = 1.0,
    min_p: float = 0.0,
    logit_bias: dict[int, float] | None = None,
) -> torch.Tensor:  # [..., V]
    """Probabilities after logit bias, temperature, min-p, top-k, and top-p over what these have left."""
    bias = torch.zeros(VOCAB, dtype=torch.float64)
    for token, value in (logit_bias or {}).items():
        bias[token] = value
    probs, order = torch.softmax((logits.double() + bias) / temperature, dim=-1).sort(dim=-1, descending=True)
    probs[probs < min_p * probs[..., :1]] = 0
    probs[..., top_k:] = 0
    probs /= probs.sum(dim=-1, keepdim=True)
    probs[probs.cumsum(dim=-1) - probs >= top_p] = 0
    return torch.zeros_like(probs).scatter(-1, order, probs / probs.sum(dim=-1, keepdim=True))


@torch.no_grad()
def ar_probs(model: ReferenceModel, **case: Any) -> torch.Tensor:  # [V, V, V] float64
    """The exact AR probability of every three tokens after the prompt."""
    found, prefixes = torch.ones((), dtype=torch.float64), torch.tensor([PROMPT])
    for length in range(3):
        probs = shape(model.logits(model(prefixes)[:, -1]), **case)  # [V ^ length, V]
        found = found[..., None] * probs.view(*[VOCAB] * (length + 1))
        following = torch.arange(VOCAB).repeat(len(prefixes))[:, None]
        prefixes = torch.cat([prefixes.repeat_interleave(VOCAB, dim=0), following], dim=1)
    return found


def sample(llm: Any, count: int, **params: Any) -> list[tuple[int, ...]]:
    """The prefill's token and the next two, which drafts are accepted or rejected for."""
    from vllm import SamplingParams

    params = {"max_tokens": 3, "ignore_eos": True, "detokenize": False} | params
    counts = [min(MOST, count - first) for first in range(0, count, MOST)]
    outputs = llm.generate(
        [{"prompt_token_ids": PROMPT}] * len(counts), [SamplingParams(n=n, **params) for n in counts], use_tqdm=False
    )
    return [tuple(completion.token_ids) for output in outputs for completion in output.outputs]


@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_ar_distribution(name: str, llm: Any, small_checkpoint: Path) -> None:
    probs = ar_probs(ReferenceModel.from_pretrained(small_checkpoint), **CASES[name])
    before = metric(llm, "spec_decode_num_accepted_tokens")
    grouped = Settings.of(llm.llm_engine.vllm_config).groups  # masks beside the prompt draft worse on random weights
    passes: dict[str, Any] = {"prompt_logprobs": 0} if grouped else {}  # so a draft pass drafts the first block
    counts = Counter(sample(llm, SAMPLES, **CASES[name], **passes))
    assert metric(llm, "spec_decode_num_accepted_tokens") - before > SAMPLES / (10 if grouped else 5), (
        "few drafts are accepted"
    )
    found = fit(counts, probs)
    assert found.freedom > 20 and found.follows, f"chi-square {found.statistic:.1f}, at most {found.bound:.1f}"


DIFFUSION: dict[str, tuple[float, dict[str, Any]]] = {
    "one pass": (0.0, {"temperature": 1.0}),
    "two passes": (1.0, {"temperature": 1.0}),
    "two passes, top-k, top-p": (1.0, {"temperature": 1.5, "top_k": 10, "top_p": 0.8}),
}


@torch.no_grad()
def denoised(
    model: ReferenceModel, cache: KVCache, block: list[int], **case: Any
) -> tuple[torch.Tensor, torch.Tensor]:  # both [B, V] float64
    """What a denoising pass draws each position from, and how sure it is of each token."""
    start = cache.length
    logits = model.logits(model(torch.tensor([block]), cache, causal=False)[0])
    cache.truncate(start)
    sure = torch.softmax(logits.double(), dim=-1)
    logits[:, VOCAB - 1] = float("-inf")
    return shape(logits, **case), sure


@torch.no_grad()
def diffusion_probs(model: ReferenceModel, threshold: float, **case: Any) -> torch.Tensor:  # [V, V, V] float64
    """The exact probability of the seed and two denoised tokens: blocks of three."""
    mask, cache = VOCAB - 1, KVCache(model.config.num_hidden_layers)
    seeds = shape(model.logits(model(torch.tensor([PROMPT]), cache)[0, -1]), **case)
    found = torch.zeros(VOCAB, VOCAB, VOCAB, dtype=torch.float64)
    for seed in range(VOCAB):
        (_, first, second), (_, sure_first, sure_second) = denoised(model, cache, [seed, mask, mask], **case)
        if threshold == 0:
            found[seed] = seeds[seed] * first[:, None] * second
            continue
        both = first[:, None] * second  # the candidates of the first pass; the surer one is committed
        earlier = sure_first[:, None] >= sure_second
        for token in range(VOCAB - 1):
            left = (both * earlier)[token].sum()
            right = (both * ~earlier)[:, token].sum()
            found[seed, token] += seeds[seed] * left * denoised(model, cache, [seed, token, mask], **case)[0][2]
            found[seed, :, token] += seeds[seed] * right * denoised(model, cache, [seed, mask, token], **case)[0][1]
    return found


@pytest.mark.parametrize("name", DIFFUSION)
def test_denoised_samples_follow_the_references_rule(name: str, llm: Any, small_checkpoint: Path) -> None:
    """Candidates are drawn anew in each pass; the confidence is of the plain softmax; the seed is AR's."""
    threshold, case = DIFFUSION[name]
    probs = diffusion_probs(ReferenceModel.from_pretrained(small_checkpoint), threshold, **case)
    torch.testing.assert_close(probs.sum(), torch.ones((), dtype=torch.float64))
    asked = {"nld_mode": "diffusion", "nld_threshold": threshold, "nld_block_length": 3}
    found = fit(Counter(sample(llm, SAMPLES // 2, extra_args=asked, **case)), probs)
    assert found.freedom > 20 and found.follows, f"chi-square {found.statistic:.1f}, at most {found.bound:.1f}"


ALLOWED = list(range(0, VOCAB, 2))


@torch.no_grad()
def ruled_out_probs(model: ReferenceModel) -> torch.Tensor:  # [V, V] float64
    """The exact probability of the seed and the token after it, where half of the vocabulary is ruled out.

    A denoised token that is allowed is taken; one that is not makes room for a sample of the AR pathway.
    """
    mask, cache = VOCAB - 1, KVCache(model.config.num_hidden_layers)
    allowed = torch.zeros(VOCAB, dtype=torch.float64)
    allowed[ALLOWED] = 1

    def sampled(logits: torch.Tensor) -> torch.Tensor:
        probs = shape(logits, temperature=1.0) * allowed
        return probs / probs.sum(dim=-1, keepdim=True)

    seeds = sampled(model.logits(model(torch.tensor([PROMPT]), cache)[0, -1]))
    following = sampled(model.logits(model(torch.tensor([[*PROMPT, seed] for seed in range(VOCAB)]))[:, -1]))
    found = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for seed in ALLOWED:
        first = denoised(model, cache, [seed, mask, mask], temperature=1.0)[0][1]
        found[seed] = seeds[seed] * (first * allowed + (first * (1 - allowed)).sum() * following[seed])
    return found


def test_a_ruled_out_token_makes_room_for_an_ar_sample(llm: Any, small_checkpoint: Path) -> None:
    """In slots that sampled linear requests have used, whose draft logits are none of a denoised block's."""
    probs = ruled_out_probs(ReferenceModel.from_pretrained(small_checkpoint))
    torch.testing.assert_close(probs.sum(), torch.ones((), dtype=torch.float64))
    sample(llm, 1000, temperature=1.0)
    asked = {"nld_mode": "diffusion", "nld_threshold": 0.0, "nld_block_length": 3}
    common: dict[str, Any] = {"temperature": 1.0, "max_tokens": 2, "extra_args": asked}
    found = fit(Counter(sample(llm, SAMPLES // 2, allowed_token_ids=ALLOWED, **common)), probs)
    assert found.freedom > 20 and found.follows, f"chi-square {found.statistic:.1f}, at most {found.bound:.1f}"


def test_the_test_tells_distributions_apart(llm: Any, small_checkpoint: Path) -> None:
    """A tenth more temperature is noticed, in fewer samples."""
    model = ReferenceModel.from_pretrained(small_checkpoint)
    counts = Counter(sample(llm, 5000, temperature=1.1))
    assert fit(counts, ar_probs(model, temperature=1.1)).follows
    assert not fit(counts, ar_probs(model, temperature=1.0)).follows


def test_a_seed_fixes_the_samples(llm: Any) -> None:
    """Alone, or in a batch whose other requests have none."""

    def seeded(seed: int) -> list[tuple[int, ...]]:
        return sample(llm, 3, temperature=1.5, seed=seed, max_tokens=40)

    first = seeded(1)
    assert len(set(first)) == 3, "completions of one request differ"
    sample(llm, 50, temperature=1.0)
    assert seeded(1) == first
    assert seeded(2) != first
    assert among_others(llm, 1) == first[0]


@pytest.mark.parametrize(
    "settings",
    [{"tree_nodes": 12}, {"mode": "quadratic"}, {"mode": "quadratic", "groups": 2}],
    ids=["tree", "groups", "some groups"],
)
def test_a_seed_gives_the_tokens_of_ar(settings: dict[str, Any], small_checkpoint: Path) -> None:
    """The same noise at the same position."""
    common: dict[str, Any] = {"temperature": 1.2, "top_k": 9, "top_p": 0.9, "max_tokens": 60, "seed": 5}
    with engine(small_checkpoint, **linear(4, **settings)) as llm:
        tree = sample(llm, 6, **common)
        assert metric(llm, "spec_decode_num_accepted_tokens") > 60
        few = sample(llm, 6, **common, min_tokens=50, stop_token_ids=[3, 8], logprobs=2)
        ar = sample(llm, 6, **common, extra_args={"nld_mode": "ar"})
        assert tree == ar and len(set(tree)) == 6
        assert few == sample(
            llm, 6, **common, min_tokens=50, stop_token_ids=[3, 8], logprobs=2, extra_args={"nld_mode": "ar"}
        )
        assert few != tree


def among_others(llm: Any, seed: int) -> tuple[int, ...]:
    """A seeded completion out of a batch of sampled and greedy requests."""
    from vllm import SamplingParams

    common: dict[str, Any] = {"ignore_eos": True, "detokenize": False}
    params = [SamplingParams(temperature=t, max_tokens=17 + i, **common) for i, t in enumerate([0, 0.3, 1, 2] * 5)]
    params[7] = SamplingParams(temperature=1.5, seed=seed, n=3, max_tokens=40, **common)
    outputs = llm.generate([{"prompt_token_ids": PROMPT}] * len(params), params, use_tqdm=False)
    return tuple(outputs[7].outputs[0].token_ids)
