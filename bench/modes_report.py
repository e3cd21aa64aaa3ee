"""The Markdown tables of a `bench modes` result."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.contenders import AR, AR_SETTING, AUTO, CHAINS, CONTENDERS, FIXED, STOCK_AR, TREES
from bench.load import MOVING
from vllm_nld.evaluate.spread import CONFIDENCE, interval, ratios, spread, table
from vllm_nld.tools.provenance import describe

POSITIONS = (1, 2, 4, 8, 16, 31)  # in a draft


def report(result: dict[str, Any]) -> str:
    """The whole report: summary, tokens/s, ratios, latencies, acceptance."""
    parts = [method(result), summary(result)]
    if AUTO in result["speed"]:
        parts += [
            "`auto` compared with the fixed settings of the same server, ratio of tokens/s (the best: the one with the "
            "lowest ratio at that load):",
            auto_table(result),
        ]
    parts += [f"Tokens/s by concurrency{moving_load(result)}:", throughput(result)]
    if rows := rows_table(result):
        parts += ["Tokens that a round computes, those that it yields, and what that is per forward:", rows]
    others = [
        (AR, "AR on the same build with the same flags"),
        (AR_SETTING, "AR requests in the server that drafts"),
        (STOCK_AR, "stock vLLM AR on its default runner"),
    ]
    for other, name in [*others, *((chain, chain) for chain in CHAINS if has_trees(result))]:
        if other in result["speed"]:
            parts += [f"Tokens/s, ratio to {name}:", ratio_table(result, other)]
    parts += ["Latencies in milliseconds, median of the rounds, P50 / P95 (ITL: between two chunks of a stream):"]
    parts += [
        latencies(result),
        "Share of verify steps that accept the draft at each position, and draft tokens committed and rolled back:",
    ]
    parts += [acceptance(result), "Acceptance length by category, weighted by verify steps:", categories(result)]
    return "\n\n".join(part for part in parts if part)


def method(result: dict[str, Any]) -> str:
    """How the result was measured."""
    plan = result["plan"]
    flags = " ".join([*plan["common"], *plan["flags"]])
    return (
        f"{result['model']}, {result['questions']} questions ({result['dataset']}), greedy, "
        f"{plan['rounds']} alternating rounds. Speeds: median (range); ratios: median of the pairs "
        f"[{CONFIDENCE} % confidence interval]. Flags of every server: `{flags}`.\n"
        f"{describe(result['provenance'])}"
    )


def concurrencies(result: dict[str, Any]) -> list[str]:
    return [str(value) for value in result["plan"]["concurrencies"]]


def loads(result: dict[str, Any]) -> list[str]:
    """The concurrencies, and the moving load if any contender was timed under it."""
    moves = any(MOVING in samples for samples in result["speed"].values())
    return [*concurrencies(result), MOVING] if moves else concurrencies(result)


def moving_load(result: dict[str, Any]) -> str:
    """What the moving load is; empty if there was none."""
    if MOVING not in loads(result):
        return ""
    clients = [stage[0] for stage in result["plan"]["stages"]]
    return f", and under a load that moves from {clients[0]} to {max(clients)} clients and back to {clients[-1]}"


def speeds(result: dict[str, Any], name: str, concurrency: str) -> list[float]:
    """Tokens/s of each round; empty if not timed."""
    return [sample["tokens_per_s"] for sample in result["speed"][name].get(concurrency, [])]


def against(result: dict[str, Any], name: str, other: str, concurrency: str) -> list[float]:
    """Ratio of tokens/s, round by round."""
    ours, theirs = speeds(result, name, concurrency), speeds(result, other, concurrency)
    return ratios(ours, theirs) if ours and theirs else []


def same_texts(result: dict[str, Any], name: str) -> float | None:
    """Share of answers that equal AR's exactly; None if either has no answers."""
    ours, *others = (result["quality"].get(key) for key in (name, AR, AR_SETTING))
    theirs = others[0] or others[1]
    if not ours or not theirs:
        return None
    return statistics.mean(a == b for a, b in zip(ours["digests"], theirs["digests"], strict=True))


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def summary(result: dict[str, Any]) -> str:
    """One line per contender: answers, forwards, and the gain at the lowest and the highest concurrency."""
    low, high = concurrencies(result)[0], concurrencies(result)[-1]
    header = ["mode", "exact match", "same text as AR", "AL", "AL, mean of requests", "TPF", f"tokens/s at {low}"]
    header += [f"× AR at {low}", f"× stock at {low}", f"× AR at {high}"]
    rows = []
    for name in result["speed"]:
        quality = result["quality"].get(name) or {}
        row = [name, number(quality.get("exact"), ".1%"), number(same_texts(result, name), ".0%")]
        row += [number(quality.get(key), ".2f") for key in ("acceptance_length", "acceptance_length_mean", "tpf")]
        row.append(spread(speeds(result, name, low), 0))
        for other, at in ((AR, low), (STOCK_AR, low), (AR, high)):
            timed = other in result["speed"]
            row.append("1" if name == other else interval(against(result, name, other, at), 2) if timed else "–")
        rows.append(row)
    return table(header, rows)


def throughput(result: dict[str, Any]) -> str:
    at = loads(result)
    rows = [[name, *(spread(speeds(result, name, c), 0) for c in at)] for name in result["speed"]]
    return table(["mode", *at], rows)


def ratio_table(result: dict[str, Any], other: str) -> str:
    at, names = loads(result), [name for name in result["speed"] if name != other]
    return table(["mode", *at], [[name, *(interval(against(result, name, other, c), 2) for c in at)] for name in names])


def has_trees(result: dict[str, Any]) -> bool:
    """Whether anything was measured that is an alternative to a chain of drafts."""
    return any(name in TREES for name in result["speed"])


def rows_table(result: dict[str, Any]) -> str:
    """Rows and tokens of a round of chains, trees and groups; empty without trees and groups."""
    if not has_trees(result):
        return ""
    header, rows = ["mode", "rows", "tokens", "× linear, B 32", "TPF"], []
    chain = result["quality"].get("linear, B 32")
    for name in result["speed"]:
        computed, quality = CONTENDERS[name].rows, result["quality"][name]
        if computed and quality:
            tokens = quality["acceptance_length"]
            gain = tokens / chain["acceptance_length"] if chain else None
            rows.append([name, str(computed), *(number(value, ".2f") for value in (tokens, gain, quality["tpf"]))])
    return table(header, rows)


def auto_table(result: dict[str, Any]) -> str:
    """`auto` against the best fixed setting at each load, and against each of them."""
    at, names = loads(result), [name for name in FIXED if name in result["speed"]]
    best = [f"{AUTO} / best fixed", *(best_cell(result, names, c) for c in at)]
    rows = [[f"{AUTO} / {name}", *(interval(against(result, AUTO, name, c), 2) for c in at)] for name in names]
    return table(["", *at], [best, *rows])


def best_cell(result: dict[str, Any], names: Sequence[str], concurrency: str) -> str:
    """The lowest ratio of `auto` to a fixed setting, and that setting."""
    found = {name: gains for name in names if (gains := against(result, AUTO, name, concurrency))}
    if not found:
        return "–"
    name = min(found, key=lambda setting: statistics.median(found[setting]))
    return f"{interval(found[name], 2)}, {name}"


def latencies(result: dict[str, Any]) -> str:
    rows = []
    for name, samples in result["speed"].items():
        for concurrency, runs in samples.items():
            if "ttft_ms" in runs[0]:
                cells = [middle(runs, kind) for kind in ("ttft_ms", "itl_ms", "tpot_ms", "latency_ms")]
                rows.append([name, concurrency, *cells])
    return table(["mode", "concurrency", "TTFT", "ITL", "time per token", "end to end"], rows)


def middle(runs: Sequence[dict[str, Any]], kind: str) -> str:
    return " / ".join(f"{statistics.median(run[kind][p] for run in runs):.1f}" for p in ("p50", "p95"))


def acceptance(result: dict[str, Any]) -> str:
    """Acceptance by position and draft token counts; empty if nothing speculates."""
    rows = []
    for name, quality in result["quality"].items():
        if quality and quality["by_position"]:
            rates = quality["by_position"]
            row = [name, *(f"{rates[p - 1]:.0%}" if p <= len(rates) else "–" for p in POSITIONS)]
            kept, lost = quality["kept"], quality["rolled_back"]
            rows.append([*row, str(kept), str(lost), f"{kept / max(lost, 1):.2f}"])
    header = ["mode", *(f"P{p}" for p in POSITIONS), "committed", "rolled back", "commit / rollback"]
    return table(header, rows) if rows else ""


def categories(result: dict[str, Any]) -> str:
    """Acceptance length by category; empty if nothing speculates."""
    found = {name: q["by_category"] for name, q in result["quality"].items() if q and q["by_position"]}
    if not found:
        return ""
    names = list(next(iter(found.values())))
    rows = [[c, *(number(found[name][c]["acceptance_length"], ".2f") for name in found)] for c in names]
    return table(["category", *found], rows)
