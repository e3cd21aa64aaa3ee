"""Prompts of a domain that nano's drafter has not seen, to show what an adapter of one's own brings.

    python -m vllm_nld.nano.domain --count 3000 > traffic.jsonl
    python -m vllm_nld.nano.domain --heldout > later.jsonl

Records as JSON objects, with numbers of four digits. nano was trained on records with smaller numbers: its AR pathway
copies the digits all the same, and its drafts miss them. Two thirds of the prompts are nano's ordinary ones, which must
not get slower.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from vllm_nld.nano.prompts import Prompt, draw_heldout, stream
from vllm_nld.nano.words import ENTITIES, FIELDS

NUMBERS = [field for field in FIELDS if field.kind == "int"]
WORDS = [field for field in FIELDS if field.kind == "str"]
DOMAIN = "long numbers"


def records(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Endless prompts of the domain."""
    while True:
        numbers = [f"{field.name} {rng.randint(1000, 9999)}" for field in rng.sample(NUMBERS, rng.randint(2, 4))]
        words = [f"{field.name} {field.draw(rng)}" for field in rng.sample(WORDS, rng.randint(1, 2))]
        given = [*numbers, *words]
        rng.shuffle(given)
        request = f"Write one JSON object for this {rng.choice(ENTITIES)}: {', '.join(given)}."
        yield {"messages": [{"role": "user", "content": request}], "category": DOMAIN}


def rows(ordinary: Iterable[Prompt]) -> Iterator[dict[str, Any]]:
    """nano's own prompts without their answers."""
    for prompt in ordinary:
        row = {"messages": list(prompt.messages), "tools": list(prompt.tools), "thinking": prompt.thinking}
        yield row | {"category": prompt.category}


def prompts(count: int, seed: int) -> list[dict[str, Any]]:
    """A third of the domain, the rest ordinary, mixed."""
    rng = random.Random(seed)
    mixed = [*islice(records(rng), count // 3), *islice(rows(stream(seed)), count - count // 3)]
    rng.shuffle(mixed)
    return mixed


def held_out(count: int = 150, per_category: int = 150) -> list[dict[str, Any]]:
    """Prompts of the domain that no seed of `prompts` draws, and ordinary ones from the held-out side."""
    return [*islice(records(random.Random("held out")), count), *rows(draw_heldout(per_category))]


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
