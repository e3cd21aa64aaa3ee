"""When requests come, and how long they are: drawn from a rate and distributions, or read from a trace or a log.

lengths = parse("lognormal:600,p95=2000", "prompt")     # also 512, uniform:100-900, exponential:300
requests = poisson(20.0, 120.0, prompts, outputs, random.Random(0))
requests = read_trace(Path("log.jsonl"))                # timestamps and token counts under their usual names
"""

import csv
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

Lengths = Callable[[random.Random], int]  # draws a number of tokens, at least 1

P95 = 1.6448536269514722  # of the standard normal distribution
TIMES = ("timestamp", "time", "arrival", "arrived", "created", "ts")
PROMPTS = ("prompt_tokens", "input_tokens", "contexttokens", "input_length", "prompt_length", "prompt")
OUTPUTS = ("output_tokens", "completion_tokens", "generatedtokens", "output_length", "output")
KINDS = ("kind", "category", "tag")


class Request(NamedTuple):
    """One request. kind: which acceptance curve it has; empty: the common one."""

    arrival: float  # seconds
    prompt: int  # tokens
    output: int  # tokens, at least 1
    kind: str = ""


def parse(text: str, name: str) -> Lengths:
    """A distribution of lengths, by its description. Raises ValueError that names the option and says what is possible.

    512 · uniform:100-900 · exponential:300 · lognormal:600,p95=2000 (the mean and the 95th percentile).
    """
    kind, _, rest = text.partition(":")
    try:
        if not rest:
            return fixed(int(kind))
        if kind == "uniform":
            low, high = (int(part) for part in rest.split("-"))
            return uniform(low, high)
        if kind == "exponential":
            return exponential(float(rest))
        if kind == "lognormal":
            mean, _, high_text = rest.partition(",p95=")
            return lognormal(float(mean), float(high_text))
        raise ValueError("unknown distribution")
    except ValueError as error:
        forms = "512, uniform:100-900, exponential:300 or lognormal:600,p95=2000"
        raise ValueError(f"--{name} {text!r} ({error}): write {forms}") from None


def fixed(tokens: int) -> Lengths:
    if tokens < 1:
        raise ValueError("at least 1 token")
    return lambda rng: tokens


def uniform(low: int, high: int) -> Lengths:
    if not 1 <= low <= high:
        raise ValueError("from at least 1, upwards")
    return lambda rng: rng.randint(low, high)


def exponential(mean: float) -> Lengths:
    """Whole numbers with this mean whose spread is as large as it."""
    if not mean > 1:
        raise ValueError("a mean above 1")
    rate = -math.log(1 - 1 / mean)  # a geometric distribution
    return lambda rng: 1 + int(rng.expovariate(rate))


def lognormal(mean: float, p95: float) -> Lengths:
    """Lengths with this mean and 95th percentile."""
    spread = P95**2 - 2 * math.log(p95 / mean) if mean > 0 and p95 > 0 else -1
    if not (mean >= 1 and p95 > mean and spread > 0):
        raise ValueError(f"the 95th percentile must lie between the mean and {math.exp(P95**2 / 2):.2f} times the mean")
    sigma = P95 - math.sqrt(spread)
    mu = math.log(mean) - sigma**2 / 2
    return lambda rng: max(1, round(rng.lognormvariate(mu, sigma)))


def drawn_from(pairs: Sequence[Request]) -> tuple[Lengths, Lengths]:
    """Prompt and output lengths of a sample. Both are drawn from the same request if called in turn."""
    chosen: list[Request] = []

    def prompt(rng: random.Random) -> int:
        chosen[:] = [rng.choice(pairs)]
        return chosen[0].prompt

    return prompt, lambda rng: (chosen.pop() if chosen else rng.choice(pairs)).output


def poisson(
    rate: float, seconds: float, prompts: Lengths, outputs: Lengths, rng: random.Random, burstiness: float = 1.0
) -> list[Request]:
    """Requests over some time at a mean rate per second.

    burstiness: 1 is a Poisson process, less comes in bursts, more is evener; times between arrivals have a gamma
    distribution of this shape.
    """
    if not (rate > 0 and seconds > 0 and burstiness > 0):
        raise ValueError(f"rate {rate}, seconds {seconds} and burstiness {burstiness} must be above 0")
    requests: list[Request] = []
    now = rng.gammavariate(burstiness, 1 / (rate * burstiness))
    while now < seconds:
        requests.append(Request(now, prompts(rng), outputs(rng)))
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return requests


def at_rate(requests: Sequence[Request], rate: float) -> list[Request]:
    """The same requests, faster or slower, so that they come at this mean rate."""
    if not rate > 0:
        raise ValueError(f"rate {rate} must be above 0")
    span = requests[-1].arrival
    if not span:
        raise ValueError("all requests of the trace come at once: it has no rate that could be changed")
    factor = (len(requests) - 1) / rate / span
    return [request._replace(arrival=request.arrival * factor) for request in requests]


def share(requests: Sequence[Request], part: float, rng: random.Random) -> list[Request]:
    """A random part of the requests: what a part of the fleet gets."""
    return [request for request in requests if rng.random() < part]


def read_trace(file: Path) -> list[Request]:
    """Requests from CSV with a header or from JSON lines, sorted; the first arrives at 0.

    Times are seconds or ISO 8601. Token counts may be in a field "usage", as in OpenAI's responses. Raises ValueError
    with the line and what it lacks.
    """
    requests = []
    for number, row in rows(file):
        fields = {str(key).casefold(): value for key, value in flat(row).items()}
        try:
            arrival = seconds_of(pick(fields, TIMES))
            prompt, output = (int(float(pick(fields, names))) for names in (PROMPTS, OUTPUTS))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        if min(prompt, output) < 1:
            continue  # it failed, or was aborted: it has cost nothing that can be known
        kind = next((str(fields[name]) for name in KINDS if fields.get(name)), "")
        requests.append(Request(arrival, prompt, output, kind))
    if not requests:
        raise ValueError(f"{file} has no requests with at least one prompt token and one output token")
    requests.sort()
    return [request._replace(arrival=request.arrival - requests[0].arrival) for request in requests]


def rows(file: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Line numbers and rows. Raises ValueError if the file cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the trace {file} cannot be read: {error}") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"the trace {file} is empty")
    if not lines[0][1].lstrip().startswith("{"):
        return list(enumerate(csv.DictReader(line for _, line in lines), 2))
    found = []
    for number, line in lines:
        try:
            found.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error})") from None
    return found


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the fields of its "usage" beside the others."""
    usage = row.get("usage")
    return {**row, **usage} if isinstance(usage, Mapping) else dict(row)


def pick(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if fields.get(name) not in (None, ""):
            return fields[name]
    raise KeyError(f"it has none of {', '.join(names)}")


def seconds_of(value: Any) -> float:
    """A number of seconds, or an ISO 8601 time."""
    try:
        return float(value)
    except ValueError:
        return datetime.fromisoformat(str(value)[:26].rstrip("Z")).timestamp()
