"""Features where they multiply: every pair of modes in one batch, under every feature, answers as each request alone.

One engine a feature serves all pairs. Greedy, in fp32; what the feature does is asserted too, so that none is missed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.sampling_params import StructuredOutputsParams

from tests.engines import engine, random_prompts
from tests.spec_worker import features, loras
from tests.spec_worker.batches import BLOCK, Ask, Step, alone, together, tokens, watched
from tests.spec_worker.conftest import VOCAB, allow_async, linear, metric
from vllm_nld.nano import checkpoint_path
from vllm_nld.reference import ReferenceModel
from vllm_nld.serving.decoding import grouped_tokens
from vllm_nld.serving.modes import MODES

PAIRS = list(combinations_with_replacement(MODES, 2))
TAKEN = {name for name, mode in MODES.items() if mode.takes_blocks}  # answers of their own; all others answer as AR
THRESHOLD = 0.5  # of diffusion
PROMPTS = random_prompts(12, VOCAB, longest=60, seed=51)[6:]  # 30 tokens and more


@dataclass(frozen=True, slots=True)
class Feature:
    """An engine of the matrix and what its requests ask for."""

    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    asynchronous: bool = False


GROUPS = 2
ROWS = grouped_tokens(BLOCK, GROUPS)
SCHEDULE = {"num_speculative_tokens": ROWS, "num_speculative_tokens_per_batch_size": [[1, 1, ROWS], [2, 16, 2]]}
FEATURES = {
    "user LoRA": Feature(options=loras.OPTIONS),
    "schedule": Feature(options={"speculative_config": SCHEDULE}),
    "async": Feature(asynchronous=True),
    # Three requests of a mode begin together, and six KV blocks have no room for two of four each.
    "preemption": Feature(options={"num_gpu_blocks_override": 7, "max_model_len": 128}, sampling={"max_tokens": 66}),
    "draft threshold": Feature(settings={"draft_threshold": 0.45}),
    "draft tree": Feature(settings={"tree_nodes": 3 * BLOCK}),
    "tight budget": Feature(settings={"groups": 1}, options={"max_num_batched_tokens": 2 * BLOCK + 1}),
    "logprobs": Feature(sampling={"logprobs": 3}),
}


@dataclass(slots=True)
class Served:
    """An engine and what each of its requests must answer."""

    llm: Any
    feature: str
    plain: ReferenceModel
    models: list[tuple[Any, ReferenceModel]]  # user adapters and what they make of the model
    _known: dict[tuple[str, int, bool], list[int]] = field(default_factory=dict)
    _alone: dict[tuple[str, int], Any] = field(default_factory=dict)

    def ask(self, mode: str, index: int) -> Ask:
        adapter, _ = self.models[index % len(self.models)]
        return Ask(PROMPTS[index], {"nld_mode": mode}, adapter, FEATURES[self.feature].sampling)

    def answer(self, mode: str, index: int, adapted: bool = True) -> list[int]:
        """By the reference, with the request's user adapter or without."""
        key = mode if mode in TAKEN else "ar", index, adapted
        if key not in self._known:
            model = self.models[index % len(self.models)][1] if adapted else self.plain
            self._known[key] = self.ask(key[0], index).rounds(model, THRESHOLD).tokens
        return self._known[key]

    def alone(self, mode: str, index: int) -> Any:
        """By the engine."""
        if (mode, index) not in self._alone:
            [self._alone[mode, index]] = together(self.llm, [self.ask(mode, index)])
        return self._alone[mode, index]


@pytest.fixture(scope="module", params=FEATURES)
def served(
    request: pytest.FixtureRequest,
    agreeable_checkpoint: Path,
    reference: ReferenceModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    name, feature = request.param, FEATURES[request.param]
    models: list[tuple[Any, ReferenceModel]] = [(None, reference)]
    if name == "user LoRA":
        models = [tuple(one) for one in loras.two_loras(agreeable_checkpoint, tmp_path_factory.mktemp("loras"))]
    options = linear(BLOCK, threshold=THRESHOLD, **({"groups": GROUPS} | feature.settings)) | feature.options
    if speculative := options.get("speculative_config"):
        options["speculative_config"] = speculative | {"method": "draft_model", "model": str(agreeable_checkpoint)}
    with pytest.MonkeyPatch.context() as patch:
        if feature.asynchronous:
            allow_async(patch)
        with engine(agreeable_checkpoint, **options) as llm:
            yield Served(llm, name, reference, models)


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_a_pair_of_modes_answers_as_each_alone(pair: tuple[str, str], served: Served) -> None:
    """Three requests of each, in turn."""
    modes = pair * (len(PROMPTS) // 2)
    asks = [served.ask(mode, index) for index, mode in enumerate(modes)]
    preempted = metric(served.llm, "num_preemptions")
    with watched(served.llm) as steps:
        completions = together(served.llm, asks)
    for index, (mode, found) in enumerate(zip(modes, tokens(completions), strict=True)):
        assert found == served.answer(mode, index), (mode, index)
    assert len({tuple(found) for found in tokens(completions)}) > 3, "answers differ, or nothing can be mixed up"
    happened(served, pair, steps, metric(served.llm, "num_preemptions") - preempted)
    if served.feature == "user LoRA":
        plain = [served.answer(mode, index, adapted=False) for index, mode in enumerate(modes)]
        assert sum(one != other for one, other in zip(plain, tokens(completions), strict=True)) > len(asks) / 2
    if served.feature == "logprobs":
        for index, (mode, completion) in enumerate(zip(modes, completions, strict=True)):
            exact = logprobs(served.alone(mode, index))
            torch.testing.assert_close(logprobs(completion), exact, atol=1e-3, rtol=1e-3)


def happened(served: Served, pair: tuple[str, str], steps: list[Step], preempted: int) -> None:
    """What the feature is for did happen."""
    config = served.llm.llm_engine.vllm_config
    assert config.scheduler_config.async_scheduling == FEATURES[served.feature].asynchronous
    assert (preempted > 0) == (served.feature == "preemption")
    if served.feature == "tight budget":
        assert min(len(prompt) for prompt in PROMPTS) > config.scheduler_config.max_num_batched_tokens, (
            "prompts are cut"
        )
    if served.feature == "schedule" and "linear" in pair:  # auto may choose fewer drafts than the schedule allows
        assert any(count == 3 for step in steps if step.size > 1 for count in step.scheduled), "two drafts, verified"
    if served.feature == "draft tree" and "linear" in pair:  # auto chooses the size of its trees
        assert any(count == 3 * BLOCK + 1 for step in steps for count in step.scheduled), "nodes, verified"
    if served.feature in ("async", "logprobs") and "quadratic" in pair:
        assert any(count == ROWS + 1 for step in steps for count in step.scheduled), "masks, beside verified rows"
    if served.feature == "draft threshold" and "linear" in pair and not set(pair) & TAKEN:
        assert any(len(step.passes) > 1 for step in steps), "drafts that were not sure were redone"


def logprobs(completion: Any) -> torch.Tensor:  # [tokens, 4]
    """Of each token and of the three likeliest."""
    rows = []
    for token, step in zip(completion.token_ids, completion.logprobs, strict=True):
        best = sorted((entry.logprob for entry in step.values()), reverse=True)[:3]
        rows.append([step[token].logprob, *best])
    return torch.tensor(rows)


GRAMMARS = {"regex": features.PHONE, "choice": "|".join(features.CHOICE)}


@pytest.fixture(scope="module")
def nano() -> Iterator[Any]:
    options = linear(BLOCK, threshold=THRESHOLD, groups=GROUPS) | features.OPTIONS
    with engine(checkpoint_path(), **options, max_model_len=512) as llm:
        yield llm


def constrained(mode: str, index: int, free: bool = False) -> Ask:
    """A request under a grammar, or the same one without."""
    grammar = list(GRAMMARS)[index // 2 % 2]
    sampling = {"detokenize": True, "ignore_eos": False, "max_tokens": features.TOKENS}
    if not free:
        wanted = features.CHANGING[grammar]["structured_outputs"]
        sampling |= {"structured_outputs": StructuredOutputsParams(**wanted)}
    prompts = features.prompts()
    return Ask(prompts[index % len(prompts)]["prompt_token_ids"], {"nld_mode": mode}, sampling=sampling)


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, int], tuple[Any, Any]]:
    """What requests answered alone: under their grammar, and without."""
    return {}


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_a_pair_of_modes_keeps_to_its_grammars(
    pair: tuple[str, str], nano: Any, known: dict[tuple[str, int], tuple[Any, Any]]
) -> None:
    """Six requests under two grammars, which none of them would keep to by itself."""
    cases = list(enumerate(pair * 3))
    found = together(nano, [constrained(mode, index) for index, mode in cases])
    for (index, mode), kept in zip(cases, found, strict=True):
        if (mode, index) not in known:
            exact, left = alone(nano, [constrained(mode, index), constrained(mode, index, free=True)])
            known[mode, index] = exact, left
        exact, left = known[mode, index]
        assert kept.token_ids == exact.token_ids, (mode, index)
        grammar = GRAMMARS[list(GRAMMARS)[index // 2 % 2]]
        assert re.fullmatch(grammar, kept.text) and not re.fullmatch(grammar, left.text), (kept.text, left.text)
