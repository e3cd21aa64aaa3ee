"""What vLLM counts of drafts and acceptance, and what the reference's loop would have it count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_nld.reference import ReferenceModel, generate


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Verify steps of some requests, and the drafts accepted in them."""

    drafts: int  # verify steps
    draft_tokens: int
    accepted: int
    per_position: tuple[int, ...]  # [K], steps in which this draft was accepted

    def __sub__(self, before: "Acceptance") -> "Acceptance":
        positions = zip(self.per_position, before.per_position, strict=True)
        return Acceptance(
            self.drafts - before.drafts,
            self.draft_tokens - before.draft_tokens,
            self.accepted - before.accepted,
            tuple(now - then for now, then in positions),
        )

    @property
    def length(self) -> float:
        """Mean acceptance length, bonus token included."""
        return 1 + self.accepted / self.drafts

    @property
    def nfe(self) -> int:
        """Of one request: the prefill, and a draft and a verify forward a round."""
        return 1 + 2 * self.drafts

    @classmethod
    def of_steps(cls, accepted: Sequence[int], block_length: int) -> "Acceptance":
        """From the number of drafts accepted in each step."""
        positions = range(block_length - 1)
        return cls(
            len(accepted),
            len(accepted) * len(positions),
            sum(accepted),
            tuple(sum(count > position for count in accepted) for position in positions),
        )

    @classmethod
    def of_metrics(cls, metrics: Sequence[Any]) -> "Acceptance":
        """From what `LLM.get_metrics()` returns."""
        found = {metric.name.removeprefix("vllm:spec_decode_num_"): metric for metric in metrics}
        return cls(
            found["drafts"].value,
            found["draft_tokens"].value,
            found["accepted_tokens"].value,
            tuple(found["accepted_tokens_per_pos"].values),
        )


def exact_steps(model: ReferenceModel, prompt: list[int], count: int, block_length: int, **how: Any) -> list[int]:
    """Drafts accepted in each step until `count` tokens are out.

    vLLM counts the last step whole, where the reference's loop cuts it at the answer's end, so that runs on here.
    """
    common: dict[str, Any] = {"mode": "linear", "block_length": block_length, "ignore_eos": True} | how
    rounds = generate(model, prompt, max_new_tokens=count + block_length, **common).rounds
    steps, made = [], 1
    for emitted in rounds:
        if made >= count:
            break
        steps.append(emitted - 1)
        made += emitted
    return steps
