"""The stream of training prompts and the held-out ones, kept apart by a hash of the request.

A request is held out if the hash of its text says so. The training stream skips every conversation with a held-out
request in it, whatever the seed, the system message or the turns before it, so no list has to be consulted.

    for prompt in stream(seed=0):                  # endless, deterministic, training side only
        prompt.messages, prompt.expected
    held = draw_heldout(per_category=14)           # what heldout.jsonl holds
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vllm_nld.nano import code_tasks, data_tasks, tool_task
from vllm_nld.nano.task import Task

# task and its share of the stream; those that copy among similar values are learnt slowest and get more
TASKS: dict[str, tuple[Callable[[random.Random], Task], float]] = {
    "json": (data_tasks.json_task, 1.6),
    "table": (data_tasks.table_task, 1.3),
    "yaml": (data_tasks.yaml_task, 1.4),
    "count": (data_tasks.count_task, 0.8),
    "list": (data_tasks.list_task, 0.8),
    "edit": (data_tasks.edit_task, 1.6),
    "sql": (code_tasks.sql_task, 1.6),
    "dataclass": (code_tasks.dataclass_task, 1.2),
    "class": (code_tasks.class_task, 0.35),
    "function": (code_tasks.function_task, 0.35),
    "tool_call": (tool_task.tool_task, 0.4),
}
THINKING_SHARE = 0.12
HELDOUT_ONE_IN = 40
SYSTEM_SHARE = 0.15
HISTORY_SHARE = 0.06
HISTORY_CATEGORIES = ("table", "json", "list", "sql", "dataclass")
SYSTEM = "You are a helpful assistant. Answer with the result only."


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user message, and the one right answer to it (what follows `</think>`)."""

    category: str
    messages: tuple[dict[str, str], ...]
    expected: str
    plan: str = ""
    thinking: bool = False
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def completion(self) -> str:
        """All that the model writes after the generation prompt, the end token left out."""
        return f"{self.plan}\n</think>\n{self.expected}" if self.thinking else self.expected


def is_heldout(request: str) -> bool:
    """Whether the hash of a request's text puts it on the held-out side."""
    digest = hashlib.blake2b(request.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELDOUT_ONE_IN == 0


def draw(rng: random.Random, category: str) -> Prompt:
    """One prompt of a category, from either side of the split."""
    task = TASKS[category][0](rng)
    messages = [{"role": "user", "content": task.request}]
    if rng.random() < SYSTEM_SHARE:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    thinking = rng.random() < THINKING_SHARE
    return Prompt(category, tuple(messages), task.answer, task.plan if thinking else "", thinking, task.tools)


def draw_history(rng: random.Random) -> tuple[dict[str, str], ...]:
    """A finished turn on the training side, to stand before another request."""
    while True:
        task = TASKS[rng.choice(HISTORY_CATEGORIES)][0](rng)
        if not is_heldout(task.request):
            return {"role": "user", "content": task.request}, {"role": "assistant", "content": task.answer}


def stream(seed: int) -> Iterator[Prompt]:
    """Endless training prompts, some with a turn before them; the same seed gives the same ones."""
    rng = random.Random(seed)
    categories, shares = list(TASKS), [share for _, share in TASKS.values()]
    while True:
        prompt = draw(rng, rng.choices(categories, shares)[0])
        if is_heldout(prompt.messages[-1]["content"]):
            continue
        if len(prompt.messages) == 1 and not prompt.tools and rng.random() < HISTORY_SHARE:
            prompt = replace(prompt, messages=draw_history(rng) + prompt.messages)
        yield prompt


def category_stream(category: str, seed: int) -> Iterator[Prompt]:
    """Endless training prompts of one category, whatever its share."""
    rng = random.Random(seed)
    while True:
        prompt = draw(rng, category)
        if not is_heldout(prompt.messages[-1]["content"]):
            yield prompt


def draw_heldout(per_category: int = 14, seed: int = 2024) -> list[Prompt]:
    """The held-out prompts, the same number of each category, no two alike."""
    rng = random.Random(seed)
    prompts: list[Prompt] = []
    for category in TASKS:
        chosen: dict[str, Prompt] = {}
        while len(chosen) < per_category:
            prompt = draw(rng, category)
            request = prompt.messages[-1]["content"]
            if is_heldout(request):
                chosen.setdefault(request, prompt)
        prompts += chosen.values()
    return prompts
