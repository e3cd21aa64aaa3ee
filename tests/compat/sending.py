"""Prints what arrives of two records that vLLM's engine core sends, with and without our fields.

Each in a process of its own, because msgspec keeps what it knows of a class. vLLM is imported once, before they part.
"""

import json
import os
from typing import Any

from tests.compat.conftest import without
from vllm_nld.compat import metrics
from vllm_nld.compat.register import PATCHER


def arrived() -> dict[str, Any]:
    """The attributes of both records after a journey."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.metrics.stats import RequestSpecDecodeMetrics, SchedulerStats
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    stats, figures = SchedulerStats(num_running_reqs=3), RequestSpecDecodeMetrics(num_spec_tokens=7)
    stats.nld, figures.forwards = {"rounds": [("linear", 7, 2, 1)], "lora": True}, 5  # type: ignore[attr-defined]
    output = EngineCoreOutput(request_id="a", new_token_ids=[1], spec_decode_metrics=figures)
    sent = MsgpackEncoder().encode(EngineCoreOutputs(outputs=[output], scheduler_stats=stats))
    arrived = MsgpackDecoder(EngineCoreOutputs).decode(sent)
    stats, figures = arrived.scheduler_stats, arrived.outputs[0].spec_decode_metrics
    report = {"running": stats.num_running_reqs, "nld": getattr(stats, "nld", None)}
    return report | {"drafts": figures.num_spec_tokens, "forwards": getattr(figures, "forwards", None)}


if __name__ == "__main__":
    PATCHER.apply()
    if child := os.fork():
        os.waitpid(child, 0)
        print(json.dumps({"with": arrived()}))
    else:
        with without(metrics.add_scheduler_stats_field, metrics.add_forward_count):
            print(json.dumps({"without": arrived()}), flush=True)
