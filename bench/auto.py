"""Simulates the controller of mode `auto` against published forward times: does it choose the best block length?

    python -m bench auto

The real controller (`spec_worker.controller`) makes every choice. The machine is a table: milliseconds of a round by
block length and number of requests, from published forward times. Traffic is a survival curve through published yields;
each block's accepted length is drawn from it. AR's forward isn't published; it is taken from a table cell with as many
rows. Every step's time varies by 5 %.
"""

import argparse
import random
from collections import Counter
from typing import Any

import numpy as np

from spec_worker.controller import Controller, Load
from spec_worker.costs import rows_per_request
from vllm_nld.evaluate.spread import table
from vllm_nld.plan.acceptance import survival_curve, yields
from vllm_nld.roofline.published import FORWARD_CONCURRENCIES, FORWARD_MS, ROUND_YIELDS
from vllm_nld.tools.provenance import describe, provenance

STEPS, SETTLED = 1500, 300  # simulated steps, and the first ones that don't count
CALIBRATED = (1, 4, 16, 64, 128)  # numbers of requests that the simulated server measures at start-up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps per cell (default: {STEPS})")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate every published cell."""
    cells = [
        cell(model, requests, options.steps, options.seed) for model in FORWARD_MS for requests in FORWARD_CONCURRENCIES
    ]
    result = {"provenance": provenance(), "steps": options.steps, "cells": cells}
    print(report(result))
    return result


def report(result: dict[str, Any]) -> str:
    """Markdown: what the controller chose and what it cost, by model and number of requests."""
    rows = []
    for one in result["cells"]:
        fixed = one["fixed"]
        best = max(fixed, key=lambda length: fixed[length])
        values = [f"**{fixed[length]:.2f}**" if length == best else f"{fixed[length]:.2f}" for length in fixed]
        rows.append(
            [
                one["model"],
                str(one["requests"]),
                *values,
                str(one["chosen"]),
                f"{one['choice']:.3f}",
                f"{one['all']:.3f}",
            ]
        )
    header = ["model", "requests", *(f"B {length}" for length in result["cells"][0]["fixed"])]
    text = table([*header, "chosen", "choice / best", "with trials / best"], rows)
    return f"{describe(result['provenance'])}\n\nTokens per millisecond of forwards on a B200; bold: best.\n\n{text}"


def cell(model: str, requests: int, steps: int, seed: int) -> dict[str, Any]:
    """One model and one number of requests."""
    forwards, survival = FORWARD_MS[model], survival_curve(ROUND_YIELDS[model])
    lengths = (1, *forwards)
    controller = Controller(lengths, max(FORWARD_CONCURRENCIES))
    for count in CALIBRATED:
        for length in lengths:
            controller.costs.calibrate(length, count, round_ms(model, length, count))
    fixed = {length: requests * yields(survival, length) / round_ms(model, length, requests) for length in lengths}
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    tokens = milliseconds = 0.0
    chosen: Counter[int] = Counter()
    verified = 1
    for step in range(steps):
        length = controller.choose(Load(requests))
        took = round_ms(model, verified, requests) * rng.uniform(0.95, 1.05)
        reached = generator.random(requests)[:, None] < survival[None, : verified - 1]  # positions 1 to verified - 1
        accepted = reached.sum(axis=1).tolist() if verified > 1 else []
        controller.verified([verified - 1] * len(accepted), accepted)
        if verified == length:
            controller.took(verified, requests, requests * rows_per_request(verified), took)
        if step >= SETTLED:
            tokens += requests + sum(accepted)
            milliseconds += round_ms(model, verified, requests)
            chosen[length] += 1
        verified = length
    best, choice = max(fixed.values()), chosen.most_common(1)[0][0]
    return {
        "model": model,
        "requests": requests,
        "fixed": fixed,
        "chosen": choice,
        "choice": fixed[choice] / best,
        "all": tokens / milliseconds / best,
    }


def round_ms(model: str, length: int, requests: int) -> float:
    """Milliseconds of a round: two forwards, or AR's one."""
    forwards = FORWARD_MS[model]
    if length == 1:
        return float(np.interp(requests / 8, FORWARD_CONCURRENCIES, forwards[8]))
    return 2 * float(np.interp(requests, FORWARD_CONCURRENCIES, forwards[length]))
