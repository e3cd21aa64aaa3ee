"""Faults in an engine that serves: in its draft passes, its graphs, its set-up."""

from collections.abc import Callable
from typing import Any

import torch

from bench.gpu_check.drafting import STEPS
from bench.gpu_check.served import Served
from bench.gpu_check.waits import ROOT
from tests.bench.faults import Fault, Patch


def wrong_slots(patch: Patch, served: Served) -> None:
    """Draft passes write their KV a few slots early: over that of accepted tokens."""
    from spec_worker.inputs import Inputs

    fill = Inputs.fill

    def early(self: Inputs, *args: Any) -> None:
        fill(self, *args)
        self.slots.copy_((self.slots - 8).clamp(min=-1))

    patch.setattr(Inputs, "fill", early)


def causal_drafts(patch: Patch, served: Served) -> None:
    patch.setattr("spec_worker.forward.kernel_causal", lambda mask: True)


def hasty_commits(patch: Patch, served: Served) -> None:
    """Denoising takes everything in its first pass."""
    patch.setattr("spec_worker.fill.commit", lambda certainty, masked, threshold: masked.clone())


def other_logits(rows: int = 0) -> Callable[[Patch, Served], None]:
    """In forwards of more than so many rows."""

    def plant(patch: Patch, served: Served) -> None:
        from vllm_nld.model.causal_lm import NemotronLabsDiffusionModel as Model

        compute = Model.compute_logits
        patch.setattr(Model, "compute_logits", lambda self, x: compute(self, x).roll(int(len(x) > rows), -1))

    return plant


def baked_adapter(patch: Patch, served: Served) -> None:
    """Graphs replay what was captured, without the adapter."""
    patch.setattr(served.emulation, "baked", True)


def no_graphs(patch: Patch, served: Served) -> None:
    """No pass of the next answers takes one."""
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CUDAGraphMode

    def none(layout: Any) -> Any:
        return BatchExecutionDescriptor(CUDAGraphMode.NONE, layout.tokens, len(layout.lengths))

    patch.setattr(served.speculator.graphs, "shape", none)
    patch.setattr(served, "replays", type(served.replays)())
    if served.prompts:
        served.answers("linear")


def mostly_eager(patch: Patch, served: Served) -> None:
    patch.setattr(served, "eager", served.replays.total() + 1)


def unexpected_graphs(patch: Patch, served: Served) -> None:
    """The server was asked for none."""
    patch.setattr(served, "graphs", False)


def other_server(patch: Patch, served: Served) -> None:
    patch.setattr(served.llm.llm_engine.vllm_config.scheduler_config, "async_scheduling", False)
    patch.setattr(served.runner.model.model, "do_not_compile", False)


def planted(code: str, file: str = "spec_worker/planted.py") -> dict[str, Any]:
    """Run code as if a file of ours held it; its names."""
    names: dict[str, Any] = {}
    exec(compile(code, str(ROOT / file), "exec"), names)
    return names


WAITS = {
    "item()": "def wait(x): return x.sum().item()",
    "if": "def wait(x): return 1 if x.sum() > 0 else 0",
    "tolist()": "def wait(x): return x.tolist()",
    "nonzero()": "def wait(x): return x.nonzero()",
}


def waiting(code: str) -> Callable[[Patch, Served], None]:
    """Drafting waits for the device once a step."""

    def plant(patch: Patch, served: Served) -> None:
        propose, wait = served.speculator.propose, planted(code)["wait"]
        patch.setattr(served.speculator, "propose", lambda *a, **k: (wait(torch.ones(2)), propose(*a, **k))[1])

    return plant


def waits_of(mode: str) -> str:
    return f"{mode}: spec_worker/planted.py:1 ({STEPS})"


OTHER_SERVER = "not scheduled asynchronously; draft passes are not compiled: runner "
SET_UP = Fault("set-up", "synchronous, one pathway compiled", other_server, OTHER_SERVER)
