"""A request that is preempted at any step, with any number of tokens still to come, answers as if it never was."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine
from tests.spec_worker.batches import BLOCK, Ask
from tests.spec_worker.conftest import allow_async, linear
from vllm_nld.reference import ReferenceModel
from vllm_nld.serving.modes import MODES

STEPS = range(1, 5)
MAX_TOKENS = (2, 3, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK)


@pytest.fixture(scope="module", params=["sync", "async"])
def llm(request: pytest.FixtureRequest, agreeable_checkpoint: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "async":
            allow_async(patch)
        options = linear(BLOCK, groups=BLOCK) | {"num_gpu_blocks_override": 100, "max_num_seqs": 32}
        with engine(agreeable_checkpoint, **options) as llm:
            yield llm


@pytest.mark.parametrize("mode", MODES)
def test_preempted_at_any_step(llm: Any, mode: str, reference: ReferenceModel, prompts: list[list[int]]) -> None:
    front = llm.llm_engine
    exact = Ask(prompts[3], {"nld_mode": mode}, sampling={"max_tokens": max(MAX_TOKENS)}).rounds(reference).tokens
    for steps in STEPS:
        for count in MAX_TOKENS:
            ask = Ask(prompts[3], {"nld_mode": mode}, sampling={"max_tokens": count})
            front.add_request(str(count), {"prompt_token_ids": ask.prompt}, ask.params)
        found = {}
        for step in range(100):
            if step == steps:
                assert front.reset_prefix_cache(reset_running_requests=True), "the running requests are preempted"
            for output in front.step():
                found[int(output.request_id)] = list(output.outputs[0].token_ids)
            if not front.has_unfinished_requests():
                break
        assert found == {count: exact[:count] for count in MAX_TOKENS}, f"after {steps} steps"
