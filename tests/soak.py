"""Mixed load with random aborts on one engine. Every finished answer must equal the one that the request gets alone.

    python -m tests.soak --minutes 10

Requests in all modes with all sampling features run 16 at a time, in random order. Some are aborted before, during or
after their prefill. There are so few KV blocks that some are preempted. Scheduling is asynchronous, as on GPUs. At the
end no request, no KV block and no slot of the worker may be left.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from tests.engines import engine
from tests.spec_worker.conftest import allow_async, linear, metric
from tests.spec_worker.features import FEATURES, OPTIONS, SAMPLED, answers, params, prompts
from tests.spec_worker.leaks import assert_nothing_left
from vllm_nld.nano import checkpoint_path
from vllm_nld.serving.modes import MODES
from vllm_nld.serving.requests import ServerModes, check_combination

MIXTURE: tuple[dict[str, Any], ...] = (
    {},
    {"nld_mode": "ar"},
    {"nld_mode": "linear", "nld_draft_threshold": 0.5},
    {"nld_mode": "linear", "nld_block_length": 3},
    {"nld_mode": "diffusion"},
    {"nld_mode": "diffusion", "nld_threshold": 0.0, "nld_block_length": 4},
    {"nld_mode": "diffusion", "nld_threshold": 0.4, "nld_max_denoise_steps": 3},
)
CONCURRENCY = 16
SERVED = ServerModes("linear", tuple(MODES), block_length=8)
ABORTS = 0.08  # probability per step


@dataclass(frozen=True, slots=True)
class Work:
    """One request, and the answer it gets alone; None if it is sampled, so that there is no single answer."""

    prompt: Any
    params: Any
    answer: list[tuple[Any, ...]] | None


@dataclass(slots=True)
class Report:
    """The result of a run."""

    seconds: float = 0.0
    finished: int = 0
    compared: int = 0
    aborted: int = 0
    preempted: int = 0
    drafts: int = 0
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)


def in_all_modes(requests: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each request (prompt, params) in each mode that supports its parameters."""
    from vllm.sampling_params import RequestOutputKind

    every = []
    for prompt, p in requests:
        for asked in MIXTURE:
            mine = p.clone()
            mine.extra_args, mine.output_kind = asked, RequestOutputKind.FINAL_ONLY
            with contextlib.suppress(ValueError):
                check_combination(SERVED.read(asked), mine)
                every.append((prompt, mine))
    return every


def answered(model: Any, requests: Sequence[tuple[Any, Any]], **options: Any) -> list[Work]:
    """Requests (prompt, params) in all modes, with the answer each gets alone: that of AR, except in diffusion mode."""
    works = in_all_modes(requests)
    alone = [p.clone() for _, p in works]
    for p in alone:
        if p.extra_args.get("nld_mode") != "diffusion":
            p.extra_args = {"nld_mode": "ar"}
    with engine(model, **options, max_num_seqs=1) as llm:
        outputs = llm.generate([prompt for prompt, _ in works], alone, use_tqdm=False)
    return [
        Work(prompt, p, answers([output]) if p.temperature == 0 or p.top_k == 1 else None)
        for (prompt, p), output in zip(works, outputs, strict=True)
    ]


def soak(llm: Any, works: Sequence[Work], seconds: float, seed: int = 0) -> Report:
    """Serve random requests for this long, let them finish, and check that nothing is left over."""
    front, chance, report = llm.llm_engine, random.Random(seed), Report()
    live: dict[str, Work] = {}
    number, begin = 0, time.monotonic()
    while live or time.monotonic() - begin < seconds:
        while len(live) < CONCURRENCY and time.monotonic() - begin < seconds:
            name, work = str(number), chance.choice(works)
            front.add_request(name, work.prompt, work.params.clone())
            live[name], number = work, number + 1
            if chance.random() < 0.3:
                break  # the next one arrives a step later
        if live and chance.random() < ABORTS:
            gone = chance.sample(sorted(live), k=min(len(live), chance.choice((1, 1, 2, 5))))
            front.abort_request(gone)
            report.aborted += sum(live.pop(name) is not None for name in gone)
        for output in front.step():
            if output.finished:
                judge(report, live.pop(output.request_id), output)
    assert_nothing_left(llm)
    report.seconds = round(time.monotonic() - begin, 1)
    report.preempted = metric(llm, "num_preemptions")
    report.drafts = metric(llm, "spec_decode_num_drafts")
    report.accepted = metric(llm, "spec_decode_num_accepted_tokens")
    return report


def judge(report: Report, work: Work, output: Any) -> None:
    report.finished += 1
    if work.answer is not None:
        report.compared += 1
        if answers([output]) != work.answer:
            report.wrong.append(f"{work.params}: {answers([output])} instead of {work.answer}")


def on_nano(minutes: float, seed: int) -> Report:
    """Run all features on nano, with KV blocks for only a few requests."""
    features = [*FEATURES.values(), *SAMPLED.values()]
    requests = [(prompt, params(**feature)) for prompt in prompts() for feature in features]
    options: dict[str, Any] = OPTIONS | {"max_model_len": 512}
    works = answered(checkpoint_path(), requests, **linear(16), **options)
    tight = {"max_num_batched_tokens": 256, "num_gpu_blocks_override": 40}
    with pytest.MonkeyPatch.context() as patch:
        allow_async(patch)
        with engine(checkpoint_path(), **linear(16), **options, **tight) as llm:
            return soak(llm, works, minutes * 60, seed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler and the worker are inspected at the end
    report = on_nano(args.minutes, args.seed)
    print(json.dumps(asdict(report) | {"wrong": len(report.wrong)}))
    for features, count in Counter(report.wrong).most_common(5):
        print(count, features)
    return 1 if report.wrong or not (report.finished and report.aborted and report.preempted) else 0


if __name__ == "__main__":
    sys.exit(main())
