"""Predicted speed of every mode, by concurrency and block length, on machines that we don't have and on this one.

The analytic model with data-sheet figures (`vllm_nld.roofline`) is compared with published figures of the 8B model and
with what `bench steps` measured here. It is not fitted to the figures it is compared with.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.results import RESULTS
from vllm_nld.evaluate.spread import table
from vllm_nld.roofline.costs import (
    Mode,
    Model,
    acceptance_length,
    ar,
    diffusion,
    eagle,
    layers_seconds,
    linear,
    quadratic,
    tokens_per_second,
    tree,
)
from vllm_nld.roofline.devices import DEVICES, Device
from vllm_nld.roofline.published import ACCEPTANCE_LENGTHS, BEST_BLOCK, CROSSOVER, GB200, GB200_TUNED, SPARSE, TPF
from vllm_nld.roofline.shapes import SHAPES, nano
from vllm_nld.tools.provenance import describe, provenance

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128)
BLOCKS = (4, 8, 16, 32)
EAGLE_DRAFTS = 5  # the usual chain length; the published figure doesn't give its own
# Measured on nano: tokens of a round relative to a chain of 31 drafts, by nodes, `results/modes-trees.json`; tokens per
# forward after the prefill relative to that chain's, by groups of masks, blocks of 32, `results/groups.json`.
TREES = {31: 1.07, 48: 1.12, 64: 1.16, 96: 1.18, 128: 1.19}
GROUPS = {1: 1.27, 2: 1.39, 3: 1.47, 4: 1.53, 5: 1.57}
ON_NANO = "if as on nano"
WITH_LORA = ACCEPTANCE_LENGTHS["linear, LoRA"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=list(SHAPES), default="8b", help="the model to predict (default: 8b)")
    parser.add_argument("--context", type=int, default=1024, help="tokens before each block (default: 1024)")
    parser.add_argument("--steps", type=Path, nargs="+", help="`bench steps --json` results to compare with")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Print and return the comparisons and the forecasts."""
    model = Model.whole(SHAPES[options.shape], options.context)
    files = options.steps or sorted(RESULTS.glob("steps-*.json"))
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    left = overheads(measured)
    result: dict[str, Any] = {
        "provenance": provenance(),
        "shape": options.shape,
        "context": options.context,
        "published": against_published(options.context),
        "forecast": {name: forecast(model, device) for name, device in DEVICES.items()},
        "outgrown": {
            name: {mode.name: outgrown(model, device, mode, [ar(), *chains()]) for mode in trees()}
            | {
                mode.name: outgrown(model, device, mode, [ar(), *chains(), *trees()])
                for mode in (*published(), *groups())
            }
            for name, device in DEVICES.items()
        },
        "cpu": left,
        "measured": [row for steps in measured if left and steps["cpu_rates"] for row in against_steps(steps, left)],
    }
    print(report(result))
    return result


def modes() -> list[Mode]:
    """The modes to compare."""
    return [ar(), *chains(), *trees(), diffusion(32, per_forward("diffusion")), *published(), *groups()]


def chains() -> list[Mode]:
    """Linear, with estimated acceptance at other block lengths than 32."""
    return [linear(block, acceptance_length(block, WITH_LORA)) for block in BLOCKS]


def trees() -> list[Mode]:
    """Linear with draft trees that gain as much as nano's."""
    return [tree(32, nodes, gain * WITH_LORA) for nodes, gain in TREES.items()]


def published() -> list[Mode]:
    """Quadratic by NVIDIA's tokens per forward, and with as many groups as were simulated."""
    full = per_forward("quadratic")
    return [quadratic(32, full), *(quadratic(32, share * full, count) for count, share in SPARSE.items())]


def groups() -> list[Mode]:
    """Quadratic whose groups of masks gain as much as nano's."""
    modes = [quadratic(32, gain * WITH_LORA / 2, count) for count, gain in GROUPS.items()]
    return [replace(mode, name=f"{mode.name}, {ON_NANO}") for mode in modes]


def per_forward(mode: str) -> float:
    """Tokens per forward on the tasks that `linear`'s acceptance length is of.

    NVIDIA's are of other tasks, on which `linear` yields more as well, so only their ratio to `linear`'s is of use.
    """
    return WITH_LORA / 2 * TPF[mode] / TPF["linear"]


def forecast(model: Model, device: Device) -> dict[str, dict[str, float]]:
    """Tokens/s by mode and concurrency."""
    return {mode.name: {str(c): tokens_per_second(model, device, mode, c) for c in CONCURRENCIES} for mode in modes()}


def against_published(context: int) -> list[dict[str, Any]]:
    """Each published figure of the 8B model, its prediction, and the error."""
    model, rows = Model.whole(SHAPES["8b"], context), []

    def compare(what: str, published: float, predicted: float) -> None:
        rows.append({"what": what, "published": published, "predicted": predicted, "error": predicted / published - 1})

    gb200 = {
        "AR": tokens_per_second(model, DEVICES["GB200"], ar(), 1),
        "Eagle3": tokens_per_second(model, DEVICES["GB200"], eagle(EAGLE_DRAFTS, ACCEPTANCE_LENGTHS["Eagle3"]), 1),
        "linear": tokens_per_second(model, DEVICES["GB200"], linear(32, WITH_LORA), 1),
    }
    for name, figure in GB200.items():
        compare(f"GB200, one request, {name}, tokens/s", figure, gb200[name])
    compare("GB200, one request, linear with tuned kernels, tokens/s", GB200_TUNED, gb200["linear"])
    compare("GB200, one request, linear / AR", GB200["linear"] / GB200["AR"], gb200["linear"] / gb200["AR"])
    b200 = forecast(model, DEVICES["B200"])
    loses = crossover(model, DEVICES["B200"], linear(32, WITH_LORA))
    compare("B200, concurrency from which linear, B 32, loses to AR", CROSSOVER, loses)
    for concurrency, block in BEST_BLOCK.items():
        compare(f"B200, best block length at concurrency {concurrency}", block, best_block(b200, concurrency))
    return rows


def crossover(model: Model, device: Device, mode: Mode) -> float:
    """The lowest concurrency at which AR is faster than the mode; infinite if there is none up to 1024."""
    for concurrency in range(1, 1025):
        if tokens_per_second(model, device, ar(), concurrency) > tokens_per_second(model, device, mode, concurrency):
            return concurrency
    return float("inf")


def outgrown(model: Model, device: Device, own: Mode, others: Sequence[Mode]) -> float:
    """The lowest concurrency at which the best of the others is as fast as this mode; infinite if none."""
    for concurrency in range(1, 1025):
        best = max(tokens_per_second(model, device, other, concurrency) for other in others)
        if best >= tokens_per_second(model, device, own, concurrency):
            return concurrency
    return float("inf")


def best_block(speeds: dict[str, dict[str, float]], concurrency: int) -> int:
    """The block length of linear mode with the most tokens/s."""
    return max(BLOCKS, key=lambda block: speeds[f"linear, B {block}"][str(concurrency)])


# This machine


def overheads(measured: list[dict[str, Any]]) -> dict[str, float] | None:
    """Seconds per layer and per forward in nano's AR step that the CPU's rates don't explain; None if not measured."""
    steps = next((m for m in measured if m["shape"] == "nano" and m["cpu_rates"]), None)
    if steps is None:
        return None
    samples = steps["spans"]["1"]["1"]
    host = statistics.median(sum(s.get(k, 0) for k in ("sampling", "host")) for s in samples) / 1e3
    forward = statistics.median(s["verify forward"] for s in samples) / 1e3
    model = Model(nano(), nano().layers, steps["context"])
    rest = forward - layers_seconds(model, cpu_of(steps, {"launch": 0.0, "host": host}), 1, 1, model.layers)
    return {"launch": max(0.0, rest) / model.layers, "host": host}


def cpu_of(steps: dict[str, Any], left: dict[str, float]) -> Device:
    """The CPU with the rates measured alongside these steps."""
    read, multiply = (statistics.median(rates) for rates in zip(*steps["cpu_rates"], strict=True))
    return Device("this CPU", read, multiply, left["launch"], left["host"], 1.0, 1.0)


def against_steps(steps: dict[str, Any], left: dict[str, float]) -> list[dict[str, Any]]:
    """Every step that `bench steps` measured, with its prediction."""
    cpu = cpu_of(steps, left)
    shape = nano() if steps["shape"] == "nano" else SHAPES[steps["shape"]]
    model = Model(shape, steps["layers"] or shape.layers, steps["context"])
    rows = []
    for block, batches in steps["spans"].items():
        for batch, samples in batches.items():
            length = min(steps["synthetic_acceptance_length"], int(block))
            mode = ar() if block == "1" else linear(int(block), length)
            seconds = statistics.median(sum(sample.values()) for sample in samples) / 1e3
            speed, predicted = int(batch) * mode.tokens / seconds, tokens_per_second(model, cpu, mode, int(batch))
            layers = "" if steps["layers"] is None else f", {steps['layers']} layers"
            what = f"{steps['shape']}{layers}, {mode.name}, {batch} at a time"
            rows.append(
                {"what": what, "model": steps["shape"], "mode": mode.name, "batch": int(batch), "measured": speed}
                | {"predicted": predicted, "error": predicted / speed - 1}
            )
    return rows


# The report


def report(result: dict[str, Any]) -> str:
    parts = [describe(result["provenance"]), "Published figures of the 8B model and the analytic model's predictions:"]
    parts.append(comparison(result["published"], "published"))
    parts.append(
        f"The fastest lossless mode by concurrency, {result['shape']}, {result['context']} tokens of context, tokens/s:"
    )
    parts.append(winners(result["forecast"]))
    parts.append(
        "Draft trees, grown from blocks of 32, against the fastest chain: × at one request, and the number of requests "
        "from which a chain, of whatever length, or AR is as fast. The acceptance is the 8B model's chain's, times the "
        "gain of trees on nano:"
    )
    parts.append(against(result, [mode.name for mode in trees()], [mode.name for mode in chains()]))
    rivals = [mode.name for mode in (*chains(), *trees())]
    parts.append(
        "Quadratic self-speculation against the fastest chain or tree, in the same way: 1 request means that it is "
        "never faster. By NVIDIA's tokens per forward, and if groups of masks gain as much as on nano:"
    )
    parts.append(against(result, [mode.name for mode in published()], rivals))
    parts.append(against(result, [mode.name for mode in groups()], rivals))
    if result["measured"]:
        cpu = result["cpu"]
        parts.append(
            "This CPU's rates are measured alternately with the steps. Beyond them it takes "
            f"{cpu['launch'] * 1e3:.2f} ms per layer and {cpu['host'] * 1e3:.2f} ms per forward (from nano's AR step). "
            "Tokens/s measured by `bench steps` and predicted by the model:"
        )
        parts.append(comparison(result["measured"], "measured"))
    return "\n\n".join(parts)


def comparison(rows: list[dict[str, Any]], key: str) -> str:
    return table(
        ["figure", key, "predicted", "error"],
        [[row["what"], figure(row[key]), figure(row["predicted"]), f"{row['error']:+.0%}"] for row in rows],
    )


def figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def winners(forecasts: dict[str, dict[str, dict[str, float]]]) -> str:
    """The fastest lossless mode, its speed, and its gain over AR."""
    rows = []
    for device, speeds in forecasts.items():
        row = [device]
        for concurrency in map(str, CONCURRENCIES):
            lossless = [name for name in speeds if not name.startswith("diffusion") and not name.endswith(ON_NANO)]
            name = max(lossless, key=lambda mode: speeds[mode][concurrency])
            gain = speeds[name][concurrency] / speeds["AR"][concurrency]
            row.append(f"{name}: {speeds[name][concurrency]:.0f} (× {gain:.1f})")
        rows.append(row)
    return table(["device", *map(str, CONCURRENCIES)], rows)


def against(result: dict[str, Any], names: Sequence[str], rivals: Sequence[str]) -> str:
    """These modes at one request, relative to the fastest rival, and when they are outgrown."""
    rows = []
    for device, speeds in result["forecast"].items():
        best = max(speeds[rival]["1"] for rival in rivals)
        until = result["outgrown"][device]
        rows.append([device, *(f"× {speeds[name]['1'] / best:.2f}; {figure(until[name])}" for name in names)])
    return table(["device", *names], rows)


def discussion() -> str:
    """An explanation of the errors. It quotes no measured figures, so it doesn't become outdated."""
    return DISCUSSION


DISCUSSION = """\
The constants are generic and none is fitted: 80 % of the data sheet's bandwidth, 60 % of its arithmetic, ten launches
of 3 µs per layer, 0.3 ms of host work per forward. With one request AR and linear are bound by reading the weights,
whose size is known, so they and their ratio are predicted best. Tuned kernels beat the constants. Eagle3's published
figure doesn't say how long its drafts were or what its drafter's launches cost; the model assumes a chain of five with
no gaps, which is too optimistic. For block lengths other than 32 the acceptance length assumes the same accept
probability at all positions; where the published best block is longer than predicted, real drafts stay right longer.

On the CPU some predictions are off by more than 25 %, for three reasons. First, the model takes the longer of reading
and multiplying, as on a GPU. A CPU core does both, so a product of 32 rows takes nearly the sum, and small products, as
in nano, run far below the rate of large ones: forwards of whole blocks are slower than predicted. Second, host work is
taken from an AR step, and a draft pass has more of it. That matters only for nano; for a released shape it is a few per
cent. Third, a virtual machine shares its memory: the ranges of the steps show how much its rate varies in one run."""
