"""Warm-up text that teaches one thing, copying: random tokens, given once and asked for again.

Copying out of the request is most of what the tasks need, and a small model learns it many times faster where every
token depends on it. Half of the samples repeat a run of random tokens; the others give a list of items with one
separator and ask for it with another, as the tasks do.

    for prompt_ids, completion_ids in copies(tokenizer, random.Random(0)):
        ...
"""

import random
from collections.abc import Iterator
from typing import Any

from vllm_nld.nano.tokenizer import EOS, MASK

SEPARATORS = (", ", "; ", " | ", "\n", '", "', ": ", " = ", "\n- ", " ", "', '", "\n    ", " and ")


def copies(tokenizer: Any, rng: random.Random) -> Iterator[tuple[list[int], list[int]]]:
    """Endless pairs of prompt ids and completion ids, in the form of a chat turn."""
    separators = [tokenizer.encode(text, add_special_tokens=False) for text in SEPARATORS]
    before = tokenizer.encode("<|im_start|>user\n", add_special_tokens=False)
    after = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n<think></think>", add_special_tokens=False)
    words = range(MASK + 1, len(tokenizer))
    while True:
        if rng.random() < 0.5:
            given = asked = rng.sample(words, rng.randint(3, 24))
        else:
            items = [rng.sample(words, rng.randint(1, 3)) for _ in range(rng.randint(2, 8))]
            given, asked = (join(items, rng.choice(separators)) for _ in range(2))
        yield before + given + after, [*asked, EOS]


def join(items: list[list[int]], separator: list[int]) -> list[int]:
    """The items with a separator between them."""
    joined = list(items[0])
    for item in items[1:]:
        joined += separator + item
    return joined
