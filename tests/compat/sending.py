"""Prints what arrives of two records that vLLM's engine core sends: `python -m tests.compat.sending with|without`."""

import contextlib
import json
import sys

from tests.compat.conftest import without
from vllm_nld.compat import metrics
from vllm_nld.compat.register import PATCHER


def main(patched: bool) -> None:
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
    report |= {"drafts": figures.num_spec_tokens, "forwards": getattr(figures, "forwards", None)}
    print(json.dumps(report))


if __name__ == "__main__":
    PATCHER.apply()
    with contextlib.ExitStack() as stack:
        if sys.argv[1] == "without":
            stack.enter_context(without(metrics.add_scheduler_stats_field, metrics.add_forward_count))
        main(sys.argv[1] == "with")
