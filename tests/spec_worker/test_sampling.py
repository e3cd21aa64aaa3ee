"""Sampled output follows the AR distribution, whether drafts are argmaxes or draws with their logits kept."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines import engine
from tests.spec_worker.conftest import ANSWERS, linear, metric
from vllm_nld.reference import ReferenceModel
from vllm_nld.reference.model import KVCache

PROMPT = [5, 9, 17, 60]
SAMPLES = 3000


def next_probs(model: ReferenceModel, tokens: list[int], temperature: float) -> torch.Tensor:  # [answers] float64
    """Exact AR probabilities of the six tokens; the others share one logit, 0, and are left in the denominator."""
    hidden = model(torch.tensor([tokens]), KVCache(model.config.num_hidden_layers))
    return torch.softmax(model.logits(hidden[0, -1]).double() / temperature, dim=-1)


def pair_probs(model: ReferenceModel, temperature: float) -> dict[tuple[int, int], float]:
    """P(second, third generated token), the first one fixed by being part of the prompt."""
    first = next_probs(model, PROMPT, temperature)
    return {(a, b): float(first[a] * next_probs(model, [*PROMPT, a], temperature)[b]) for a in ANSWERS for b in ANSWERS}


@torch.no_grad()
@pytest.mark.parametrize("method", ["greedy", "probabilistic"])
def test_pairs_follow_the_ar_distribution(method: str, agreeable_checkpoint: Path, reference: ReferenceModel) -> None:
    """Chi-square over the pairs of the six likely tokens and one class for everything else, at temperature 0.5."""
    from vllm import SamplingParams

    options: dict[str, Any] = linear(4)
    options["speculative_config"] = {
        "method": "draft_model",
        "model": str(agreeable_checkpoint),
        "num_speculative_tokens": 3,
        "draft_sample_method": method,
    }
    params = SamplingParams(temperature=0.5, max_tokens=3, ignore_eos=True, detokenize=False, n=SAMPLES)
    with engine(agreeable_checkpoint, **options) as llm:
        outputs = llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)[0].outputs
        assert metric(llm, "spec_decode_num_accepted_tokens") > SAMPLES / 20, "drafts must be accepted now and then"
    probs = pair_probs(reference, 0.5)
    counts = dict.fromkeys(probs, 0)
    for output in outputs:
        pair = tuple(output.token_ids[:2])
        if pair in counts:
            counts[pair] += 1
    likely = [pair for pair in probs if probs[pair] * SAMPLES >= 5]
    observed = [counts[pair] for pair in likely]
    expected = [probs[pair] * SAMPLES for pair in likely]
    observed.append(SAMPLES - sum(observed))
    expected.append(SAMPLES - sum(expected))
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    freedom = len(expected) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.7 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson-Hilferty, p = 1e-4
    assert freedom >= 5 and statistic < bound, f"chi-square {statistic:.1f}, at most {bound:.1f}"


def test_a_threshold_with_sampled_drafts_is_refused(agreeable_checkpoint: Path) -> None:
    options = linear(4, draft_threshold=0.5)
    options["speculative_config"] = {
        "method": "draft_model",
        "model": str(agreeable_checkpoint),
        "num_speculative_tokens": 3,
        "draft_sample_method": "probabilistic",
    }
    with pytest.raises(ValueError, match="draft_threshold keeps the surer"), engine(agreeable_checkpoint, **options):
        pass
