"""Graphs of draft passes: which passes they serve, what they read, and that padding neither writes nor changes.

CUDA's part is emulated here, see `emulation.py`; the last test runs it on a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu.attn_utils import AttentionCGSupportInfo

from spec_worker.blocks import Layout
from spec_worker.graphs import graph_mode
from tests.engines import engine, greedy, random_prompts
from tests.spec_worker.acceptance import Acceptance
from tests.spec_worker.conftest import CONTEXT, TOKENS, VOCAB, ar_tokens, linear, metric, token_ids
from tests.spec_worker.emulation import Emulation, emulated_graphs
from tests.spec_worker.test_diffusion import answers, expected
from vllm_nld.reference import ReferenceModel, generate

B = 8
PROMPTS = random_prompts(7, VOCAB, longest=100, seed=41)
MODES: list[dict[str, Any]] = [
    {},
    {"nld_mode": "diffusion", "nld_block_length": B, "nld_threshold": 0.5},
    {"nld_mode": "ar"},
    {"nld_mode": "diffusion", "nld_block_length": 4, "nld_threshold": 0.9},
    {"nld_block_length": 4},
]

GRAPH_MODES = {
    "the default": ("FULL_AND_PIECEWISE", "UNIFORM_BATCH", False, "FULL_DECODE_ONLY"),
    "full graphs of everything": ("FULL", "ALWAYS", False, "FULL_DECODE_ONLY"),
    "pieces only": ("PIECEWISE", "ALWAYS", False, "NONE"),
    "none": ("NONE", "ALWAYS", False, "NONE"),
    "attention that takes single tokens": ("FULL_AND_PIECEWISE", "UNIFORM_SINGLE_TOKEN_DECODE", False, "NONE"),
    "user LoRA": ("FULL_AND_PIECEWISE", "ALWAYS", True, "NONE"),
}


@pytest.mark.parametrize(("target", "support", "user_lora", "mode"), GRAPH_MODES.values(), ids=GRAPH_MODES)
def test_graphs_where_they_can_be_right(target: str, support: str, user_lora: bool, mode: str) -> None:
    attention = AttentionCGSupportInfo(AttentionCGSupport[support], "SomeBackend")
    assert graph_mode(CUDAGraphMode[target], attention, user_lora) == CUDAGraphMode[mode]


def runner(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


@torch.inference_mode()
def capture(speculator: Any) -> None:
    speculator.capture()


def leave_stale(inputs: Any) -> None:
    """As if a larger pass had gone before: what padding does not overwrite looks like a request's own."""
    inputs.slots.fill_(inputs.kv_block_size)
    inputs.table.fill_(1)
    inputs.buffers.seq_lens.fill_(50)
    inputs.buffers.query_start_loc.fill_(4 * B)


@dataclass(frozen=True, slots=True)
class Served:
    """An engine whose speculator has captured passes of one, two and four blocks."""

    llm: Any
    graphs: Any  # its DraftGraphs
    emulation: Emulation
    before: CUDAGraphMode  # how a block would have run before the capture

    def taken(self) -> tuple[list[tuple[int, int]], int]:
        """Replays and other forwards since the last call."""
        found = (self.emulation.replayed.copy(), self.emulation.forwards)
        self.emulation.replayed.clear()
        self.emulation.forwards = 0
        return found


@pytest.fixture(scope="module")
def served(agreeable_checkpoint: Path) -> Iterator[Served]:
    with engine(agreeable_checkpoint, **linear(B), num_gpu_blocks_override=64) as llm:
        speculator = runner(llm).speculator
        with emulated_graphs(speculator, sizes=[1, 8, 16, 32]) as emulation:
            before = speculator.graphs.shape(Layout(np.array([B]), B)).cg_mode
            capture(speculator)
            yield Served(llm, speculator.graphs, emulation, before)


def test_capture_asks_for_whole_blocks(served: Served) -> None:
    assert served.before == CUDAGraphMode.NONE, "before there are graphs"
    assert [graph.tokens for graph in served.emulation.captured] == [32, 16, 8], "the largest first"
    assert {desc.uniform_token_count for desc in served.graphs.graphs} == {B}
    for graph, blocks in zip(served.emulation.captured, (4, 2, 1), strict=True):
        for metadata in graph.metadata.values():
            assert metadata.causal is False, "a block's rows see the whole block"
            assert metadata.max_query_len == B
            assert metadata.max_seq_len == CONTEXT, "a graph must serve any length"
            assert len(metadata.seq_lens) == blocks and metadata.num_actual_tokens == graph.tokens
    assert served.graphs.hidden_states.shape[0] == 32


SHAPES = {
    "one block": ([8], ("FULL", 1, 8)),
    "two": ([8] * 2, ("FULL", 2, 16)),
    "three are padded": ([8] * 3, ("FULL", 4, 32)),
    "four": ([8] * 4, ("FULL", 4, 32)),
    "more than were captured": ([8] * 5, ("NONE", 5, 40)),
    "shorter blocks": ([4] * 4, ("NONE", 4, 16)),
    "a block's worth of shorter ones": ([4] * 2, ("NONE", 2, 8)),
    "unequal blocks": ([8, 4, 4], ("NONE", 3, 16)),
}


@pytest.mark.parametrize(("lengths", "shape"), SHAPES.values(), ids=SHAPES)
def test_a_pass_takes_the_smallest_graph_that_fits(
    lengths: list[int], shape: tuple[str, int, int], served: Served
) -> None:
    found = served.graphs.shape(Layout(np.array(lengths), B))
    assert (found.cg_mode.name, found.num_reqs, found.num_tokens) == shape


@pytest.mark.parametrize("requests", [1, 3, 7], ids=["one", "padded", "more than captured"])
def test_replays_draft_as_the_reference(requests: int, served: Served, reference: ReferenceModel) -> None:
    """Tokens, and the number of rounds: padding changes no draft. `Emulation.replay` checks what is written."""
    served.taken()
    leave_stale(served.emulation.speculator.passes.inputs)
    drafts = metric(served.llm, "spec_decode_num_drafts")
    outputs = greedy(served.llm, PROMPTS[:requests], TOKENS)
    exact = [
        generate(reference, prompt, mode="linear", block_length=B, max_new_tokens=TOKENS, ignore_eos=True)
        for prompt in PROMPTS[:requests]
    ]
    assert token_ids(outputs) == [one.tokens for one in exact] == ar_tokens(reference, PROMPTS[:requests], TOKENS)
    assert metric(served.llm, "spec_decode_num_drafts") - drafts == sum(len(one.rounds) for one in exact)
    replayed, forwards = served.taken()
    assert replayed and (forwards > 0) == (requests > 4)
    if requests == 3:
        assert (32, 24) in replayed, "three blocks in the graph of four"


def test_graphs_serve_every_mode(served: Served, reference: ReferenceModel) -> None:
    """One graph with the draft adapter on and off, beside passes of shorter blocks that take none."""
    served.taken()
    prompts, asked = PROMPTS[:5] * 2, MODES * 2
    found = answers(served.llm, prompts, asked)
    for prompt, extra, tokens in zip(prompts, asked, found, strict=True):
        assert tokens == expected(reference, prompt, {"nld_block_length": B} | extra), (len(prompt), extra)
    replayed, forwards = served.taken()
    assert replayed and forwards


def test_an_adapter_that_graphs_leave_out_ends_start_up(served: Served) -> None:
    speculator = served.emulation.speculator
    served.emulation.baked = True
    try:
        served.graphs.release_graphs()
        with pytest.raises(RuntimeError, match="has no effect on draft logits"):
            capture(speculator)
    finally:
        served.emulation.baked = False


def test_graphs_of_every_length_that_auto_chooses(agreeable_checkpoint: Path, reference: ReferenceModel) -> None:
    """Blocks of 4 and of 8 each have graphs; blocks that a request cut to 3 have none."""
    with engine(agreeable_checkpoint, **linear(B, mode="auto"), num_gpu_blocks_override=64) as llm:
        speculator = runner(llm).speculator
        auto = llm.llm_engine.engine_core.engine_core.scheduler.auto
        with emulated_graphs(speculator, sizes=[1, 8, 16, 32]) as emulation:
            capture(speculator)
            assert {desc.uniform_token_count for desc in speculator.graphs.graphs} == {4, B}
            for length, asked in ((4, {}), (B, {}), (B, {"nld_block_length": 3})):
                auto.forced = length
                emulation.replayed.clear()
                emulation.forwards = 0
                found = answers(llm, PROMPTS[:2], [asked] * 2)
                assert found == ar_tokens(reference, PROMPTS[:2], TOKENS)
                assert {real for _, real in emulation.replayed} == (set() if asked else {length, 2 * length})
                assert bool(emulation.forwards) == bool(asked)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "backend"), [("float32", "TRITON_ATTN"), ("bfloat16", "FLASH_ATTN")], ids=["fp32", "bf16"]
)
def test_graphs_on_a_gpu(dtype: str, backend: str) -> None:
    """With CUDA graphs the engine answers and drafts as without."""
    from tests.spec_worker.test_nano import token_prompts
    from vllm_nld.nano import checkpoint_path

    prompts, found, accepted = token_prompts(13), {}, {}
    for eager in (True, False):
        options = linear(32) | {"dtype": dtype, "attention_backend": backend, "enforce_eager": eager}
        with engine(checkpoint_path(), **options) as llm:
            graphs, replayed = runner(llm).speculator.graphs, []
            run = graphs.run_fullgraph
            graphs.run_fullgraph = lambda desc, run=run, replayed=replayed: (replayed.append(desc), run(desc))[1]
            found[eager] = token_ids(greedy(llm, prompts, 64))
            accepted[eager] = Acceptance.of_metrics(llm.get_metrics()).length
            if eager:
                assert not graphs.graphs and not replayed
            else:
                assert {desc.uniform_token_count for desc in graphs.graphs} == {32}
                assert set(replayed) <= set(graphs.graphs) and len(set(replayed)) > 1
    if dtype == "float32":
        assert found[True] == found[False]
    assert accepted[False] == pytest.approx(accepted[True], rel=0.01 if dtype == "float32" else 0.1)
