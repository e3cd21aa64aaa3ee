"""What is drafted, not only what comes out: rounds and acceptance equal the reference's loop, prompt by prompt."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines import engine, greedy, random_prompts
from tests.scale import spread
from tests.spec_worker.acceptance import Acceptance, exact_steps
from tests.spec_worker.batches import BLOCK, watched
from tests.spec_worker.conftest import TOKENS, VOCAB, allow_async, linear, metric, token_ids
from tests.spec_worker.leaks import parts
from vllm_nld.model.draft_lora import DraftLora
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.reference.draft import commit
from vllm_nld.reference.model import KVCache
from vllm_nld.reference.sampling import softmax

PROMPTS = random_prompts(6, VOCAB, longest=150, seed=7)


SETTINGS: dict[str, dict[str, Any]] = {
    "adapter": {},
    "no adapter": {"draft_lora": "off"},
    "one a pass": {"draft_threshold": 1.0},
    "tree": {"tree_nodes": 20},
    "tree as large as the chain": {"tree_nodes": 7},
    "threshold": {"draft_threshold": 0.45},
}


@pytest.mark.parametrize("name", spread([*SETTINGS]))
def test_rounds_equal_the_reference(name: str, agreeable_checkpoint: Path) -> None:
    settings = SETTINGS[name]
    model = ReferenceModel.from_pretrained(agreeable_checkpoint, adapter=settings.get("draft_lora") != "off")
    with engine(agreeable_checkpoint, **linear(8, **settings)) as llm:
        for prompt in PROMPTS:
            before = Acceptance.of_metrics(llm.get_metrics())
            output = greedy(llm, [prompt], TOKENS)
            found = Acceptance.of_metrics(llm.get_metrics()) - before
            nodes = settings.get("tree_nodes", 0)
            how: dict[str, Any] = {"threshold": settings.get("draft_threshold", 0.0), "tree_nodes": nodes}
            common: dict[str, Any] = {"mode": "linear", "block_length": 8, "ignore_eos": True}
            exact = generate(model, prompt, max_new_tokens=TOKENS, **common, **how)
            assert token_ids(output) == [exact.tokens]
            assert found == Acceptance.of_steps(exact_steps(model, prompt, TOKENS, 8, **how), nodes + 1 if nodes else 8)
            assert found.drafts == len(exact.rounds)


@pytest.mark.parametrize(("groups", "adapter"), spread([*product((0, 1, 3), ("auto", "off"))]))
def test_quadratic_rounds_equal_the_reference(groups: int, adapter: str, agreeable_checkpoint: Path) -> None:
    """Tokens, rounds and forwards, of each prompt alone and of all of them together; 0 are all groups."""
    model = ReferenceModel.from_pretrained(agreeable_checkpoint, adapter=adapter == "auto")
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 1]  # the full form starts beside a prompt's last token
    common: dict[str, Any] = {"mode": "quadratic", "block_length": 8, "groups": groups, "ignore_eos": True}
    exact = [generate(model, prompt, max_new_tokens=TOKENS, **common) for prompt in prompts]
    assert sum(max(one.rounds) > 1 for one in exact) > 2, "drafts are accepted"
    settings: dict[str, Any] = {"mode": "quadratic", "draft_lora": adapter} | ({"groups": groups} if groups else {})
    options = linear(8, **settings) | {"per_request_spec_decode_metrics": "summary"}
    with engine(agreeable_checkpoint, **options) as llm:
        for prompt, one in zip(prompts, exact, strict=True):
            before = Acceptance.of_metrics(llm.get_metrics())
            (output,) = greedy(llm, [prompt], TOKENS)
            found = Acceptance.of_metrics(llm.get_metrics()) - before
            assert token_ids([output]) == [one.tokens]
            figures = output.spec_decode_metrics
            assert figures.forwards + 1 == one.nfe
            steps = exact_steps(model, prompt, TOKENS, **common)
            assert figures.histogram[:8] == [steps.count(length) for length in range(8)], "masks are no drafts"
            assert figures.num_draft_tokens == 7 * len(steps)
            assert (found.drafts, found.draft_tokens, found.accepted) == (len(steps), 7 * len(steps), sum(steps))
        outputs = greedy(llm, prompts, TOKENS)
        assert token_ids(outputs) == [one.tokens for one in exact]
        assert [output.spec_decode_metrics.forwards + 1 for output in outputs] == [one.nfe for one in exact]


def test_a_batch_drafts_as_each_of_its_requests_alone(
    agreeable_checkpoint: Path, prompts: list[list[int]], reference: ReferenceModel
) -> None:
    """Blocks of 16 requests in passes of 4: the token budget has no room for more."""
    with engine(agreeable_checkpoint, **linear(8), max_num_batched_tokens=32) as llm:
        outputs = greedy(llm, PROMPTS * 3, TOKENS)
        drafts = metric(llm, "spec_decode_num_drafts")
    exact = [
        generate(reference, prompt, mode="linear", block_length=8, max_new_tokens=TOKENS, ignore_eos=True)
        for prompt in PROMPTS
    ] * 3
    assert token_ids(outputs) == [generation.tokens for generation in exact]
    assert drafts >= sum(len(generation.rounds) for generation in exact)  # the budget cuts some blocks short


@pytest.mark.parametrize("schedule", ["sync", "async"])
def test_a_steps_tokens_do_not_wait_for_drafts(
    schedule: str, agreeable_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With synchronous scheduling the next step drafts, and not for requests that have ended.

    With asynchronous scheduling the tokens are copied before drafts are made, and who ends is not known in time.
    """
    if schedule == "async":
        allow_async(monkeypatch)
    with engine(agreeable_checkpoint, **linear(8)) as llm:
        plain = greedy(llm, PROMPTS[:1], TOKENS, extra_args={"nld_mode": "ar"})[0].token_ids
        end = plain.index(plain[4])  # the first time that this token appears
        with watched(llm) as steps:
            stopped = greedy(llm, PROMPTS[:1], TOKENS, stop_token_ids=[plain[4]])[0].token_ids
    assert stopped == plain[: end + 1]
    assert bool(steps[0].passes) == (schedule == "async")
    drafted = [bool(step.passes) for step in steps]
    assert drafted[1:] == [True] * (len(steps) - 1), "the last step verifies, and drafts nothing for later"


def test_ar_requests_pay_for_no_drafting(agreeable_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their steps leave the speculator out, and no forward but a draft pass has the adapter in it."""
    with engine(agreeable_checkpoint, **linear(8)) as llm:
        runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        speculator, asked = runner.speculator, []
        propose = speculator.propose
        monkeypatch.setattr(speculator, "propose", lambda *args, **more: asked.append(1) or propose(*args, **more))
        plain = greedy(llm, PROMPTS, TOKENS, extra_args={"nld_mode": "ar"})
        assert not asked and runner.speculator is speculator
        drafted = greedy(llm, PROMPTS, TOKENS)
        assert asked and token_ids(drafted) == token_ids(plain)
        assert not [module for module in runner.model.modules() if isinstance(module, DraftLora)]
        assert [module for module in runner.model.pathway.modules() if isinstance(module, DraftLora)]


@pytest.mark.parametrize("threshold", [0.0, 0.3], ids=["one pass", "threshold"])
@torch.no_grad()
def test_adaptive_verification_gets_the_probability_of_each_draft(
    threshold: float, agreeable_checkpoint: Path, reference: ReferenceModel
) -> None:
    """vLLM's own part of it needs a GPU. Its input is the probability with which a draft was committed."""
    prompt, seen = PROMPTS[3], []
    with engine(agreeable_checkpoint, **linear(BLOCK, draft_threshold=threshold)) as llm:
        speculator = parts(llm)[2].speculator
        assert not speculator.use_acceptance_estimator
        speculator.filler = replace(speculator.filler, reports=True)
        speculator.enable_adaptive_verification = True
        draft = speculator.draft

        def watched(step: Any) -> None:
            draft(step)
            seen.append((speculator.draft_tokens[0].tolist(), speculator.draft_token_confidence_probs[0].double()))

        speculator.draft = watched
        first = greedy(llm, [prompt], 2)[0].token_ids[0]
    drafts, probabilities = seen[0]
    cache = KVCache(reference.config.num_hidden_layers)
    reference(torch.tensor([prompt]), cache)
    ids, mask = torch.tensor([first] + [reference.config.mask_token_id] * (BLOCK - 1)), reference.config.mask_token_id
    expected = torch.zeros(BLOCK)
    while (masked := ids == mask).any():
        shares = softmax(reference.logits(reference(ids[None], cache, causal=False, lora=True)[0]), 1.0)
        cache.truncate(len(prompt))
        best = shares.index_fill(1, torch.tensor([mask]), -1).max(dim=1)
        decided = commit(best.values, masked, threshold)
        ids, expected = torch.where(decided, best.indices, ids), torch.where(decided, best.values, expected)
    assert drafts == ids[1:].tolist()
    torch.testing.assert_close(probabilities, expected[1:].double(), rtol=1e-4, atol=1e-5)
    assert probabilities.min() > 0 and probabilities.max() < 1
