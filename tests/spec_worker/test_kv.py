"""KV hygiene: after each step the cache holds the accepted tokens' causal KV, and no trace of a draft pass."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines import engine
from tests.spec_worker.conftest import linear
from vllm_nld.reference import ReferenceModel
from vllm_nld.reference.model import KVCache

P = 32  # tokens a KV block
BLOCKS = 20  # few: each step compares the whole cache


def causal_cache(model: ReferenceModel, tokens: list[int]) -> KVCache:
    cache = KVCache(model.config.num_hidden_layers)
    model(torch.tensor([tokens]), cache)
    return cache


def computed(runner: Any, request: str) -> tuple[int, torch.Tensor]:
    """How many tokens of a request count as computed, and its KV blocks."""
    state = runner.req_states
    slot = state.req_id_to_index[request]
    blocks = runner.block_tables.num_blocks.np[0, slot]
    return int(state.num_computed_tokens.gpu[slot]), runner.block_tables.block_tables[0].gpu[slot, :blocks]


def static_layers(runner: Any) -> list[Any]:
    return list(runner.compilation_config.static_forward_context.values())


def check_kv(runner: Any, model: ReferenceModel, tokens: list[int], request: str) -> int:
    """Write the reference's KV into an empty cache through vLLM's own kernel, and compare those slots."""
    count, blocks = computed(runner, request)
    exact, position = causal_cache(model, tokens[:count]), torch.arange(count)
    slots = blocks[position // P].long() * P + position % P
    for index, layer in enumerate(static_layers(runner)):
        keys, values = (x[index][0].transpose(0, 1).contiguous() for x in (exact.keys, exact.values))  # [count, G, D]
        expected, written = torch.zeros_like(layer.kv_cache), torch.zeros_like(layer.kv_cache)
        layer.impl.do_kv_cache_update(layer, keys, values, expected, slots)
        layer.impl.do_kv_cache_update(layer, torch.ones_like(keys), torch.ones_like(values), written, slots)
        held = written != 0
        torch.testing.assert_close(layer.kv_cache[held], expected[held], atol=1e-5, rtol=1e-5)
    return count


@pytest.mark.parametrize(
    "settings",
    [{}, {"tree_nodes": 20}, {"mode": "quadratic"}, {"mode": "quadratic", "groups": 2}],
    ids=["chain", "tree", "groups", "some groups"],
)
@torch.no_grad()
def test_the_cache_holds_the_causal_kv_of_the_accepted_tokens(
    settings: dict[str, Any], agreeable_checkpoint: Path, reference: ReferenceModel
) -> None:
    """A tree leaves no node behind, and its accepted nodes lie where a sequence has them. Masks leave nothing."""
    from vllm import SamplingParams

    prompts = {"short": [5, 9, 17], "long": list(range(20, 110))}
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False)
    with engine(agreeable_checkpoint, **linear(8, **settings), num_gpu_blocks_override=BLOCKS) as llm:
        core = llm.llm_engine
        runner = core.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        for name, prompt in prompts.items():
            core.add_request(name, {"prompt_token_ids": prompt}, params)
        checked, largest = 0, 0
        while core.has_unfinished_requests():
            for output in core.step():
                if output.finished:
                    continue
                tokens = prompts[output.request_id] + list(output.outputs[0].token_ids)
                inner = next(
                    inner for inner in runner.req_states.req_id_to_index if inner.startswith(output.request_id)
                )
                count = check_kv(runner, reference, tokens, inner)
                assert count == len(tokens) - 1, "all but the anchor are computed"
                checked, largest = checked + 1, max(largest, count)
    assert checked > 20 and largest > 100
    assert not any(getattr(layer.impl, "kept", None) for layer in static_layers(runner)), "nothing is kept for later"
