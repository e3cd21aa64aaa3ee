"""What `auto` should choose on this device, by measured steps and by the controller's own table."""

from typing import Any

from bench.gpu_check.record import DIFF, FIGURE, OK, Finding
from vllm_nld.plan.acceptance import survival_curve, yields
from vllm_nld.roofline.published import ROUND_YIELDS

CLOSE = 0.97  # of the best choice's tokens per second


def choices(engine: Any) -> Finding:
    """The block length with the most tokens per second at each concurrency, with published yields."""
    auto = engine.llm.llm_engine.engine_core.engine_core.scheduler.auto
    curve = survival_curve(ROUND_YIELDS["8b"])
    texts, data, worst = [], {}, 1.0
    for requests in sorted({requests for requests, _ in engine.cells}):
        measured = {b: one["ms"] for (n, b), one in engine.cells.items() if n == requests}
        table = dict(zip(auto.controller.lengths, auto.controller.costs.of(requests), strict=True))
        rates = {block: requests * yields(curve, block) / ms for block, ms in measured.items()}
        chosen = max(measured, key=lambda block: yields(curve, block) / table[block])
        best = max(rates, key=lambda block: rates[block])
        errors = {block: table[block] / ms - 1 for block, ms in measured.items()}
        off = max(errors.values(), key=abs)
        worst = min(worst, rates[chosen] / rates[best])
        texts.append(f"{requests}: best {best}, auto {chosen} (table off by up to {off:+.0%})")
        data[requests] = {"best": best, "auto": chosen, "errors": errors, "rates": rates}
    text = f"block length by concurrency: {'; '.join(texts)}; auto's choice yields at least {worst:.0%} of the best"
    if not engine.setting.gpu:
        return Finding(FIGURE, text, data)
    return Finding(OK if worst >= CLOSE else DIFF, text, data)
