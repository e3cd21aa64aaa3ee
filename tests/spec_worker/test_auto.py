"""Mode `auto` in the engine: the text is AR's, whatever lengths are chosen, and what it reports is what it did."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine
from tests.scale import spread
from tests.spec_worker.batches import BLOCK, Ask, together, tokens, watched
from tests.spec_worker.conftest import TOKENS, allow_async, linear, metric
from tests.spec_worker.leaks import assert_nothing_left
from vllm_nld.serving.modes import MODES

NODES = 20  # of the trees, where the server has trees
TIGHT = {"max_num_batched_tokens": 48, "num_gpu_blocks_override": 12, "max_num_seqs": 6}


@pytest.fixture(scope="module", params=spread(["async, trees", "async", "sync, trees", "sync"]))
def llm(request: pytest.FixtureRequest, agreeable_checkpoint: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if "async" in request.param:
            allow_async(patch)
        nodes = NODES if "trees" in request.param else 0
        with engine(agreeable_checkpoint, **linear(BLOCK, mode="auto", tree_nodes=nodes), **TIGHT) as llm:
            yield llm


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


@pytest.fixture
def cycling(llm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The engine, with another length in every step."""
    most = scheduler(llm).auto.controller.lengths[-1]
    lengths = itertools.cycle([8, 1, 4, most, 4, 1, 1, most, 8])
    monkeypatch.setattr(scheduler(llm).auto.controller, "keep", lambda requests, room: next(lengths))
    yield llm


def test_the_text_is_that_of_ar_while_the_length_changes(
    cycling: Any, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    preempted, accepted = metric(cycling, "num_preemptions"), metric(cycling, "spec_decode_num_accepted_tokens")
    with watched(cycling) as steps:
        found = tokens(together(cycling, [Ask(prompt, {}, sampling={"max_tokens": TOKENS}) for prompt in prompts]))
    assert found == expected
    assert {rows for step in steps for rows in step.passes} >= {4, 8}, "blocks of several lengths were drafted"
    assert metric(cycling, "num_preemptions") > preempted
    assert metric(cycling, "spec_decode_num_accepted_tokens") > accepted
    assert_nothing_left(cycling)


@pytest.mark.parametrize(
    "others", [{}, {"top_k": 3}, {"min_p": 0.6, "logprobs": 2}, {"repetition_penalty": 1.3}], ids=str
)
def test_a_seed_gives_the_text_of_ar(cycling: Any, prompts: list[list[int]], others: dict[str, Any]) -> None:
    """Sampled requests too, whatever the lengths: noise belongs to a position.

    All but six tokens of this model are equally probable, so rounding would decide which of them top-p keeps.
    """
    kept, prompts = metric(cycling, "spec_decode_num_accepted_tokens"), spread(prompts)

    def sampled(mode: str) -> list[list[int]]:
        sampling = [{"temperature": 0.9, "seed": seed} | others for seed in range(len(prompts))]
        asks = [Ask(prompt, {"nld_mode": mode}, sampling=own) for prompt, own in zip(prompts, sampling, strict=True)]
        return tokens(together(cycling, asks))

    exact = sampled("ar")
    assert sampled("auto") == exact
    assert metric(cycling, "spec_decode_num_accepted_tokens") > kept, "drafts were accepted"
    assert sampled("auto") == exact


def test_every_mode_beside_it(cycling: Any, prompts: list[list[int]], reference: Any) -> None:
    modes = [name for name, mode in MODES.items() if not mode.grouped for _ in range(3)]  # pairs have the others
    asks = [Ask(prompt, {"nld_mode": mode}) for prompt, mode in zip(prompts, modes, strict=False)]
    assert tokens(together(cycling, asks)) == [list(ask.rounds(reference).tokens) for ask in asks]


def test_trees_of_the_chosen_size_grow_from_blocks_of_the_chosen_length(cycling: Any, prompts: list[list[int]]) -> None:
    lengths = scheduler(cycling).auto.controller.lengths
    trees = lengths[-1] == 1 + NODES
    assert lengths == ((1, 4, 8, 16, 1 + NODES) if trees else (1, 4, BLOCK))
    with watched(cycling) as steps:
        together(cycling, [Ask(prompts[3], {})])
        if trees:
            together(cycling, [Ask(prompts[3], {"nld_tree_nodes": 9})])
            together(cycling, [Ask(prompts[3], {}, sampling={"repetition_penalty": 1.2})])
    assert {rows for step in steps for rows in step.passes} == {4, BLOCK}
    scheduled = {count for step in steps for count in step.scheduled}
    assert scheduled >= ({1, 4, 8, 10, 1 + NODES} if trees else {1, 4, 8})


def test_a_request_limits_its_blocks(cycling: Any, prompts: list[list[int]]) -> None:
    with watched(cycling) as steps:
        together(cycling, [Ask(prompts[3], {"nld_block_length": 3})])
    assert {rows for step in steps for rows in step.passes} == {3}


def test_it_chooses_by_itself(llm: Any, prompts: list[list[int]], expected: list[list[int]]) -> None:
    asks = [Ask(prompt, {}, sampling={"max_tokens": TOKENS}) for prompt in prompts]
    for _ in range(3):
        assert tokens(together(llm, asks)) == expected
    auto = scheduler(llm).auto
    assert auto.length in auto.controller.lengths and auto.controller.predicted > 0


def test_costs_were_measured_at_start_up(llm: Any) -> None:
    measured = scheduler(llm).auto.controller.costs._measured
    assert all(1 in sizes for sizes in measured), "each length, for one request"
    assert_nothing_left(llm)


def test_tokens_after_a_stop_do_not_count(llm: Any, prompts: list[list[int]], expected: list[list[int]]) -> None:
    """A round yields what its request gets, however many drafts after the stop were right."""
    auto, accepted = scheduler(llm).auto, []
    prompt, text = next((p, e) for p, e in zip(prompts, expected, strict=True) if e.index(e[5]) == 5)
    take, auto.forced = auto._take_blocks, BLOCK

    def take_blocks(outputs: Any) -> tuple[list[int], list[int]]:
        drafted, counts = take(outputs)
        accepted.extend(counts)
        return drafted, counts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "_take_blocks", take_blocks)
        try:
            (answer,) = tokens(together(llm, [Ask(prompt, {}, sampling={"stop_token_ids": [text[5]]})]))
        finally:
            auto.forced = None
    assert answer == text[:6]
    assert accepted and 1 + sum(1 + count for count in accepted) == len(answer)


def test_it_reports_its_choices(llm: Any, prompts: list[list[int]]) -> None:
    auto = scheduler(llm).auto
    auto.take()
    front = llm.llm_engine
    front.add_request("one", {"prompt_token_ids": prompts[3]}, Ask(prompts[3], {}).params)
    reports = []
    while front.has_unfinished_requests():
        front.step()
        reports.append(auto.take())
    found = [report for report in reports if report]
    assert found
    assert {length for report in found for length in report["lengths"]} <= set(auto.controller.lengths)
    assert all(report["predicted"] > 0 and report["measured"] >= 0 and report["fallback"] >= 0 for report in found)
    assert auto.take() is None, "nothing since"


def test_ar_is_measured_in_one_step_of_four_and_decided_on_in_one_of_sixteen(
    llm: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But every step is counted."""
    auto, taken = scheduler(llm).auto, []
    controller, calls = auto.controller, {"decide": 0, "took": 0}
    monkeypatch.setattr(controller, "_least_yield", 1e9)  # no block yields that much
    take = auto.take
    monkeypatch.setattr(auto, "take", lambda: taken.append(take()) or taken[-1])

    def count(name: str) -> None:
        inherited = getattr(controller, name)

        def counted(*given: Any) -> Any:
            calls[name] += 1
            return inherited(*given)

        monkeypatch.setattr(controller, name, counted)

    for name in calls:
        count(name)
    take()  # what earlier steps left
    asks = [Ask(prompt, {}, sampling={"max_tokens": 60}) for prompt in prompts[1:3]]
    with watched(llm) as steps:
        together(llm, asks)
    assert not any(step.passes for step in steps)
    lone = len(steps) - 60  # a prompt that waits for the other one, or is cut
    assert 4 <= calls["decide"] <= 10 + lone and 15 <= calls["took"] <= 20 + lone
    taken.append(take())
    counted = sum(sum(one["lengths"].values()) for one in taken if one)
    assert counted - (len(steps) - lone) in (0, 1), "an asynchronous step of before may have ended late"


def test_an_operators_floor_is_kept(
    agreeable_checkpoint: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """No block of 8 is expected to yield 7.9 tokens, so nothing is drafted, though a round costs no more than a step.

    An engine of its own, so it comes last.
    """
    asks = [Ask(prompt, {}, sampling={"max_tokens": TOKENS}) for prompt in prompts]
    with engine(agreeable_checkpoint, **linear(BLOCK, mode="auto", min_acceptance_length=7.9)) as llm:
        controller = scheduler(llm).auto.controller
        for floor, drafts in ((7.9, False), (1.0, True)):
            for length in controller.lengths:
                controller.costs.calibrate(length, 1, 1.0)
            assert floor == 1.0 or controller._least_yield == floor
            controller._least_yield = floor
            with watched(llm) as steps:
                assert tokens(together(llm, asks)) == expected
            assert any(step.passes for step in steps) == drafts
