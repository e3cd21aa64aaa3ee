"""The plan in words and as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_nld.plan.figures import LATENCIES


def text(plan: Mapping[str, Any]) -> str:
    """The answer first, then every kind of GPU in every mode, then what the figures rest on."""
    return "\n\n".join([answer(plan), table(plan["rows"]), basis(plan)])


def answer(plan: Mapping[str, Any]) -> str:
    """Which fleet, for what."""
    goal = ", ".join(f"P95 {LATENCIES[name]} ≤ {value:g} s" for name, value in plan["targets"].items())
    head = f"{plan['model']}, {plan['traffic']}" + (f"; {goal}." if goal else ".")
    rows = [row for row in plan["rows"] if row["figures"]]
    if not plan["searched"]:
        return head
    if not rows:
        return f"{head}\nNo fleet that was tried meets this: see --max-replicas, another mode, or another kind of GPU."
    priced = [row for row in rows if row["cost_per_million"] is not None]
    best = min(priced or rows, key=order)
    fleet = f"{best['gpus']} × {best['gpu']} in mode {best['mode']}"
    if priced:
        return f"{head}\nCheapest: {fleet}, {best['cost_per_million']:.2f} per million output tokens."
    return f"{head}\nFewest GPUs: {fleet}."


def order(row: Mapping[str, Any]) -> tuple[float, int, float]:
    """What a fleet costs, to the cent that is printed, and its GPUs; of equals, the faster one comes first."""
    cost = row["cost_per_million"]
    return 0.0 if cost is None else round(cost, 2), row["gpus"], row["figures"]["p95"]["latency"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per kind of GPU and mode."""
    header = ["GPU", "mode", "GPUs", *(f"{name}, P50 / P95 s" for name in LATENCIES)]
    header += ["tokens/s", "busy", "AL", "GPU-s / M tokens", "cost / M tokens"]
    lines = [header, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(padded)


def cells(row: Mapping[str, Any]) -> list[str]:
    found = row["figures"]
    if found is None:
        return [row["gpu"], row["mode"], "none meets it", *["–"] * (len(LATENCIES) + 5)]
    times = [f"{seconds(found['p50'][name])} / {seconds(found['p95'][name])}" for name in LATENCIES]
    cost = "–" if row["cost_per_million"] is None else f"{row['cost_per_million']:.2f}"
    busy = f"{found['busy']:.0%}" + (", piles up" if found["saturated"] else "")
    length = f"{found['acceptance_length']:.2f}"
    end = [f"{found['tokens_per_second']:.0f}", busy, length, f"{row['gpu_seconds_per_million']:.0f}", cost]
    return [row["gpu"], row["mode"], str(row["gpus"]), *times, *end]


def seconds(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def basis(plan: Mapping[str, Any]) -> str:
    """What the figures rest on."""
    times = ", ".join(f"{kind}: {source}" for kind, source in plan["step_times"].items())
    parts = [
        f"Step times: {times}.",
        f"Acceptance: {plan['acceptance_length']:.2f} tokens per round with blocks of {plan['block_length']}.",
    ]
    if any((row["replicas"] or 0) > plan["shard"] for row in plan["rows"]):
        parts.append(f"Fleets of more than {plan['shard']} replicas: {plan['shard']} are simulated, with their share.")
    if "roofline" in plan["step_times"].values():
        parts.append("The roofline is not fitted to any GPU: measure (`python -m bench gpu_check`), give --curves.")
    return " ".join(parts)
