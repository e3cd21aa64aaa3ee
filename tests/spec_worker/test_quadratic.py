"""Quadratic self-speculation in the engine: what a round costs, what happens if no group fits, what graphs contain."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.v1.worker.gpu.cudagraph_utils import prepare_inputs_to_capture

from attention_backend.rows import attached, unpack
from tests.engines import engine, random_prompts
from tests.spec_worker.batches import Ask, together, tokens, watched
from tests.spec_worker.conftest import VOCAB, ar_tokens, linear
from tests.spec_worker.leaks import parts
from vllm_nld.reference import ReferenceModel, generate

BLOCK = 4
PROMPTS = random_prompts(8, VOCAB, longest=80, seed=71)
FULL, SPARSE = {"nld_mode": "quadratic"}, {"nld_mode": "quadratic", "nld_groups": 1}


@pytest.fixture(scope="module")
def llm(agreeable_checkpoint: Path) -> Iterator[Any]:
    """Requests are linear, if they don't ask for something else."""
    with engine(agreeable_checkpoint, **linear(BLOCK, groups=BLOCK), enable_prefix_caching=False) as llm:
        yield llm


def passes(reference: ReferenceModel, prompt: list[int], groups: int) -> int:
    """Draft passes that the reference takes."""
    common: dict[str, Any] = {"mode": "quadratic", "block_length": BLOCK, "max_new_tokens": 20, "ignore_eos": True}
    found = generate(reference, prompt, groups=groups, **common)
    return found.nfe - 1 - len(found.rounds)


@pytest.mark.parametrize("extra", [FULL, {"nld_mode": "quadratic", "nld_groups": 3}], ids=["full", "sparse"])
def test_the_first_block_takes_no_pass(extra: dict[str, Any], llm: Any) -> None:
    """The prompt's last token is computed beside its masks."""
    with watched(llm) as steps:
        together(llm, [Ask(PROMPTS[3], extra)])
    groups = extra.get("nld_groups", BLOCK)
    assert [step.scheduled for step in steps[:3]] == [[len(PROMPTS[3]) - 1], [1 + BLOCK], [BLOCK * (1 + groups)]]
    assert not any(step.passes for step in steps[:3])


def test_the_full_form_takes_one_forward_per_round(llm: Any) -> None:
    """No draft pass runs."""
    with watched(llm) as steps:
        together(llm, [Ask(PROMPTS[3], FULL)])
    assert all(step.scheduled == [BLOCK * (BLOCK + 1)] for step in steps[2:-1])
    assert not any(step.passes for step in steps)


def test_a_request_without_a_group_takes_a_draft_pass(llm: Any, reference: ReferenceModel) -> None:
    prompts = PROMPTS[1:]  # the first one has no token before its last, beside which masks draft the first block
    expected = [passes(reference, prompt, 1) for prompt in prompts]
    assert sum(count > 0 for count in expected) > 3
    for prompt, count in zip(prompts, expected, strict=True):
        with watched(llm) as steps:
            together(llm, [Ask(prompt, SPARSE)])
        assert [step.passes for step in steps if step.passes] == [[BLOCK]] * count


def test_misses_share_a_pass_with_linear_requests(llm: Any, reference: ReferenceModel) -> None:
    asks = [Ask(prompt, extra) for prompt in PROMPTS for extra in (SPARSE, {}, FULL)]
    with watched(llm) as steps:
        found = tokens(together(llm, asks))
    exact = ar_tokens(reference, PROMPTS, 20)
    assert found == [answer for answer in exact for _ in range(3)]
    assert all(len(step.passes) <= 1 for step in steps)
    assert any(step.passes and step.passes[0] > BLOCK for step in steps)


def test_only_the_chosen_group_gets_vocabulary_logits(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = parts(llm)[2].model, []
    compute = model.compute_logits
    monkeypatch.setattr(model, "compute_logits", lambda hidden: rows.append(len(hidden)) or compute(hidden))
    together(llm, [Ask(PROMPTS[4], FULL)])
    assert rows[:4] == [1, 1, BLOCK - 1, BLOCK], "prefill, its last token, the first drafts, the first round"
    assert set(rows[3::2]) == {BLOCK} and set(rows[4::2]) == {BLOCK - 1}


def test_the_adapter_is_in_forwards_with_masks_only(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, on = parts(llm)[2].model, []
    pathway = model.pathway
    switch = model.draft_adapter.switch

    def run(ids: torch.Tensor, positions: torch.Tensor, embeddings: torch.Tensor | None) -> torch.Tensor:
        on.append((switch[: len(ids), 0] != 0).tolist())
        return pathway(ids, positions, embeddings)

    monkeypatch.setitem(model.__dict__, "pathway", run)
    together(llm, [Ask(PROMPTS[2], {"nld_mode": "ar"})])
    assert not on and not model.draft_adapter.in_rows
    together(llm, [Ask(PROMPTS[2], FULL)])
    assert on[0] == [False] + [True] * BLOCK
    assert on[1] == [False] * BLOCK + [True] * BLOCK**2 == on[-1]
    on.clear()
    together(llm, [Ask(PROMPTS[2], FULL), Ask(PROMPTS[5], {"nld_mode": "ar"}), Ask(PROMPTS[6])])
    assert any(len(one) == 1 + BLOCK + BLOCK * (BLOCK + 1) and sum(one) == BLOCK**2 for one in on), "beside two others"
    assert [True] * BLOCK in on, "and in the linear request's draft passes"
    together(llm, [Ask(PROMPTS[2], {"nld_mode": "ar"})])
    assert not model.draft_adapter.in_rows


def test_piecewise_graphs_are_the_targets_own(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward with masks runs compiled code that has no piecewise CUDA graphs."""
    runner, seen = parts(llm)[2], []
    model, config = runner.model, runner.vllm_config
    monkeypatch.setitem(model.__dict__, "pathway", lambda *_: seen.append(get_forward_context().cudagraph_runtime_mode))
    monkeypatch.setattr(model.draft_adapter, "in_rows", True)
    with set_forward_context(None, config, num_tokens=1, cudagraph_runtime_mode=CUDAGraphMode.PIECEWISE):
        model(torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64))
        assert get_forward_context().cudagraph_runtime_mode == CUDAGraphMode.PIECEWISE
    assert seen == [CUDAGraphMode.NONE]


def test_full_graphs_contain_masks_and_the_adapter(llm: Any) -> None:
    """Through vLLM's own preparation of a capture: causal masks, and an adapter that is off, until a replay."""
    runner = parts(llm)[2]
    rows, adapter = runner.decode_query_len, runner.model.draft_adapter
    assert rows == BLOCK * (BLOCK + 1)
    for full in (True, False):
        state = prepare_inputs_to_capture(
            2,
            2 * rows,
            runner.model_state,
            runner.input_buffers,
            runner.block_tables,
            runner.attn_groups,
            runner.kv_cache_config,
            full_cudagraph=full,
            max_query_len=rows,
        )
        assert adapter.in_rows == full and not adapter.switch.any()
        for metadata in state.attn_metadata.values():
            mask = attached(metadata)
            assert (mask is not None) == full
            if mask is not None:
                causal = torch.ones(rows, rows, dtype=torch.bool).tril()
                assert unpack(mask.bits[: 2 * rows], rows).unflatten(0, (2, rows)).equal(causal.expand(2, -1, -1))
    adapter.not_by_row()


def test_grammars_take_draft_passes(llm: Any) -> None:
    """A scheduler that showed masks to a grammar would have it refuse them."""
    from vllm.sampling_params import StructuredOutputsParams

    from vllm_nld.serving.decoding import Decoding

    params = Ask(PROMPTS[0], FULL, sampling={"structured_outputs": StructuredOutputsParams(choice=["a"])}).params
    params.extra_args = llm.llm_engine.input_processor.nld_modes.canonical(params.extra_args)
    assert Decoding.of(params) == Decoding("quadratic", BLOCK)


@pytest.mark.parametrize("extra", [FULL, {"nld_mode": "quadratic", "nld_groups": 2}], ids=["full", "sparse"])
def test_groups_without_room_are_left_out(
    extra: dict[str, Any], agreeable_checkpoint: Path, reference: ReferenceModel
) -> None:
    """In the step's budget, and before the context's end."""
    longest = random_prompts(2, VOCAB, longest=236, seed=5)[1]
    options = linear(BLOCK, groups=BLOCK) | {"max_num_batched_tokens": 23}
    with engine(agreeable_checkpoint, **options) as llm, watched(llm) as steps:
        found = tokens(together(llm, [Ask(prompt, extra) for prompt in (*PROMPTS[:3], longest)]))
        found += tokens(together(llm, [Ask(longest, extra)]))
    exact = ar_tokens(reference, [*PROMPTS[:3], longest], 20)
    assert found == [*exact, exact[3]]
    assert all(sum(step.scheduled) <= 23 for step in steps)
    assert any(step.passes for step in steps)
