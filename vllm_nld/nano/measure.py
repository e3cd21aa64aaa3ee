"""Runs the reference loops over held-out prompts and adds up what the card reports.

    figures = measure(model, tokenizer, heldout(), RUNS)
    figures["ar"].exact                            # share of prompts with the one right answer

Acceptance length is weighted by verify steps and TPF by forwards, as in the project's definitions; AR verifies
nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from vllm_nld.nano import Prompt
from vllm_nld.nano.batches import encode
from vllm_nld.reference import generate
from vllm_nld.reference.model import ReferenceModel

THINK_END, EOS = 13, 11
MAX_NEW_TOKENS = 320
# name of a run, mode, draft adapter on
RUNS: tuple[tuple[str, str, bool], ...] = (
    ("ar", "ar", False),
    ("linear", "linear", True),
    ("linear without LoRA", "linear", False),
    ("diffusion", "diffusion", False),
    ("quadratic", "quadratic", False),
)


@dataclass
class Figures:
    """Sums of one run over prompts."""

    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))  # by category
    tokens: int = 0
    nfe: int = 0
    emitted: int = 0  # by verify steps
    steps: int = 0  # verify steps

    @property
    def exact(self) -> float:
        """Share of prompts with the right answer."""
        flat = [value for values in self.right.values() for value in values]
        return sum(flat) / len(flat)

    @property
    def tpf(self) -> float:
        """Output tokens a forward."""
        return self.tokens / self.nfe

    @property
    def acceptance_length(self) -> float | None:
        """Tokens a verify step, bonus included; None in AR mode."""
        return self.emitted / self.steps if self.steps else None

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "exact": self.exact,
            "exact_by_category": {name: sum(values) / len(values) for name, values in self.right.items()},
            "tokens": self.tokens,
            "nfe": self.nfe,
            "tpf": self.tpf,
            "acceptance_length": self.acceptance_length,
        }


def answer(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text after the thinking, without the end token."""
    ids = list(tokens)
    if THINK_END in ids:
        ids = ids[ids.index(THINK_END) + 1 :]
    return tokenizer.decode([token for token in ids if token != EOS]).strip("\n")


def show(model: ReferenceModel, tokenizer: Any, prompt: Prompt, run: str) -> AbstractContextManager[list[int]]:
    """A prompt's tokens, inside of which the model answers it."""
    return nullcontext(encode(tokenizer, prompt)[0])


def measure(
    model: ReferenceModel,
    tokenizer: Any,
    prompts: Iterable[Any],  # each with `category` and `expected`
    runs: Sequence[tuple[str, str, bool]] = RUNS,
    show: Callable[..., AbstractContextManager[list[int]]] = show,
) -> dict[str, Figures]:
    """Greedy generation of every prompt in every run, at the config's block length."""
    figures = {name: Figures() for name, _, _ in runs}
    for prompt in prompts:
        for name, mode, lora in runs:
            with show(model, tokenizer, prompt, name) as ids:
                result = generate(model, ids, mode=mode, max_new_tokens=MAX_NEW_TOKENS, lora=lora)  # type: ignore[arg-type]  # a str
            run = figures[name]
            run.right[prompt.category].append(answer(tokenizer, result.tokens) == prompt.expected)
            run.tokens += len(result.tokens)
            run.nfe += result.nfe
            run.emitted += sum(result.rounds)
            run.steps += len(result.rounds)
    return figures
