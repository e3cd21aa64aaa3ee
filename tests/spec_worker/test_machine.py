"""A state machine adds, aborts and steps in any order, in all modes: every answer is what it is alone, all the way."""

from collections.abc import Iterator
from dataclasses import dataclass
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
    rule,
    run_state_machine_as_test,
)

from tests.engines import engine, random_prompts
from tests.scale import scaled, spread
from tests.spec_worker import loras
from tests.spec_worker.batches import BLOCK, Ask, together, tokens
from tests.spec_worker.conftest import CONTEXT, VOCAB, allow_async, linear, metric
from tests.spec_worker.leaks import assert_nothing_left
from tests.tiny import CONFIG
from vllm_nld.reference import ReferenceModel
from vllm_nld.serving.decoding import grouped_tokens
from vllm_nld.serving.modes import DEFAULT, MODES

EOS, LONGEST = CONFIG["eos_token_id"], 40
SHARED = random_prompts(1, VOCAB, longest=1, seed=21)[0] * 64
PROMPTS = random_prompts(12, VOCAB, longest=CONTEXT - LONGEST, seed=20)
PROMPTS += [SHARED + prompt for prompt in random_prompts(6, VOCAB, longest=90, seed=22)]
TIGHT = {"max_num_batched_tokens": 48, "num_gpu_blocks_override": 12, "max_num_seqs": 6}
ASKED: list[dict[str, Any]] = [
    {},
    *({"nld_mode": mode} for mode in MODES),
    {"nld_mode": "linear", "nld_block_length": 3},
    {"nld_mode": "linear", "nld_draft_threshold": 0.45},
    {"nld_mode": "linear", "nld_tree_nodes": BLOCK - 1},
    {"nld_mode": "auto", "nld_tree_nodes": BLOCK - 2},
    {"nld_mode": "linear", "nld_tree_nodes": 5, "nld_block_length": 3},
    {"nld_mode": "linear", "nld_draft_threshold": 1.0, "nld_block_length": 5},
    {"nld_mode": "quadratic", "nld_groups": 1},
    {"nld_mode": "quadratic", "nld_block_length": 2},
    {"nld_mode": "diffusion", "nld_threshold": 0.0, "nld_block_length": 4},
    {"nld_mode": "diffusion", "nld_threshold": 0.5},
]
GROUPS = 2  # all of them for blocks of 2
ROWS = grouped_tokens(BLOCK, GROUPS)
SCHEDULE = [[1, 1, ROWS], [2, 3, 3], [4, 6, 0]]


WAYS = ["async, schedule, user LoRA", "sync", "async", "sync, schedule, user LoRA"]


@dataclass(frozen=True, slots=True)
class Served:
    """An engine, and what each user's adapter makes of the model."""

    llm: Any
    models: list[tuple[Any, ReferenceModel]]

    def answer(self, prompt: list[int], extra: dict[str, Any], user: int) -> list[int]:
        """By the reference, as long as any."""
        taken = MODES[extra.get("nld_mode", DEFAULT)].takes_blocks
        ask = Ask(prompt, extra if taken else {"nld_mode": "ar"}, sampling={"max_tokens": LONGEST})
        return list(ask.rounds(self.models[user][1]).tokens)


@pytest.fixture(scope="module", params=spread(WAYS))
def served(
    request: pytest.FixtureRequest,
    agreeable_checkpoint: Path,
    reference: ReferenceModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    models: list[tuple[Any, ReferenceModel]] = [(None, reference)]
    options = linear(BLOCK, groups=GROUPS) | TIGHT
    if "user LoRA" in request.param:
        models = [tuple(one) for one in loras.two_loras(agreeable_checkpoint, tmp_path_factory.mktemp("loras"))]
        speculative = {"method": "draft_model", "model": str(agreeable_checkpoint), "num_speculative_tokens": ROWS}
        speculative["num_speculative_tokens_per_batch_size"] = SCHEDULE
        options |= loras.OPTIONS | {"speculative_config": speculative}
        options["max_num_batched_tokens"] = options["max_num_seqs"] * (ROWS + 1)  # vLLM's least with user LoRA
    with pytest.MonkeyPatch.context() as patch:
        if "async" in request.param:
            allow_async(patch)
        with engine(agreeable_checkpoint, **options) as llm:
            assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == ("async" in request.param)
            yield Served(llm, models)


def machine(served: Served) -> type[RuleBasedStateMachine]:
    """The state machine of one engine, which outlives its runs."""
    from vllm import SamplingParams

    llm, front, numbers = served.llm, served.llm.llm_engine, iter(range(10**9))

    @cache
    def answer(prompt: int, asked: int, user: int, max_tokens: int, eos: bool) -> list[int]:
        found = whole(prompt, asked, user)[:max_tokens]
        return found[: found.index(EOS) + 1] if eos and EOS in found else found

    @cache
    def whole(prompt: int, asked: int, user: int) -> list[int]:
        return served.answer(PROMPTS[prompt], ASKED[asked], user)

    class Engine(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            assert not llm.failed, "a step of this engine has failed before"
            self.live: dict[str, list[int]] = {}  # request: what it must answer
            self.seen: dict[str, list[int]] = {}

        @rule(
            prompt=st.integers(0, len(PROMPTS) - 1),
            asked=st.integers(0, len(ASKED) - 1),
            user=st.integers(0, len(served.models) - 1),
            max_tokens=st.integers(1, LONGEST),
            eos=st.booleans(),
        )
        def add(self, prompt: int, asked: int, user: int, max_tokens: int, eos: bool) -> None:
            name = str(next(numbers))
            stops = {"stop_token_ids": [EOS]} if eos else {"ignore_eos": True}
            params = SamplingParams(
                temperature=0, max_tokens=max_tokens, detokenize=False, extra_args=dict(ASKED[asked]), **stops
            )
            lora = served.models[user][0]
            front.add_request(name, {"prompt_token_ids": PROMPTS[prompt]}, params, lora_request=lora)
            self.live[name], self.seen[name] = answer(prompt, asked, user, max_tokens, eos), []

        @rule(which=st.integers(0, 5))
        def abort(self, which: int) -> None:
            """If any is live; no draw depends on who is, so that hypothesis can replay a walk on a warm engine."""
            if self.live:
                name = sorted(self.live)[which % len(self.live)]
                front.abort_request([name])
                del self.live[name]

        @rule()
        def preempt(self) -> None:
            assert front.reset_prefix_cache(reset_running_requests=True)

        @rule(count=st.integers(1, 6))
        def step(self, count: int) -> None:
            for _ in range(count):
                self.receive()

        def receive(self) -> None:
            llm.failed = True
            outputs = front.step()
            llm.failed = False
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
            try:
                while front.has_unfinished_requests() and not llm.failed:
                    self.receive()
                assert not self.live
                assert_nothing_left(llm)
            finally:  # a failed walk leaves requests that the next walk, a replay of this one, must not meet
                front.abort_request(list(front.output_processor.request_states), internal=True)

    return Engine


def test_any_order_of_requests_aborts_and_steps(served: Served) -> None:
    crowd(served)
    limits = settings(
        max_examples=scaled(8),
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine(served), settings=limits)


def crowd(served: Served) -> None:
    """What a random walk may miss: a preemption, accepted drafts, and a second life of slots and KV blocks after both.

    Two AR requests grow from five KV blocks to six within ten steps, out of eleven; they are 36 steps together.
    """
    prompts, users = [PROMPTS[8][:150], PROMPTS[9][:150]], len(served.models)
    assert {len(prompt) for prompt in prompts} == {150}
    for mode in ("ar", "linear"):
        asks = [
            Ask(prompt, {"nld_mode": mode}, served.models[index % users][0], {"max_tokens": LONGEST})
            for index, prompt in enumerate(prompts)
        ]
        found = tokens(together(served.llm, asks))
        assert found == [served.answer(ask.prompt, ask.extra, index % users) for index, ask in enumerate(asks)]
    assert metric(served.llm, "num_preemptions") > 0 and metric(served.llm, "spec_decode_num_accepted_tokens") > 0
    assert_nothing_left(served.llm)
