"""What a decoding loop returns, and the bookkeeping that all loops share: when to stop, what is forced and counted.

    output = Output(limit=64, stop_ids=(11,), thinking=None)
    anchor = output.emit(token)             # the prefill's token
    while not output.done:
        output.start_round()                # one verify step
        ...output.emit(token)...
    return output.result()

Accounting is the same in every mode: the prefill emits the first token, each verify step emits the tokens that it
accepts and one more, the bonus. So 1 + sum(rounds) tokens come out of a loop that verifies.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm_nld.reference.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished generation; unpacks as (tokens, nfe), as the released reference functions return it.

    tokens: the output only; its last one is the EOS token if one was generated. Never longer than max_new_tokens.
    nfe: model forwards, counted as the mode's loop says.
    rounds: tokens emitted by each verify step, bonus included and cut where the generation ends; empty in AR mode,
        which verifies nothing. Their sum is len(tokens) - 1.
    """

    tokens: list[int]
    nfe: int
    rounds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rounds and sum(self.rounds) != len(self.tokens) - 1:
            raise ValueError(f"rounds {self.rounds} must sum to one less than the {len(self.tokens)} tokens")

    def __iter__(self) -> Iterator[list[int] | int]:
        yield self.tokens
        yield self.nfe

    @property
    def tpf(self) -> float:
        """Output tokens a forward. Diffusion counts no prefill: one that ends with the prefill's token has TPF 1."""
        return len(self.tokens) / max(self.nfe, 1)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens a verify step, bonus included; None where nothing was verified.

        vLLM's 1 + accepted / drafts, except that the last step counts only what the output could still take. Over
        several generations weigh by steps: sum of all rounds / number of all rounds.
        """
        return sum(self.rounds) / len(self.rounds) if self.rounds else None


@dataclass(slots=True)
class Output:
    """A generation under way.

    limit: output tokens at most. stop_ids: tokens that end it. thinking: the budget's state, None for no budget.
    """

    limit: int
    stop_ids: tuple[int, ...] = ()
    thinking: Thinking | None = None
    tokens: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    nfe: int = 0

    @property
    def done(self) -> bool:
        """True once the output has its EOS token or its full length."""
        return len(self.tokens) >= self.limit or (bool(self.tokens) and self.tokens[-1] in self.stop_ids)

    @property
    def forced(self) -> int | None:
        """The token that must come next, if any."""
        return self.thinking.forced if self.thinking else None

    def start_round(self) -> None:
        """A verify step begins: what is emitted from here on is its."""
        self.rounds.append(0)

    def emit(self, token: int) -> int:
        """Append one token and return it."""
        if self.done:
            raise RuntimeError("a token was emitted after the end of the generation")
        self.tokens.append(token)
        if self.rounds:
            self.rounds[-1] += 1
        if self.thinking:
            self.thinking.observe(token)
        return token

    def result(self) -> Generation:
        """The finished generation."""
        return Generation(list(self.tokens), self.nfe, tuple(self.rounds))
