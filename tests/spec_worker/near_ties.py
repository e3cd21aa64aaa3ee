"""In bf16 a row of 1 and one of 32 tokens round differently: output may leave AR's only where two tokens nearly tie."""

from collections.abc import Mapping, Sequence
from typing import Any

GAP = 0.25  # between the two tokens' logits at the first divergence, as in vLLM's own tests


def likeliest(completion: Any) -> list[dict[int, float]]:
    """The log probabilities of a completion that was asked for some, by token, for each of its tokens."""
    return [{token: known.logprob for token, known in step.items()} for step in completion.logprobs]


def divergence(ours: Sequence[int], exact: Sequence[int], known: Sequence[Mapping[int, float]]) -> float | None:
    """How much likelier AR finds its own token than ours, in logits, where they part first; None if they don't.

    known: `likeliest` of AR's answer. Infinite if one answer ends and the other doesn't, or ours isn't among them.
    """
    for index, (token, expected) in enumerate(zip(ours, exact, strict=False)):
        if token != expected:
            return known[index][expected] - known[index].get(token, -float("inf"))
    return None if len(ours) == len(exact) else float("inf")
