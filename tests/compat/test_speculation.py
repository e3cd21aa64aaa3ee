"""Our speculator is built, gets its KV slots, and neither it nor its drafts are asked for in vain."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.compat.conftest import BLOCK, KV_BLOCK, options, runner, without
from tests.engines import engine, greedy, random_prompts
from tests.metrics.conftest import Counted
from tests.serving.test_startup import start
from tests.spec_worker.conftest import TOKENS, VOCAB
from vllm_nld.compat import speculation
from vllm_nld.compat.versions import vllm_version
from vllm_nld.reference import ReferenceModel
from vllm_nld.reference.draft import fill
from vllm_nld.reference.model import KVCache

PROMPTS = random_prompts(6, VOCAB, longest=60)
AR = {"nld_mode": "ar"}


def test_without_skip_draft_round_trip_each_step_asks_the_worker(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = counted.llm.llm_engine.engine_core.engine_core.model_executor
    asked, inherited = [], executor.take_draft_token_ids
    monkeypatch.setattr(executor, "take_draft_token_ids", lambda: asked.append(1) or inherited())
    with without(speculation.skip_draft_round_trip):
        greedy(counted.llm, PROMPTS, TOKENS, extra_args=AR)
        assert len(asked) >= TOKENS
    asked.clear()
    greedy(counted.llm, PROMPTS, TOKENS, extra_args=AR)
    greedy(counted.llm, PROMPTS, TOKENS)
    assert not asked


def test_without_skip_idle_drafter_ar_steps_run_the_speculator(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    speculator = runner(counted.llm).speculator
    proposed, inherited = [], speculator.propose
    monkeypatch.setattr(speculator, "propose", lambda *args, **more: proposed.append(1) or inherited(*args, **more))
    with without(speculation.skip_idle_drafter):
        greedy(counted.llm, PROMPTS, TOKENS, extra_args=AR)
        assert len(proposed) >= TOKENS
    proposed.clear()
    greedy(counted.llm, PROMPTS, TOKENS, extra_args=AR)
    assert not proposed
    greedy(counted.llm, PROMPTS, TOKENS)
    assert proposed


def test_without_hand_over_draft_plan_drafts_are_made_that_nobody_wants(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler plans no drafts for a request whose next token is its last."""
    model, passes = runner(counted.llm).model, []
    inherited = model.draft
    monkeypatch.setattr(model, "draft", lambda *args: passes.append(1) or inherited(*args))
    with without(speculation.hand_over_draft_plan):
        runner(counted.llm).speculator.obey(None)  # as in an engine that has never been handed a plan
        greedy(counted.llm, PROMPTS, 1)
        assert passes
    passes.clear()
    greedy(counted.llm, PROMPTS, 1)
    assert not passes


def test_without_build_self_speculator_vllm_loads_the_weights_twice(checkpoint: Path, counted: Counted) -> None:
    assert type(runner(counted.llm).speculator).__module__ == speculation.SPECULATOR_MODULE
    assert one_model(runner(counted.llm))
    with without(speculation.build_self_speculator), engine(checkpoint, **options()) as llm:
        speculator = runner(llm).speculator
        assert type(speculator).__module__.startswith("vllm.v1.worker.gpu.spec_decode.")
        assert not one_model(runner(llm)), "a second copy of the served model"


def one_model(model_runner: Any) -> bool:
    return model_runner.speculator.model is model_runner.model


def test_without_admit_one_block_budget_vllm_wants_a_larger_one(checkpoint: Path) -> None:
    one_block = {
        "additional_config": {"nld": {"block_length": BLOCK}},
        "max_num_batched_tokens": BLOCK,
        "max_num_seqs": 1,
    }
    refused = pytest.raises(ValueError, match="does not have enough slots")
    outcome = contextlib.nullcontext() if vllm_version() == "0.32.0" else refused
    with without(speculation.admit_one_block_budget), outcome:
        start(checkpoint, **one_block)
    assert start(checkpoint, **one_block).scheduler_config.max_num_scheduled_tokens == BLOCK


def test_without_charge_only_scheduled_tokens_a_block_never_fits(checkpoint: Path) -> None:
    """Diffusion requests at a budget of exactly one block."""
    tight = options() | {"max_num_batched_tokens": BLOCK, "max_num_seqs": 2}
    with without(speculation.charge_only_scheduled_tokens), engine(checkpoint, **tight) as llm:
        assert max(tokens_after(llm, steps=40)) == 1, "the prefill's token, and no block after it"
    with engine(checkpoint, **tight) as llm:
        assert min(tokens_after(llm, steps=40)) > BLOCK


def tokens_after(llm: Any, steps: int) -> list[int]:
    """How many tokens each of two diffusion requests has been given after so many steps; then they are aborted."""
    from vllm import SamplingParams

    front, given = llm.llm_engine, {"0": 0, "1": 0}
    params = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True, extra_args={"nld_mode": "diffusion"})
    for name in given:
        front.add_request(name, {"prompt_token_ids": PROMPTS[int(name)][:4]}, params)
    for _ in range(steps):
        for output in front.step():
            given[output.request_id] = len(output.outputs[0].token_ids)
    front.abort_request(list(given))
    return list(given.values())


@torch.no_grad()
def test_without_reserve_block_slots_drafts_are_wrong(tiny_checkpoint: Path) -> None:
    """After each of these prompts, the last row of the first draft block is the first of another KV block."""
    model = ReferenceModel.from_pretrained(tiny_checkpoint)
    lengths = [KV_BLOCK * number - (BLOCK - 1) for number in (1, 2, 3)] * 4
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    with without(speculation.reserve_block_slots):
        slots, drafts, expected = first_drafts(tiny_checkpoint, model, prompts)
        assert slots == BLOCK - 1
        assert drafts != expected
    slots, drafts, expected = first_drafts(tiny_checkpoint, model, prompts)
    assert slots == BLOCK
    assert drafts == expected


def first_drafts(
    checkpoint: Path, model: ReferenceModel, prompts: list[list[int]]
) -> tuple[int, list[list[int]], list[list[int]]]:
    """The slots that are reserved for drafts, each prompt's first drafts, and the reference's."""
    drafts: list[list[list[int]]] = []
    expected = []
    with engine(checkpoint, **options()) as llm:
        speculator = runner(llm).speculator
        inherited = speculator.draft

        def draft(step: Any) -> None:
            inherited(step)
            names = step.input_batch.req_ids
            numbers = [int(name.partition("-")[0]) for name in names]  # the batch is not in their order
            rows = speculator.draft_tokens[: len(names)].tolist()
            drafts.append([row for _, row in sorted(zip(numbers, rows, strict=True))])

        speculator.draft = draft
        answers = greedy(llm, prompts, 2)
        slots = llm.llm_engine.vllm_config.num_lookahead_tokens
    for prompt, answer in zip(prompts, answers, strict=True):
        cache = KVCache(model.config.num_hidden_layers)
        model(torch.tensor([prompt]), cache)
        expected.append(fill(model, cache, answer.token_ids[0], block_length=BLOCK, threshold=0.0, lora=True)[0])
    return slots, drafts[0], expected


def test_without_calibrate_at_start_auto_guesses_what_lengths_cost(checkpoint: Path) -> None:
    def measured(llm: Any) -> int:
        return sum(map(len, llm.llm_engine.engine_core.engine_core.scheduler.auto.controller.costs._measured))

    with without(speculation.calibrate_at_start), engine(checkpoint, **options(mode="auto")) as llm:
        assert not measured(llm)
    with engine(checkpoint, **options(mode="auto")) as llm:
        assert measured(llm)


@pytest.mark.parametrize(
    ("nodes", "target", "draft"), [(0, {1, 4, BLOCK}, {4, BLOCK}), (20, {1, 4, 8, 16, 21}, {4, BLOCK})]
)
def test_without_capture_chosen_lengths_short_blocks_have_no_graphs(
    nodes: int, target: set[int], draft: set[int], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes that would be captured, of target forwards and of draft passes. Capturing itself needs a GPU."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    from spec_worker.graphs import DraftGraphs

    monkeypatch.setattr(type(current_platform), "_global_graph_pool", (0, 0))

    def lengths(kind: Any, config: Any) -> set[int]:
        sizes = [1, 2, 4, 8, 16, 24]
        config.compilation_config.cudagraph_capture_sizes = sizes
        config.compilation_config.max_cudagraph_capture_size = max(sizes)
        graphs = kind(config, torch.device("cpu"), CUDAGraphMode.FULL_DECODE_ONLY, decode_query_len=longest[kind])
        assert not config.speculative_config.num_speculative_tokens_per_batch_size, "as it was"
        return {desc.uniform_token_count for descs in graphs._candidates.values() for desc in descs}

    with engine(checkpoint, **options(mode="auto", tree_nodes=nodes)) as llm:
        config = llm.llm_engine.vllm_config
        longest = {CudaGraphManager: config.num_speculative_tokens + 1, DraftGraphs: BLOCK}
        assert lengths(CudaGraphManager, config) == target
        assert lengths(DraftGraphs, config) == draft
        with without(speculation.capture_chosen_lengths):
            assert all(lengths(kind, config) == {length} for kind, length in longest.items())
