"""The parts of an engine's step, timed by wrapping them in an engine that runs in this process.

spans = watch(llm)
llm.llm_engine.step()
spans.take()                                # {VERIFY: seconds, SAMPLING: seconds, ...}
"""

from collections.abc import Callable
from typing import Any

from bench.spans import Spans

VERIFY, DRAFT = "verify forward", "draft forward"
VERIFY_LOGITS, DRAFT_LOGITS, SAMPLING = "verify logits", "draft logits", "sampling"
PROPOSE, HOST = "host, drafting", "host"
PARTS = (VERIFY, VERIFY_LOGITS, DRAFT, DRAFT_LOGITS, SAMPLING, PROPOSE, HOST)


def watch(llm: Any, replace: Callable[[Any, str, Any], None] = setattr) -> Spans:
    """Wrap the parts of a step; the remaining time is the host's. replace: sets an attribute, for good by default."""
    import torch

    spans = Spans(torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    kind = type(runner.model)

    def drafting() -> bool:
        return spans.inside(PROPOSE)

    def wrap(owner: Any, name: str, part: str | Callable[[], str]) -> None:
        replace(owner, name, spans.wrap(part, getattr(owner, name)))

    wrap(kind, "__call__", lambda: DRAFT if drafting() else VERIFY)
    if hasattr(kind, "draft"):  # stock vLLM's models have none
        wrap(kind, "draft", DRAFT)
    wrap(kind, "compute_logits", lambda: DRAFT_LOGITS if drafting() else VERIFY_LOGITS)
    if graphs := getattr(runner, "cudagraph_manager", None):
        wrap(graphs, "run_fullgraph", VERIFY)
    wrap(runner, "sample", SAMPLING)
    if runner.speculator is not None:
        for method in ("propose", "draft"):  # drafting may be put off, see `spec_worker.speculator`
            if hasattr(runner.speculator, method):
                wrap(runner.speculator, method, PROPOSE)
        if graphs := getattr(runner.speculator, "graphs", None):
            wrap(graphs, "run_fullgraph", DRAFT)
    wrap(llm.llm_engine, "step", HOST)
    return spans
