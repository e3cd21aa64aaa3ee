"""Mixed load with random aborts on one engine. Every finished answer must equal the one that the request gets alone.

    python -m tests.soak --minutes 10

Requests in all modes with all sampling features come and go, 16 at a time, in random order; once one has been
preempted, some are aborted before, while and after they are prefilled. KV blocks are few. Scheduling is asynchronous,
as on GPUs. At the end nothing may be left over: no request, no KV block, no slot of the worker. The time is shared by
engines with and without user LoRA and a schedule of drafts.
"""

import argparse
import contextlib
import json
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.engines import engine
from tests.spec_worker.conftest import allow_async, linear, metric
from tests.spec_worker.features import FEATURES, OPTIONS, SAMPLED, answers, params, prompts
from tests.spec_worker.leaks import assert_nothing_left
from tests.spec_worker.loras import OPTIONS as USER_LORA
from tests.spec_worker.loras import two_loras
from vllm_nld.nano import checkpoint_path
from vllm_nld.serving.decoding import grouped_tokens
from vllm_nld.serving.modes import DEFAULT, MODES
from vllm_nld.serving.requests import ServerModes, check_combination

MIXTURE: tuple[dict[str, Any], ...] = (
    {},
    {"nld_mode": "ar"},
    {"nld_mode": "auto", "nld_tree_nodes": 7},
    {"nld_mode": "linear", "nld_draft_threshold": 0.5},
    {"nld_mode": "linear", "nld_block_length": 3},
    {"nld_mode": "linear", "nld_tree_nodes": 7},
    {"nld_mode": "linear", "nld_tree_nodes": 5, "nld_block_length": 4},
    {"nld_mode": "quadratic"},
    {"nld_mode": "quadratic", "nld_groups": 1, "nld_block_length": 5},
    {"nld_mode": "quadratic", "nld_block_length": 2},
    {"nld_mode": "diffusion"},
    {"nld_mode": "diffusion", "nld_threshold": 0.0, "nld_block_length": 4},
    {"nld_mode": "diffusion", "nld_threshold": 0.4, "nld_max_denoise_steps": 3},
)
CONCURRENCY = 16
GROUPS = 2  # of masks
SERVED = ServerModes("linear", tuple(MODES), block_length=8, most_nodes=7, groups=GROUPS)
ABORTS = 0.08  # probability per step


@dataclass(frozen=True, slots=True)
class Work:
    """One request, and the answer it gets alone; None if it is sampled, so that there is no single answer."""

    prompt: Any
    params: Any
    lora: Any  # a LoRARequest
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
                check_combination(mine, SERVED.canonical(asked))
                every.append((prompt, mine))
    return every


def answered(
    model: Any, requests: Sequence[tuple[Any, Any]], loras: Sequence[Any] = (None,), **options: Any
) -> list[Work]:
    """Requests (prompt, params) with their answers one at a time, in AR mode unless the mode's blocks are taken.

    User adapters go round: if there are any, each request has one.
    """
    works = in_all_modes(requests)
    users = [loras[index % len(loras)] for index in range(len(works))]
    keys, alone = list[str](), dict[str, tuple[Any, Any, Any]]()
    for (prompt, p), user in zip(works, users, strict=True):
        mine, key = p.clone(), ""
        if not MODES[p.extra_args.get("nld_mode", DEFAULT)].takes_blocks:
            mine.extra_args = {"nld_mode": "ar"}
        if p.temperature == 0 or p.top_k == 1:
            key = f"{prompt} {msgspec.structs.asdict(mine)} {user}"  # the same for all modes that answer as AR
            alone[key] = prompt, mine, user
        keys.append(key)
    with engine(model, **options, max_num_seqs=1) as llm:
        inputs, asked, adapters = (list(column) for column in zip(*alone.values(), strict=True))
        outputs = llm.generate(inputs, asked, lora_request=adapters if any(users) else None, use_tqdm=False)
    known = {key: answers([output]) for key, output in zip(alone, outputs, strict=True)}
    return [Work(prompt, p, user, known.get(key)) for (prompt, p), user, key in zip(works, users, keys, strict=True)]


def soak(
    llm: Any, works: Sequence[Work], seconds: float = math.inf, requests: float = math.inf, seed: int = 0
) -> Report:
    """Serve random works for this long, or so many, then finish, and check that nothing is left over.

    With a number of requests the same seed gives the same load. Nothing is aborted before one has been preempted.
    """
    front, chance, report = llm.llm_engine, random.Random(seed), Report()
    live: dict[str, Work] = {}
    number, begin = 0, time.monotonic()

    def more() -> bool:
        return number < requests and time.monotonic() - begin < seconds

    while live or more():
        while len(live) < CONCURRENCY and more():
            name, work = str(number), chance.choice(works)
            front.add_request(name, work.prompt, work.params.clone(), lora_request=work.lora)
            live[name], number = work, number + 1
            if number > CONCURRENCY and chance.random() < 0.3:
                break  # the next one comes a step later
        if live and chance.random() < ABORTS and metric(llm, "num_preemptions"):
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


def scheduled(model: Any, block_length: int) -> dict[str, Any]:
    """Engine options for a schedule that drafts whole blocks, three tokens or none, the more the fewer run."""
    most = grouped_tokens(block_length, GROUPS)
    speculative = {"method": "draft_model", "model": str(model), "num_speculative_tokens": most}
    steps = [[1, 2, most], [3, 8, 3], [9, CONCURRENCY, 0]]
    return {"speculative_config": speculative | {"num_speculative_tokens_per_batch_size": steps}}


def on_nano(minutes: float, seed: int) -> list[Report]:
    """All features on nano, KV blocks for a few requests only; a report for each engine."""
    features = [*FEATURES.values(), *SAMPLED.values()]
    requests = [(prompt, params(**feature)) for prompt in prompts() for feature in features]
    common: dict[str, Any] = linear(16, groups=GROUPS) | OPTIONS | {"max_model_len": 512}
    tight = {"max_num_batched_tokens": 256, "num_gpu_blocks_override": 40}
    reports = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        users = [user.request for user in two_loras(checkpoint_path(), Path(folder))]
        plain = answered(checkpoint_path(), requests, **common)
        adapted = answered(checkpoint_path(), requests[::3], users, **common, **USER_LORA)  # each feature once
        allow_async(patch)
        for works, loras in ((plain, {}), (adapted, USER_LORA)):
            for schedule in ({}, scheduled(checkpoint_path(), 16)):
                if loras:  # vLLM's least
                    tight["max_num_batched_tokens"] = CONCURRENCY * (grouped_tokens(16, GROUPS) + 1)
                with engine(checkpoint_path(), **common, **tight, **loras, **schedule) as llm:
                    reports.append(soak(llm, works, seconds=minutes * 15, seed=seed))
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler and the worker are looked at in the end
    reports = on_nano(args.minutes, args.seed)
    for report in reports:
        print(json.dumps(asdict(report) | {"wrong": len(report.wrong)}))
        for features, count in Counter(report.wrong).most_common(5):
            print(count, features)
    good = [not report.wrong and report.finished and report.aborted and report.preempted for report in reports]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
