"""Sampling: the distributions are right, and sampled self-speculation follows the AR distribution."""

import itertools
from collections import Counter
from collections.abc import Mapping

import pytest
import torch

from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.reference.generation import Output
from vllm_nld.reference.sampling import draw, pick, softmax, speculate, target_probs, without
from vllm_nld.reference.verify import accept

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def assert_follows(counts: Mapping, expected: Mapping) -> None:
    """Chi-square test within 5 sigma of the expected probabilities; cells with few expected counts are pooled."""
    total = sum(counts.values())
    assert not counts.keys() - {cell for cell, p in expected.items() if p > 0}, "an impossible outcome occurred"
    cells = [(counts.get(cell, 0), p * total) for cell, p in expected.items()]
    large = [cell for cell in cells if cell[1] >= 5]
    pooled = [sum(part) for part in zip(*(cell for cell in cells if cell[1] < 5), strict=True)]
    if pooled and pooled[1] >= 5:
        large.append((pooled[0], pooled[1]))
    chi_square = sum((seen - mean) ** 2 / mean for seen, mean in large)
    freedom = len(large) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5, (
        f"chi-square {chi_square:.1f} at {freedom} degrees of freedom"
    )


def test_draw() -> None:
    drawn = draw(P.expand(20000, 4), torch.Generator().manual_seed(0))
    assert_follows(Counter(drawn.tolist()), dict(enumerate(P.tolist())))


def test_draw_with_unnormalised_and_zero_probabilities() -> None:
    drawn = draw(torch.tensor([0.0, 3.0, 0.0, 1.0]).expand(4000, 4), torch.Generator().manual_seed(0))
    assert_follows(Counter(drawn.tolist()), {0: 0.0, 1: 0.75, 2: 0.0, 3: 0.25})


@pytest.mark.parametrize(
    "draft_probs", [None, Q, P, torch.tensor([0.0, 1.0, 0.0, 0.0])], ids=["one-hot", "q", "p", "q-at-1"]
)
def test_speculation_returns_the_target_distribution(draft_probs: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    counts, agreed, samples = Counter[int](), 0, 8000
    for _ in range(samples):
        draft = 1 if draft_probs is None else int(draw(draft_probs, generator))
        token = speculate(P, draft, draft_probs, generator)
        counts[token] += 1
        agreed += token == draft
    assert_follows(counts, dict(enumerate(P.tolist())))
    expected = float(P[1]) if draft_probs is None else float(torch.minimum(P, draft_probs).sum())
    assert agreed / samples == pytest.approx(expected, abs=0.03)  # min(1, p/q) maximises acceptance


def test_greedy_speculation_is_the_argmax() -> None:
    target = target_probs(P.log(), 0.0)
    assert target.tolist() == [1, 0, 0, 0]
    assert [speculate(target, draft) for draft in range(4)] == [0, 0, 0, 0]


def test_temperature() -> None:
    assert pick(P.log(), 0.0) == 0
    torch.testing.assert_close(softmax(P.log(), 0.5), P**2 / (P**2).sum())
    assert softmax(torch.zeros(3)).dtype == torch.float64
    logits = P.log()
    assert without(logits, 0).argmax() == 1 and logits.argmax() == 0


def test_accept_follows_each_row() -> None:
    """Each token is sampled from its own row, given only that the draft before it was accepted."""
    rows = torch.stack([P, Q, P])
    generator, counts = torch.Generator().manual_seed(0), Counter[tuple[int, ...]]()
    for _ in range(6000):
        output = Output(limit=10)
        accept(rows, [0, 3], output, generator)
        counts[tuple(output.tokens)] += 1
    expected = {(first,): float(P[first]) for first in (1, 2, 3)}
    expected |= {(0, second): float(P[0] * Q[second]) for second in (0, 1, 2)}
    expected |= {(0, 3, third): float(P[0] * Q[3] * P[third]) for third in range(4)}
    assert_follows(counts, expected)


def ar_distribution(model: ReferenceModel, prompt: list[int], length: int, temperature: float) -> dict[tuple, float]:
    """The exact probability of every continuation of `length` tokens."""
    vocab = range(model.config.vocab_size)
    found = {}
    for tokens in itertools.product(vocab, repeat=length):
        sequence = torch.tensor([prompt + list(tokens)])
        with torch.no_grad():
            probs = softmax(model.logits(model(sequence)[0, len(prompt) - 1 : -1]), temperature)
        found[tokens] = float(probs[torch.arange(length), torch.tensor(tokens)].prod())
    return found


@pytest.mark.parametrize(
    "options",
    [{"mode": "ar"}, {"mode": "linear"}, {"mode": "linear", "threshold": 0.5}, {"mode": "quadratic"}],
    ids=["ar", "linear", "linear-0.5", "quadratic"],
)
def test_sampled_output_follows_the_ar_distribution(agreeable: ReferenceModel, options: dict) -> None:
    """All 64 continuations of 3 tokens, at a temperature high enough for most of them to be sampled."""
    prompt, temperature, samples = [0, 1, 2], 2.0, 400
    generator = torch.Generator().manual_seed(0)
    common = {"max_new_tokens": 3, "temperature": temperature, "generator": generator, "ignore_eos": True}
    outcomes = Counter(
        tuple(generate(agreeable, prompt, block_length=3, **options, **common).tokens) for _ in range(samples)
    )
    assert_follows(outcomes, ar_distribution(agreeable, prompt, 3, temperature))


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_a_seed_fixes_the_output(model: ReferenceModel, mode: str) -> None:
    options = {"mode": mode, "max_new_tokens": 12, "block_length": 4, "temperature": 1.0, "ignore_eos": True}
    state = torch.get_rng_state()
    first = generate(model, [4, 5], seed=1, **options)
    assert generate(model, [4, 5], seed=1, **options) == first
    assert generate(model, [4, 5], generator=torch.Generator().manual_seed(1), **options) == first
    assert generate(model, [4, 5], seed=2, **options) != first
    assert generate(model, [4, 5], **options) != generate(model, [4, 5], **options)
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator must be left alone"


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_low_temperature_is_greedy(model: ReferenceModel, mode: str) -> None:
    options = {"mode": mode, "max_new_tokens": 12, "block_length": 4, "ignore_eos": True}
    assert generate(model, [4, 5], temperature=1e-6, seed=0, **options) == generate(model, [4, 5], **options)
