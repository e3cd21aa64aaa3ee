"""CUDA graphs on a machine without CUDA: vLLM's own capture loop, and a replay that a graph could do as well.

What is captured is the forward's shape and the address of every tensor that its attention reads. A replay takes what
the pass has laid out since, refuses it where an address or a shape differs from the captured one, and runs the forward
in the captured shape. Only the CPU kernel's schedule is not compared: it is computed anew for each pass.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.attn_utils import AttentionCGSupportInfo


def addresses(metadata: dict[str, Any], mappings: dict[str, torch.Tensor]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Where each tensor lies that a layer's attention reads, and how large it is."""
    found = {f"{layer}.mapping": tensor for layer, tensor in mappings.items()}
    for layer, of_layer in metadata.items():
        for field in dataclasses.fields(of_layer):
            value = getattr(of_layer, field.name)
            if isinstance(value, torch.Tensor) and field.name != "scheduler_metadata":
                found[f"{layer}.{field.name}"] = value
    return {name: (tensor.data_ptr(), tuple(tensor.shape)) for name, tensor in found.items()}


@dataclasses.dataclass
class Emulation:
    """The graphs of one speculator, and what was done with them."""

    speculator: Any
    captured: list["Graph"] = dataclasses.field(default_factory=list)
    replayed: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # captured tokens, those of the pass
    forwards: int = 0  # without a graph
    recording: "Graph | None" = None
    baked: bool = False  # whether replays keep the draft adapter off, as a graph would that does not read the switch

    def __post_init__(self) -> None:
        self.forward, self.attention = self.speculator.passes.forward, self.speculator.passes.attention
        self.laid_out: Any = None

    def run_forward(self, tokens: int, metadata: Any, mappings: Any) -> torch.Tensor:
        """In place of the speculator's: a capture takes note of what it is given."""
        if self.recording is not None:
            self.recording.tokens, self.recording.metadata = tokens, metadata
            self.recording.addresses = addresses(metadata, mappings)
        else:
            self.forwards += 1
        return self.forward(tokens, metadata, mappings)

    def lay_out(self, given: Any, requests: int, tokens: int) -> Any:
        """In place of the speculator's."""
        metadata, mappings = self.attention(given, requests, tokens)
        self.laid_out = (given, metadata, mappings)
        return metadata, mappings

    def replay(self, graph: "Graph") -> None:
        given, metadata, mappings = self.laid_out
        assert addresses(metadata, mappings) == graph.addresses, "a graph reads where it was captured"
        assert self.speculator.input_buffers.input_ids.data_ptr() == graph.ids, "and so do the embeddings"
        before = [layer.kv_cache.clone() for layer in self.layers()]
        switch = self.speculator.model.draft_adapter.switch
        scale = switch.clone()
        if self.baked:
            switch.zero_()
        self.speculator.graphs.hidden_states[: graph.tokens] = self.forward(graph.tokens, metadata, mappings)
        switch.copy_(scale)
        real = given.layout.tokens
        self.check_writes(before, self.speculator.passes.inputs.slots[0, :real])
        self.replayed.append((graph.tokens, real))

    def layers(self) -> list[Any]:
        return list(self.speculator.vllm_config.compilation_config.static_forward_context.values())

    def check_writes(self, before: list[torch.Tensor], slots: torch.Tensor) -> None:
        """Nothing but the slots of real rows has changed in any layer's KV cache."""
        for layer, held in zip(self.layers(), before, strict=True):
            ones = torch.ones(len(slots), layer.num_kv_heads, layer.head_size, dtype=held.dtype)
            allowed = torch.zeros_like(held)
            layer.impl.do_kv_cache_update(layer, ones, ones, allowed, slots)
            assert not ((layer.kv_cache != held) & (allowed == 0)).any(), "padding has written KV"


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    emulation: Emulation
    tokens: int
    metadata: dict[str, Any]
    addresses: dict[str, Any]

    def __init__(self) -> None:
        self.ids = self.emulation.speculator.input_buffers.input_ids.data_ptr()
        self.emulation.captured.append(self)

    def replay(self) -> None:
        self.emulation.replay(self)


@contextlib.contextmanager
def emulated_graphs(speculator: Any, sizes: list[int]) -> Iterator[Emulation]:
    """A speculator whose manager may capture passes of so many tokens; `speculator.capture()` is left to the caller."""
    emulation = Emulation(speculator)

    @contextlib.contextmanager
    def capture(graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
        emulation.recording = graph
        yield
        emulation.recording = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "emulation", emulation, raising=False)
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", capture)
        patch.setattr(cudagraph_utils, "graph_capture", lambda device: contextlib.nullcontext())
        patch.setattr(type(current_platform), "_global_graph_pool", (0, 0))
        config = speculator.vllm_config.compilation_config
        patch.setattr(config, "cudagraph_capture_sizes", sizes)
        patch.setattr(config, "max_cudagraph_capture_size", max(sizes))
        patch.setattr(speculator, "attn_cg_support", AttentionCGSupportInfo(AttentionCGSupport.UNIFORM_BATCH))
        patch.setattr(speculator.passes, "forward", emulation.run_forward)
        patch.setattr(speculator.passes, "attention", emulation.lay_out)
        speculator.init_cudagraph_manager(CUDAGraphMode.FULL_AND_PIECEWISE)
        yield emulation
