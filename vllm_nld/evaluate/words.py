"""The first paragraphs of a report, in words: which mode to use for which tag, what it saves, what a person must check.

best = choose(figures["all"], "ar")         # the fastest variant that isn't worse than the baseline
paragraphs(figures, variants, "ar")         # list of sentences
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_nld.evaluate.figures import ALL, Figures
from vllm_nld.evaluate.statistics import LEVEL, prompts_needed
from vllm_nld.evaluate.variant import Variant

MARGIN = 0.01  # a mode whose accuracy is lower than the baseline's by more than this isn't recommended


def acceptable(row: Mapping[str, Any], margin: float = MARGIN) -> bool:
    """Whether a variant's accuracy may be recommended: at most `margin` below the baseline's and not shown to be worse.

    Without checks, only if nearly all of its texts are the baseline's.
    """
    pair = row["against"]
    if pair is None:
        return bool(row["agreement"] and row["agreement"][0] >= 1 - margin)
    worse = pair["difference"] < 0 and pair.get("significant", False)
    return not worse and pair["difference"] >= -margin


def surely_faster(row: Mapping[str, Any]) -> bool:
    """Whether a variant is faster than the baseline beyond doubt; a single turn leaves doubt."""
    return row["speedup"] is not None and row["pairs"] > 1 and row["speedup"][1] > 1


def choose(by_variant: Mapping[str, Mapping[str, Any]], baseline: str, margin: float = MARGIN) -> str:
    """The fastest acceptable variant; the baseline unless another one is faster for sure."""
    faster = {
        name: row["speedup"][0]
        for name, row in by_variant.items()
        if name != baseline and acceptable(row, margin) and surely_faster(row)
    }
    return max(faster, key=faster.__getitem__) if faster else baseline


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def recommendation(name: str, row: Mapping[str, Any], base: Mapping[str, Any], baseline: str, config: str) -> str:
    """What to use for all prompts, and what it saves."""
    if name == baseline:
        return (
            f"Use `{baseline}`: no other mode was faster than it beyond doubt without being less accurate on these "
            f"prompts. Send more prompts, or prompts more like your traffic, before you conclude more."
        )
    gain, low, high = row["speedup"]
    saved = "" if row["gpu_seconds"] is None else f", and takes {percent(1 - 1 / gain, 0)} less GPU time per response"
    text = (
        f"Use `{name}` (`{config}`): it answers {gain:.2f} [{low:.2f}, {high:.2f}] times as fast as `{baseline}`{saved}"
    )
    if row["against"] is None:
        return f"{text}. {percent(row['agreement'][0], 0)} of its texts are `{baseline}`'s; no prompt has a check."
    return (
        f"{text}. It answers {percent(row['accuracy'][0])} of the {row['checked']} checked prompts correctly, "
        f"`{baseline}` {percent(base['accuracy'][0])}."
    )


def exceptions(found: Figures, best: str, baseline: str) -> str:
    """The tags for which another variant is better; empty if there are none."""
    others: dict[str, list[str]] = {}
    for tag, by_variant in found.items():
        if tag != ALL and by_variant[best]["speedup"] is not None and (name := choose(by_variant, baseline)) != best:
            if acceptable(by_variant[best]) and name != baseline:
                gain = by_variant[name]["speedup"][0] / by_variant[best]["speedup"][0]
                if gain < 1.1:  # not worth a second setting
                    continue
            elif acceptable(by_variant[best]):
                continue
            others.setdefault(name, []).append(tag)
    return " ".join(f"For {listed(tags)} use `{name}` instead." for name, tags in others.items())


def warnings(by_variant: Mapping[str, Mapping[str, Any]], baseline: str) -> str:
    """The variants that are faster and worse."""
    lines = []
    for name, row in by_variant.items():
        pair = row["against"]
        if name == baseline or pair is None or acceptable(row) or row["speedup"] is None:
            continue
        sure = f"p = {pair['p']:.2g}" if pair["p"] >= 0.001 else "p < 0.001"
        if not pair["significant"]:
            sure += ", so chance may explain it"
        lines.append(
            f"`{name}` ({row['speedup'][0]:.2f} times as fast) answers {100 * -pair['difference']:.1f} points fewer "
            f"correctly ({sure})."
        )
    return " ".join(lines)


def to_check(found: Figures, variants: Sequence[Variant], best: str, baseline: str) -> str:
    """What a person has to look at before the recommendation counts."""
    row, lossless = found[ALL][best], {variant.name: variant.lossless for variant in variants}
    items = []
    if unchecked := row["rows"] - row["checked"]:
        items.append(f"{unchecked} of {row['rows']} prompts whose answers nothing checked")
    if row["failed"]:
        items.append(f"{row['failed']} failed requests")
    if row["refused"]:
        items.append(f"{row['refused']} answers that look like refusals")
    if row["cut"]:
        items.append(f"{row['cut']} answers that were cut at max_tokens")
    different = 0 if row["agreement"] is None else round((1 - row["agreement"][0]) * row["rows"])
    if best != baseline and different:
        why = "which greedy decoding in fp32 would not have" if lossless.get(best) else "side by side below"
        items.append(f"{different} answers that differ from `{baseline}`'s, {why}")
    pair = row["against"]
    if best != baseline and pair is not None and not lossless.get(best):
        more = prompts_needed(MARGIN, (pair["gained"] + pair["lost"]) / pair["prompts"])
        if more > pair["prompts"]:
            items.append(f"about {more} checked prompts would tell a difference of {100 * MARGIN:g} points from chance")
    items.append("whether the checks ask for the right thing" if row["checked"] else "a sample of the answers")
    return f"A person should check: {'; '.join(items)}."


def listed(names: Sequence[str]) -> str:
    quoted = [f"“{name}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def paragraphs(found: Figures, variants: Sequence[Variant], baseline: str) -> list[str]:
    """The summary: recommendation, exceptions by tag, warnings, and what to check."""
    best = choose(found[ALL], baseline)
    config = next((variant.config for variant in variants if variant.name == best and variant.mode), "")
    first = recommendation(best, found[ALL][best], found[ALL][baseline], baseline, config)
    level = f"Differences are called significant at {100 * LEVEL:.0f} %, adjusted for the number of comparisons."
    parts = [" ".join(filter(None, [first, exceptions(found, best, baseline)])), warnings(found[ALL], baseline)]
    return [part for part in [*parts, to_check(found, variants, best, baseline), level] if part]
