"""Timing with vLLM's own `vllm bench serve` client, run in this process so that it starts up only once.

    sample = drive(server.url, tokenizer_path, dataset, count=8, concurrency=1, body={})
    sample["tokens_per_s"], sample["ttft_ms"]["p95"]

Greedy, closed loop: `concurrency` requests run at a time until `count` are done.
"""

import contextlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LATENCIES = {"ttft_ms": "ttft", "itl_ms": "itl", "tpot_ms": "tpot", "latency_ms": "e2el"}
DRAFTS = "spec_decode_num_drafts"


def arguments(url: str, model: Path, dataset: Path, count: int, concurrency: int, body: Mapping[str, Any]) -> list[str]:
    """The arguments for `vllm bench serve`, which also work on the command line."""
    return [
        *("--base-url", url, "--model", "bench", "--tokenizer", str(model)),
        *("--dataset-name", "custom", "--dataset-path", str(dataset), "--custom-output-len", "-1"),
        *("--skip-chat-template", "--disable-shuffle", "--temperature", "0"),
        *("--num-prompts", str(count), "--max-concurrency", str(concurrency)),
        *("--extra-body", json.dumps({"add_special_tokens": False, **body})),
        *("--percentile-metrics", "ttft,itl,tpot,e2el", "--metric-percentiles", "50,95"),
        *("--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-detailed"),
    ]


def drive(
    url: str, model: Path, dataset: Path, count: int, concurrency: int, body: Mapping[str, Any], log: Path
) -> dict[str, Any]:
    """Time one run; the client's output goes to `log`. Raises RuntimeError if a request failed."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    options = parser.parse_args(arguments(url, model, dataset, count, concurrency, body))
    with log.open("a", encoding="utf-8") as output, contextlib.redirect_stdout(output), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = serve.main(options)
    if result["failed"]:
        raise RuntimeError(f"{result['failed']} of {count} requests failed: {next(filter(None, result['errors']))}")
    return summary(result)


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the client's result that we keep: throughput, latencies and vLLM's speculation counters."""
    kept: dict[str, Any] = {
        "tokens": result["total_output_tokens"],
        "seconds": round(result["duration"], 4),
        "tokens_per_s": round(result["output_throughput"], 2),
    }
    for name, theirs in LATENCIES.items():
        kept[name] = {f"p{p}": round(result[f"p{p}_{theirs}_ms"], 3) for p in (50, 95)}
    if result.get(DRAFTS):
        kept["rounds"] = result[DRAFTS]
        kept["drafted"] = result["spec_decode_draft_tokens"]
        kept["accepted"] = result["spec_decode_accepted_tokens"]
    return kept
