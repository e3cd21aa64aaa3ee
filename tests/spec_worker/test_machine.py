"""A state machine adds, aborts and steps in any order: every answer is AR's at every step, and nothing is left over."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.engines import engine, random_prompts
from tests.scale import scaled
from tests.spec_worker.conftest import CONTEXT, VOCAB, allow_async, ar_tokens, linear, metric
from tests.spec_worker.leaks import assert_nothing_left
from tests.tiny import CONFIG
from vllm_nld.reference import ReferenceModel

EOS, LONGEST = CONFIG["eos_token_id"], 40
SHARED = random_prompts(1, VOCAB, longest=1, seed=21)[0] * 64
PROMPTS = random_prompts(12, VOCAB, longest=CONTEXT - LONGEST, seed=20)
PROMPTS += [SHARED + prompt for prompt in random_prompts(6, VOCAB, longest=90, seed=22)]
TIGHT = {"max_num_batched_tokens": 48, "num_gpu_blocks_override": 12, "max_num_seqs": 6}


@pytest.fixture(scope="module", params=["sync", "async"])
def llm(request: pytest.FixtureRequest, agreeable_checkpoint: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "async":
            allow_async(patch)
        with engine(agreeable_checkpoint, **linear(8), **TIGHT) as llm:
            yield llm


def machine(llm: Any, reference: ReferenceModel) -> type[RuleBasedStateMachine]:
    """The state machine of one engine, which outlives its runs."""
    from vllm import SamplingParams

    front, numbers = llm.llm_engine, iter(range(10**9))

    @cache
    def answer(prompt: int, max_tokens: int, eos: bool) -> list[int]:
        tokens = ar_tokens(reference, [PROMPTS[prompt]], LONGEST)[0][:max_tokens]
        return tokens[: tokens.index(EOS) + 1] if eos and EOS in tokens else tokens

    class Engine(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.live: dict[str, list[int]] = {}  # request: what it must answer
            self.seen: dict[str, list[int]] = {}

        @rule(prompt=st.integers(0, len(PROMPTS) - 1), max_tokens=st.integers(1, LONGEST), eos=st.booleans())
        def add(self, prompt: int, max_tokens: int, eos: bool) -> None:
            name = str(next(numbers))
            stops = {"stop_token_ids": [EOS]} if eos else {"ignore_eos": True}
            params = SamplingParams(temperature=0, max_tokens=max_tokens, detokenize=False, **stops)
            front.add_request(name, {"prompt_token_ids": PROMPTS[prompt]}, params)
            self.live[name], self.seen[name] = answer(prompt, max_tokens, eos), []

        @precondition(lambda self: self.live)
        @rule(data=st.data())
        def abort(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(sorted(self.live)))
            front.abort_request([name])
            del self.live[name]

        @rule(count=st.integers(1, 6))
        def step(self, count: int) -> None:
            for _ in range(count):
                self.receive(front.step())

        def receive(self, outputs: list[Any]) -> None:
            for output in outputs:
                tokens = list(output.outputs[0].token_ids)
                exact = self.live[output.request_id]  # KeyError: an aborted request answered
                assert tokens == exact[: len(tokens)]
                assert len(tokens) > len(self.seen[output.request_id]) or output.finished
                self.seen[output.request_id] = tokens
                if output.finished:
                    assert tokens == exact
                    del self.live[output.request_id]

        @invariant()
        def the_front_end_knows_who_is_live(self) -> None:
            assert front.get_num_unfinished_requests() == len(self.live)

        def teardown(self) -> None:
            while front.has_unfinished_requests():
                self.receive(front.step())
            assert not self.live
            assert_nothing_left(llm)

    return Engine


def test_any_order_of_requests_aborts_and_steps(llm: Any, reference: ReferenceModel) -> None:
    limits = settings(
        max_examples=scaled(12),
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine(llm, reference), settings=limits)
    assert metric(llm, "num_preemptions") > 0 and metric(llm, "spec_decode_num_accepted_tokens") > 0
