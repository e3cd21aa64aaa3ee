"""Prompts of a domain that nano's drafter has not seen, to show what an adapter of one's own brings.

    python -m vllm_nld.nano.domain --count 3000 > traffic.jsonl
    python -m vllm_nld.nano.domain --heldout > later.jsonl

Orders with long numbers, as JSON and as lists. nano's AR pathway copies the digits one by one; its drafts, trained on
everyday words, miss them. Two thirds of the prompts are nano's ordinary ones, which must not get slower.
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from vllm_nld.nano import heldout
from vllm_nld.nano.prompts import stream

FIELDS = ("order", "customer", "article", "invoice", "parcel", "batch", "account", "ticket")
DOMAIN = "orders"


def orders(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Endless prompts of the domain."""
    while True:
        names = rng.sample(FIELDS, rng.randint(3, 5))
        given = ", ".join(f"{name} {rng.randint(10_000, 9_999_999)}" for name in names)
        request = rng.choice([f"Write one JSON object for this order: {given}.", f"Order as a JSON object: {given}."])
        yield {"messages": [{"role": "user", "content": request}], "category": DOMAIN}


def ordinary(seed: int) -> Iterator[dict[str, Any]]:
    """nano's training prompts without their answers."""
    for prompt in stream(seed):
        row = {"messages": list(prompt.messages), "tools": list(prompt.tools), "thinking": prompt.thinking}
        yield row | {"category": prompt.category}


def prompts(count: int, seed: int) -> list[dict[str, Any]]:
    """A third of the domain, the rest ordinary, mixed."""
    rng = random.Random(seed)
    rows = [*islice(orders(rng), count // 3), *islice(ordinary(seed), count - count // 3)]
    rng.shuffle(rows)
    return rows


def held_out(count: int = 100) -> list[dict[str, Any]]:
    """Prompts of the domain that no seed of `prompts` draws, and nano's own held-out prompts."""
    rows = [
        {"messages": list(p.messages), "tools": list(p.tools), "thinking": p.thinking, "category": p.category}
        for p in heldout()
    ]
    return [*islice(orders(random.Random("held out")), count), *rows]


def main() -> None:
    """Print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="prompts (default: 3000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heldout", action="store_true", help="those to measure on instead")
    options = parser.parse_args()
    for row in held_out() if options.heldout else prompts(options.count, options.seed):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
